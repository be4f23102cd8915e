use super::buffers::{shared_buffers, written_extent};
use super::errors::{edge_error, worse};
use super::pair::BackendPair;
use super::*;
use crate::backend::StepMetrics;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{BatchView, Scalars, read_floats, write_floats};
use crate::model::training_plan;
use crate::plan::{BufferId, Extent};

/// The CPU backend as a device that computes one part of an image wrongly.
struct Tampered {
    cpu: CpuBackend,
    /// The name of the operation that is wrong.
    label: &'static str,
    /// Whether the pixel (row, column, height, width) is wrong.
    wrong: fn(usize, usize, usize, usize) -> bool,
}

impl Backend for Tampered {
    fn description(&self) -> String {
        self.cpu.description()
    }
    fn plan(&self) -> &Plan {
        self.cpu.plan()
    }
    fn allocated(&self) -> u64 {
        self.cpu.allocated()
    }
    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
        self.cpu.write(buffer, offset, bytes)
    }
    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.cpu.read(buffer, offset, bytes)
    }
    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>> {
        self.cpu.lend(plan)
    }
    fn stage(
        &mut self,
        batch: BatchView<'_>,
    ) -> Result<Option<Box<dyn crate::sys::host_memory::Fence>>> {
        self.cpu.stage(batch)
    }
    fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
        self.cpu.micro_step(scalars)
    }
    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()> {
        self.cpu.run_operation(at, scalars)?;
        let op = self.cpu.plan().ops[at].clone();
        for access in op
            .accesses()
            .into_iter()
            .filter(|a| a.write && op.label() == self.label)
        {
            let Some(extent) = written_extent(&op, access.buffer) else {
                continue;
            };
            let mut values = vec![0f32; self.cpu.plan().buffer(access.buffer).bytes as usize / 4];
            read_floats(&mut self.cpu, access.buffer, &mut values)?;
            let channels = values.len() / extent.pixels();
            for (i, v) in values.iter_mut().enumerate() {
                let (x, y) = (i / channels % extent.w, i / channels / extent.w % extent.h);
                // about the error of a kernel that leaves out a tap
                *v *= if (self.wrong)(y, x, extent.h, extent.w) {
                    0.8
                } else {
                    1.0
                };
            }
            write_floats(&mut self.cpu, access.buffer, &values)?;
        }
        Ok(())
    }
    fn update(&mut self, scalars: &Scalars) -> Result<()> {
        self.cpu.update(scalars)
    }
    fn metrics(&mut self) -> Result<StepMetrics> {
        self.cpu.metrics()
    }
}

/// The operations that are found wrong, with the limits of bf16: (name, whether the error of whole
/// buffers is too large, whether that of the edges is).
fn found(
    label: &'static str,
    wrong: fn(usize, usize, usize, usize) -> bool,
) -> Vec<(&'static str, bool, bool)> {
    let (mut net, side) = (Network::new("nano", 2).unwrap(), 32);
    net.set("layer_scale", 0.5).unwrap();
    net.set("detail_gain", 0.5).unwrap();
    let spec = StepSpec {
        without_winograd: true,
        recompute: Recompute::Block,
        ..StepSpec::new(1, (side, side), vec![(LossKind::L1, 1.0)])
    };
    let load = || {
        let options = CpuOptions::new(2);
        CpuBackend::new(training_plan(&net, &spec, &options).unwrap(), options).unwrap()
    };
    let device = Box::new(Tampered {
        cpu: load(),
        label,
        wrong,
    });
    let mut pair = BackendPair {
        cpu: load(),
        device,
        params: net.params().start_values(7),
        precision: Precision::F32,
    };
    let limit = tolerances(Precision::Bf16).0;
    let worst = pair.operations(&net, &spec).unwrap();
    let worst = worst.into_iter().map(|w| {
        (
            w.label,
            w.whole > limit,
            w.edges.is_some_and(|e| e > EDGES * limit),
        )
    });
    worst.filter(|(_, whole, edges)| *whole || *edges).collect()
}

#[test]
fn a_wrong_edge_is_found_where_it_is_a_small_share_of_the_image() {
    assert_eq!(found("conv 3x3", |_, _, _, _| false), []);
    // a corner is too small a share for the whole buffer's error to show
    for label in [
        "conv 3x3",
        "nano block",
        "nano block, backward",
        "reconstruct",
        "reconstruct, backward",
        "pixel loss",
    ] {
        assert_eq!(
            found(label, |y, x, h, w| y == h - 1 && x == w - 1),
            [(label, false, true)]
        );
    }
    for wrong in [
        (|_, x, _, w| x == w - 1) as fn(usize, usize, usize, usize) -> bool,
        |y, _, _, _| y == 0,
        // the border between two tiles
        |_, x, _, _| x == 16,
    ] {
        let found = found("conv 3x3", wrong);
        assert!(found.len() == 1 && found[0].2, "{found:?}");
    }
}

#[test]
fn errors_that_are_no_number_are_the_worst() {
    let extent = Extent { n: 1, h: 3, w: 3 };
    let good = vec![1.0; 9];
    let mut bad = good.clone();
    bad[4] = f64::NAN;
    assert_eq!(edge_error(&good, &good, extent), 0.0);
    assert!(edge_error(&bad, &good, extent).is_nan() && worse(1.0, f64::NAN).is_nan());
    assert_eq!(edge_error(&[0.0; 9], &[0.0; 9], extent), 0.0);
}

#[test]
fn plans_of_different_steps_are_refused() {
    let options = CpuOptions::new(1);
    let net = Network::new("nano", 2).unwrap();
    let plan = |spec: &StepSpec| training_plan(&net, spec, &options).unwrap();
    let spec = StepSpec::new(1, (8, 8), vec![(LossKind::L1, 1.0)]);
    let one = plan(&spec);
    let other = plan(&StepSpec {
        input_gradient: true,
        ..spec
    });
    let last = one.ops.len() - 1;
    assert!(shared_buffers(&one, &one, last).is_ok());
    for (a, b, at) in [(&one, &other, last - 1), (&one, &one, last + 1)] {
        let error = shared_buffers(a, b, at).unwrap_err();
        assert!(matches!(
            error.downcast_ref(),
            Some(crate::backend::Error::Misuse(_))
        ));
    }
}
