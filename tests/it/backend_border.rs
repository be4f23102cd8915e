//! The public interface of the backends: no safe call writes outside the arena, runs instructions
//! that the processor lacks, or panics. Every case here once was undefined behaviour or a panic;
//! without the check that now prevents it, the address sanitizer reports it.

use paragon::backend::cpu::structural::{Similarity, score, score_and_gradient, scratch_floats};
use paragon::backend::cpu::{CpuBackend, CpuOptions, Isa};
use paragon::backend::{Backend, BatchView, CudaSizing, Scalars};
use paragon::model::{InferenceSpec, Network, StepSpec, inference_plan, training_plan};
use paragon::plan::{
    BufferId, Conv, Extent, LossKind, NanoBlock, Op, PixelLoss, Plan, Precision, Reconstruct,
    Sizing, StructuralLoss,
};

fn net() -> Network {
    Network::new("nano", 2).unwrap()
}

fn step(sizing: &dyn Sizing) -> Plan {
    let losses = vec![(LossKind::L1, 1.0), (LossKind::Ssim, 0.05)];
    training_plan(&net(), &StepSpec::new(2, (33, 17), losses), sizing).unwrap()
}

fn scalars() -> Scalars {
    Scalars {
        lr: 1e-3,
        step: 1,
        clip: 1.0,
        ema_decay: 0.9,
        micro_scale: 1.0,
        loss_scale: 1.0,
        accumulate: false,
    }
}

#[track_caller]
fn refused(plan: Plan, options: CpuOptions, words: &[&str]) {
    let error = CpuBackend::new(plan, options)
        .err()
        .map(|e| format!("{e:#}"))
        .expect("the plan is not for this backend");
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn a_plan_for_fewer_threads_is_refused() {
    // Each thread has rows of its own in the workspace; those of the last threads would be beyond
    // its end.
    refused(
        step(&CpuOptions::new(1)),
        CpuOptions::new(8),
        &[
            "the CPU with 1 threads",
            "the CPU with 8 threads",
            "workspace",
        ],
    );
    CpuBackend::new(step(&CpuOptions::new(8)), CpuOptions::new(1)).unwrap();
}

#[test]
fn a_plan_for_a_gpu_is_refused_in_every_type() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
        refused(
            step(&CudaSizing { precision }),
            CpuOptions::new(1),
            &["CUDA", "the CPU"],
        );
    }
}

/// A sizing that has the name of the CPU's and asks for half the workspace.
struct Liar;

impl Sizing for Liar {
    fn name(&self) -> String {
        CpuOptions::new(1).name()
    }

    fn workspace(&self, op: &Op) -> u64 {
        CpuOptions::new(1).workspace(op) / 2
    }

    fn carry(&self, _: &Op) -> u64 {
        0
    }

    fn prepared(&self, _: &Op) -> u64 {
        0
    }
}

#[test]
fn a_plan_with_too_little_room_is_refused_whoever_made_it() {
    refused(step(&Liar), CpuOptions::new(1), &["workspace"]);
    let spec = InferenceSpec {
        batch: 1,
        lq: (20, 30),
        float_input: false,
    };
    refused(
        inference_plan(&net(), &spec, &Liar).unwrap(),
        CpuOptions::new(1),
        &["workspace"],
    );
    // The same holds if it gets the arena of a valid plan.
    let mut host = CpuBackend::new(step(&CpuOptions::new(1)), CpuOptions::new(1)).unwrap();
    assert!(
        host.lend(inference_plan(&net(), &spec, &Liar).unwrap())
            .is_err()
    );
}

/// Operations of a training step, each with one property that the CPU kernels do not support, and
/// a word that the error must contain.
fn odd_operations() -> Vec<(Op, &'static str)> {
    let plan = step(&CpuOptions::new(1));
    let mut odd = Vec::new();
    for op in &plan.ops {
        match op {
            Op::Conv(o) => {
                for (cin, cout) in [(16, 5), (5, 16), (0, 16), (16, 0)] {
                    let conv = Conv {
                        cin,
                        cout,
                        ..o.clone()
                    };
                    odd.push((Op::Conv(conv), "channels"));
                }
                let conv = Conv {
                    extent: Extent { h: 0, ..o.extent },
                    ..o.clone()
                };
                odd.push((Op::Conv(conv), "0"));
            }
            Op::ConvBack(o) => {
                let mut back = o.clone();
                back.forward.cout = 24;
                odd.push((Op::ConvBack(back), "channels"));
            }
            Op::NanoBlock(o) => {
                let block = NanoBlock {
                    features: 32,
                    ..o.clone()
                };
                odd.push((Op::NanoBlock(block), "32 features"));
                let block = NanoBlock {
                    extent: Extent { n: 0, ..o.extent },
                    ..o.clone()
                };
                odd.push((Op::NanoBlock(block), "0"));
                let extent = Extent {
                    n: usize::MAX,
                    h: usize::MAX,
                    w: usize::MAX,
                };
                odd.push((
                    Op::NanoBlock(NanoBlock {
                        extent,
                        ..o.clone()
                    }),
                    "large",
                ));
            }
            Op::NanoBlockBack(o) => {
                let mut back = o.clone();
                back.forward.features = 24;
                odd.push((Op::NanoBlockBack(back), "24 features"));
            }
            Op::Reconstruct(o) => {
                for scale in [0, 1, 5, 6, 16, usize::MAX] {
                    odd.push((Op::Reconstruct(Reconstruct { scale, ..o.clone() }), "scale"));
                }
                for features in [0, 8, 24, 80] {
                    let reconstruct = Reconstruct {
                        features,
                        ..o.clone()
                    };
                    odd.push((Op::Reconstruct(reconstruct), "features"));
                }
                let extent = Extent { w: 0, ..o.extent };
                odd.push((
                    Op::Reconstruct(Reconstruct {
                        extent,
                        ..o.clone()
                    }),
                    "0",
                ));
            }
            Op::ReconstructBack(o) => {
                let mut back = o.clone();
                back.forward.scale = 5;
                odd.push((Op::ReconstructBack(back), "scale"));
                let mut back = o.clone();
                back.forward.features = 128;
                odd.push((Op::ReconstructBack(back), "features"));
            }
            Op::PixelLoss(o) => {
                let extent = Extent { h: 0, ..o.extent };
                odd.push((
                    Op::PixelLoss(PixelLoss {
                        extent,
                        ..o.clone()
                    }),
                    "0",
                ));
            }
            Op::StructuralLoss(o) => {
                let extent = Extent { w: 0, ..o.extent };
                odd.push((
                    Op::StructuralLoss(StructuralLoss {
                        extent,
                        ..o.clone()
                    }),
                    "0",
                ));
                let extent = Extent {
                    n: 1,
                    h: usize::MAX,
                    w: 2,
                };
                odd.push((
                    Op::StructuralLoss(StructuralLoss {
                        extent,
                        ..o.clone()
                    }),
                    "large",
                ));
            }
            Op::Unpack(o) => {
                let mut unpack = o.clone();
                unpack.batch.lq = (0, 17);
                odd.push((Op::Unpack(unpack), "0"));
            }
            _ => {}
        }
    }
    odd
}

#[test]
fn operations_that_no_kernel_is_written_for_are_errors() {
    let sizing = CpuOptions::new(1);
    for (op, word) in odd_operations() {
        let error = sizing
            .supports(&op)
            .map_err(|e| format!("{e:#}"))
            .expect_err(&format!("{op:?}"));
        assert!(
            error.contains(op.label()) && error.contains(word),
            "{error}"
        );
        // The planner asks for these sizes before it asks whether the operation is supported.
        assert_eq!((sizing.workspace(&op), sizing.carry(&op)), (0, 0), "{op:?}");
    }
    for op in &step(&sizing).ops {
        sizing.supports(op).unwrap();
    }
}

/// A sizing that supports nothing, as a backend without kernels would.
struct NoKernels;

impl Sizing for NoKernels {
    fn supports(&self, op: &Op) -> anyhow::Result<()> {
        anyhow::bail!("no kernel for {}", op.label())
    }

    fn workspace(&self, _: &Op) -> u64 {
        0
    }

    fn carry(&self, _: &Op) -> u64 {
        0
    }
}

#[test]
fn the_planner_and_the_check_of_a_plan_ask_what_is_supported() {
    let spec = StepSpec::new(1, (8, 8), vec![(LossKind::L1, 1.0)]);
    let error = training_plan(&net(), &spec, &NoKernels).err().unwrap();
    assert!(error.to_string().contains("no kernel"), "{error:#}");
    let error = step(&CpuOptions::new(1)).check_sized_for(&NoKernels);
    assert!(error.unwrap_err().to_string().contains("no kernel"));
}

#[test]
fn any_number_of_threads_can_be_planned_for() {
    let sizing = CpuOptions::new(usize::MAX);
    assert!(step(&sizing).arena_bytes > step(&CpuOptions::new(1)).arena_bytes);
}

#[test]
fn similarities_of_odd_images_are_errors_or_numbers() {
    let isa = Isa::detect();
    let rows = |_: usize, difference: &mut [f32], target: &mut [f32]| {
        difference.fill(0.1);
        target.fill(0.5);
    };
    for kind in [Similarity::Ssim, Similarity::MultiScale { luminance: true }] {
        // The score of an image that is smaller than the coarsest level of a large one includes a
        // border of zeros.
        let mut scratch = vec![0.0; scratch_floats(kind, 1, 1).unwrap()];
        let value = score(isa, kind, rows, (1, 1), &mut scratch).unwrap();
        assert!(value > 0.0 && value < 1.0);
        for size in [(0, 3), (3, 0), (0, 0), (usize::MAX, 2), (2, usize::MAX)] {
            assert!(scratch_floats(kind, size.0, size.1).is_err(), "{size:?}");
            assert!(score(isa, kind, rows, size, &mut scratch).is_err());
        }
        let mut gradient = [0.0; 12];
        let mut evaluate = |size: (usize, usize), values: usize, scratch: &mut [f32]| {
            score_and_gradient(isa, kind, rows, size, 1.0, &mut gradient[..values], scratch)
        };
        assert!(evaluate((1, 1), 3, &mut scratch).is_ok());
        assert!(evaluate((1, 1), 4, &mut scratch).is_err());
        assert!(evaluate((2, 2), 12, &mut []).is_err());
    }
}

#[test]
fn reading_and_writing_outside_a_buffer_is_an_error() {
    let mut backend = CpuBackend::new(step(&CpuOptions::new(2)), CpuOptions::new(2)).unwrap();
    let parameters = backend.plan().ports.parameters.unwrap();
    let bytes = backend.plan().buffer(parameters).bytes as usize;
    let mut out = [0; 8];
    for offset in [
        bytes,
        bytes - 7,
        usize::MAX - 3,
        usize::MAX - 7,
        usize::MAX / 2,
    ] {
        assert!(
            backend.read(parameters, offset, &mut out).is_err(),
            "{offset}"
        );
        assert!(backend.write(parameters, offset, &out).is_err(), "{offset}");
    }
    backend.read(parameters, bytes - 8, &mut out).unwrap();
    for id in [
        BufferId(u32::MAX),
        BufferId(backend.plan().buffers.len() as u32),
    ] {
        assert!(backend.read(id, 0, &mut out).is_err() && backend.write(id, 0, &out).is_err());
    }
    for at in [backend.plan().ops.len(), usize::MAX] {
        assert!(backend.run_operation(at, &scalars()).is_err());
    }
}

#[test]
fn batches_of_other_sizes_are_errors() {
    let mut backend = CpuBackend::new(step(&CpuOptions::new(1)), CpuOptions::new(1)).unwrap();
    let layout = backend.plan().batch.unwrap();
    let (lq, hr) = (vec![0; layout.lq_bytes()], vec![0; layout.hr_bytes()]);
    for (lq, hr, augment) in [
        (&lq[1..], &hr[..], &[][..]),
        (&lq, &hr[1..], &[]),
        (&lq, &hr, &[0]),
        (&lq, &hr, &[1, 0]),
        (&[], &[], &[]),
    ] {
        assert!(backend.stage(BatchView { lq, hr, augment }).is_err());
    }
    backend
        .stage(BatchView {
            lq: &lq,
            hr: &hr,
            augment: &[0, 0],
        })
        .unwrap();
    backend.micro_step(&scalars()).unwrap();
    backend.update(&scalars()).unwrap();
    assert!(backend.metrics().unwrap().loss.is_finite());
}

#[test]
fn instruction_sets_are_those_of_this_processor() {
    let here = Isa::available();
    assert!(here.contains(&Isa::detect()) && here.contains(&CpuOptions::new(1).isa()));
    for name in ["portable", "avx2", "avx-512", "neon", "amx", ""] {
        assert!(
            Isa::named(name).map_or(true, |isa| here.contains(&isa)),
            "{name}"
        );
    }
    assert_eq!(
        CpuOptions::new(0).threads().min(1),
        1,
        "0 must become at least one thread"
    );
}
