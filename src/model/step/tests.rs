//! Plans verify, are close to the lower bound, and are refused for impossible sizes.

use super::*;

struct NoWorkspace;
impl Sizing for NoWorkspace {
    fn workspace(&self, _: &Op) -> u64 {
        0
    }

    fn carry(&self, _: &Op) -> u64 {
        8
    }
}

fn spec(batch: usize, lq: (usize, usize)) -> StepSpec {
    StepSpec::new(batch, lq, vec![(LossKind::L1, 1.0)])
}

#[test]
fn plans_verify_and_lie_close_to_the_lower_bound() {
    for scale in [2, 3, 4] {
        let net = Network::new("nano", scale).unwrap();
        for (batch, lq) in [(1, (8, 8)), (3, (33, 17)), (16, (128, 128))] {
            let mut spec = spec(batch, lq);
            for _ in 0..2 {
                let plan = training_plan(&net, &spec, &NoWorkspace).unwrap();
                let (peak, _) = plan.peak();
                assert!(
                    plan.arena_bytes as f64 <= 1.1 * peak as f64,
                    "{} against {peak}",
                    plan.arena_bytes
                );
                spec.losses.push((LossKind::Ssim, 0.05));
            }
        }
    }
}

#[test]
fn sizes_without_a_plan_are_refused() {
    let net = Network::new("nano", 2).unwrap();
    for (batch, lq) in [
        (0, (8, 8)),
        (1, (0, 8)),
        (usize::MAX, (8, 8)),
        (1 << 40, (1 << 20, 1 << 20)),
        (1, (8, usize::MAX / 2)),
    ] {
        assert!(
            training_plan(&net, &spec(batch, lq), &NoWorkspace).is_err(),
            "{batch} x {lq:?}"
        );
        let inference = InferenceSpec {
            batch,
            lq,
            float_input: false,
        };
        assert!(
            inference_plan(&net, &inference, &NoWorkspace).is_err(),
            "{batch} x {lq:?}"
        );
    }
    for scale in [0, 1, 5, usize::MAX] {
        let other = Network {
            scale,
            ..net.clone()
        };
        assert!(
            training_plan(&other, &spec(1, (8, 8)), &NoWorkspace).is_err(),
            "scale {scale}"
        );
    }
    let other = Network {
        arch: "paragonsr2_pro".into(),
        ..net
    };
    assert!(training_plan(&other, &spec(1, (8, 8)), &NoWorkspace).is_err());
}

#[test]
fn verify_catches_a_shared_byte_and_a_missing_write() {
    let net = Network::new("nano", 2).unwrap();
    let data = |plan: Plan| (*plan).clone();
    let mut plan = data(training_plan(&net, &spec(1, (8, 8)), &NoWorkspace).unwrap());
    let good = plan.clone();
    let output = plan
        .ops
        .iter()
        .find_map(|op| {
            if let Op::Reconstruct(h) = op {
                Some(h.output)
            } else {
                None
            }
        })
        .unwrap();
    plan.buffers[output.0 as usize].offset = plan.buffers[0].offset;
    assert!(plan.verify().is_err());
    let mut plan = good;
    plan.ops.remove(1); // conv_in: its output is read by the first block
    assert!(
        plan.verify()
            .unwrap_err()
            .to_string()
            .contains("before it is written")
    );
    let ssim = StepSpec {
        losses: vec![(LossKind::Ssim, 1.0)],
        ..spec(1, (8, 8))
    };
    let mut plan = data(training_plan(&net, &ssim, &NoWorkspace).unwrap());
    for op in &mut plan.ops {
        if let Op::StructuralLoss(o) = op {
            o.d_prediction = o.prediction;
        }
    }
    assert!(
        plan.verify()
            .unwrap_err()
            .to_string()
            .contains("while reading it")
    );
}

/// The structural losses write the sums of the pixel losses ahead of them, in every slice, and read
/// nothing of what those would have written.
#[test]
fn pixel_losses_wait_for_structural_ones() {
    struct Workspaces;
    impl Sizing for Workspaces {
        fn workspace(&self, op: &Op) -> u64 {
            match op {
                Op::PixelLoss(_) | Op::StructuralLoss(_) => 64,
                _ => 0,
            }
        }
        fn carry(&self, op: &Op) -> u64 {
            self.workspace(op) / 8
        }
    }
    let net = Network::new("nano", 2).unwrap();
    let spec = StepSpec {
        losses: vec![(LossKind::L1, 1.0), (LossKind::Ssim, 1.0)],
        recompute: Recompute::Full,
        ..spec(2, (182, 182))
    };
    let plan = training_plan(&net, &spec, &Workspaces).unwrap();
    let pixel: Vec<usize> = (0..plan.ops.len())
        .filter(|&at| matches!(plan.ops[at], Op::PixelLoss(_)))
        .collect();
    assert_eq!(pixel.len(), 2, "slices");
    for at in pixel {
        let Op::PixelLoss(loss) = &plan.ops[at] else {
            unreachable!()
        };
        let workspace = plan.buffer(loss.workspace.unwrap());
        assert!(workspace.live.contains(&(at + 1)));
        assert_eq!(plan.floor_of(at).bytes, 0);
        let values = 364 * 364 * 3;
        assert_eq!(plan.floor_of(at + 1).bytes, values * (4 + 1 + 4));
    }
}

#[test]
fn verify_refuses_unknown_buffers_and_operations() {
    let net = Network::new("nano", 2).unwrap();
    let good = training_plan(&net, &spec(1, (8, 8)), &NoWorkspace).unwrap();
    let mut plan = (*good).clone();
    plan.buffers.pop();
    assert!(matches!(
        plan.verify(),
        Err(crate::plan::Error::NoSuchBuffer { .. })
    ));
    let mut plan = (*good).clone();
    plan.update.end += 1;
    assert!(matches!(plan.verify(), Err(crate::plan::Error::Invalid(_))));
    assert!(good.get_buffer(BufferId(u32::MAX)).is_none());
}

#[test]
fn impossible_sizes_are_errors_of_the_model() {
    let net = Network::new("nano", 2).unwrap();
    let error = training_plan(&net, &spec(0, (8, 8)), &NoWorkspace).unwrap_err();
    assert!(matches!(
        error.downcast_ref(),
        Some(Error::Images { images: 0 })
    ));
    let error = training_plan(&net, &spec(1, (0, 8)), &NoWorkspace).unwrap_err();
    assert!(matches!(
        error.downcast_ref(),
        Some(Error::Size { height: 0, .. })
    ));
}
