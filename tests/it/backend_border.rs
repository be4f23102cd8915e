//! The border of the compute part: no safe call writes outside the arena, runs instructions that
//! the processor lacks, or panics. Every case here was undefined behaviour or a panic once; under
//! the address sanitizer it shows as such when a check is taken away.

use paragon::backend::cpu::{CpuBackend, CpuOptions, Isa};
use paragon::backend::{Backend, BatchView, CudaSizing, Scalars};
use paragon::model::{InferenceSpec, Network, StepSpec, inference_plan, training_plan};
use paragon::plan::{BufferId, LossKind, Op, Plan, Precision, Reconstruct, Sizing};

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
    // rows in flight are kept per thread: the last ones would lie behind the workspace
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

/// A sizing that asks for less than it should, under any name.
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

    fn folded(&self, _: &Reconstruct) -> u64 {
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
    // also when it is lent the arena of a good one
    let mut host = CpuBackend::new(step(&CpuOptions::new(1)), CpuOptions::new(1)).unwrap();
    assert!(
        host.lend(inference_plan(&net(), &spec, &Liar).unwrap())
            .is_err()
    );
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
    assert_eq!(CpuOptions::new(0).threads().min(1), 1, "never no thread");
}
