//! A training step on the CPU, operation by operation: seconds, useful work, share of the machine's
//! measured FMA peak, and the bytes of all inputs and outputs counted once. The whole step is
//! compared with a step that has direct convolutions only, one with full recomputation and one on a
//! single thread; these run in turn. `cargo bench --bench step -- [--batch 16] [--lq 128]
//! [--threads 0] [--steps 10] [--loss l1 --loss ssim:0.05] [all]`; `all` measures every instruction
//! set.

use paragon::backend::cpu::{CpuBackend, CpuOptions, Isa, fma_peak};
use paragon::backend::{Backend, BatchView, Scalars, write_floats};
use paragon::model::{Network, Recompute, StepSpec, training_plan};
use paragon::plan::{LossKind, OpFloor};
use paragon::support::text::bytes_text;
use std::time::Instant;

fn flag(name: &str, default: usize) -> usize {
    let args: Vec<String> = std::env::args().collect();
    args.iter()
        .position(|a| a == name)
        .and_then(|i| args.get(i + 1)?.parse().ok())
        .unwrap_or(default)
}

/// The losses of every `--loss KIND[:WEIGHT]`; L1 without one.
fn losses() -> Vec<(LossKind, f32)> {
    let args: Vec<String> = std::env::args().collect();
    let given = args
        .windows(2)
        .filter(|pair| pair[0] == "--loss")
        .map(|pair| {
            let (kind, weight) = pair[1].split_once(':').unwrap_or((&pair[1], "1"));
            (
                LossKind::from_name(kind).expect("a loss"),
                weight.parse().expect("a weight"),
            )
        });
    let list: Vec<_> = given.collect();
    if list.is_empty() {
        vec![(LossKind::L1, 1.0)]
    } else {
        list
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// An operation's name and floor.
type Row = (&'static str, OpFloor);

/// A backend with start values that has done one step of a staged batch, and the rows of its
/// operations.
fn prepare(
    options: CpuOptions,
    batch: usize,
    lq: usize,
    direct: bool,
    recompute: Recompute,
) -> (CpuBackend, Vec<Row>) {
    let net = Network::new("nano", 2).expect("nano is built");
    let spec = StepSpec {
        without_winograd: direct,
        recompute,
        ..StepSpec::new(batch, (lq, lq), losses())
    };
    let plan = training_plan(&net, &spec, &options).expect("the plan verifies");
    let parameters = plan
        .ports
        .parameters
        .expect("a training plan has parameters");
    let labels = plan
        .ops
        .iter()
        .enumerate()
        .map(|(at, op)| (op.label(), plan.floor_of(at)))
        .collect();
    let mut backend = CpuBackend::new(plan, options).expect("memory for the arena");
    write_floats(&mut backend, parameters, &net.params().start_values(1)).expect("parameters fit");
    let pixels: Vec<u8> = (0..batch * lq * lq * 12)
        .map(|i| paragon::support::rng::mix(i as u64) as u8)
        .collect();
    let view = BatchView {
        lq: &pixels[..batch * lq * lq * 3],
        hr: &pixels,
        augment: &[],
    };
    backend.stage(view).expect("a batch fits");
    backend.micro_step(&SCALARS).expect("a step runs");
    (backend, labels)
}

const SCALARS: Scalars = Scalars {
    lr: 1e-4,
    step: 1,
    clip: 1.0,
    ema_decay: 0.9,
    micro_scale: 1.0,
    loss_scale: 1.0,
    accumulate: false,
};

fn main() {
    let (batch, lq, steps) = (
        flag("--batch", 16),
        flag("--lq", 128),
        flag("--steps", 10).max(1),
    );
    let threads = CpuOptions::new(flag("--threads", 0)).threads();
    let all = std::env::args().any(|a| a == "all");
    for isa in Isa::available().into_iter().take(if all { 9 } else { 1 }) {
        measure(isa, threads, batch, lq, steps);
    }
}

/// Measures the step with an instruction set and prints a row for every operation.
fn measure(isa: Isa, threads: usize, batch: usize, lq: usize, steps: usize) {
    let options = CpuOptions::new(threads).with_isa(isa);
    let (mut backend, labels) = prepare(options, batch, lq, false, Recompute::Block);
    let (mut direct, _) = prepare(options, batch, lq, true, Recompute::Block);
    let (mut full, _) = prepare(options, batch, lq, false, Recompute::Full);
    let one = CpuOptions::new(1).with_isa(isa);
    let (mut single, _) = prepare(one, batch, lq, false, Recompute::Block);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); labels.len()];
    let (mut totals, mut peaks, mut against, mut scaling, mut slices) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..steps {
        // All variants are timed in turn, because the speed of a shared machine drifts.
        peaks.push(fma_peak(options));
        let timed = |backend: &mut CpuBackend, seconds: &mut Vec<f64>| {
            let start = Instant::now();
            backend.profile(&SCALARS, &mut |_, s| seconds.push(s));
            start.elapsed().as_secs_f64()
        };
        let mut seconds = Vec::new();
        let total = timed(&mut backend, &mut seconds);
        times.iter_mut().zip(seconds).for_each(|(t, s)| t.push(s));
        against.push(timed(&mut direct, &mut Vec::new()) / total);
        slices.push(timed(&mut full, &mut Vec::new()) / total);
        scaling.push(timed(&mut single, &mut Vec::new()) / total);
        totals.push(total);
    }
    let (total, peak) = (median(totals), median(peaks));
    let (mut work, mut bytes) = (0, 0);
    let arena = bytes_text(backend.allocated());
    println!(
        "{isa}, {threads} threads, batch {batch}, LQ {lq}: arena {arena}, FMA peak {:.0} GFLOP/s",
        peak / 1e9
    );
    let row = |label: &str, seconds, multiply_adds, bytes| {
        print_row(label, seconds, multiply_adds, bytes, peak);
    };
    for ((label, floor), times) in labels.iter().zip(times) {
        row(label, median(times), floor.multiply_adds, floor.bytes);
        work += floor.multiply_adds;
        bytes += floor.bytes;
    }
    row("step", total, work, bytes);
    println!(
        "  {:.2}x the step with direct convolutions, {:.2}x one thread",
        median(against),
        median(scaling)
    );
    println!(
        "  full recomputation: {:.3}x the time, arena {}\n",
        median(slices),
        bytes_text(full.allocated())
    );
}

/// Prints seconds, work, share of `peak` (FLOP/s), bytes and bandwidth.
fn print_row(label: &str, seconds: f64, multiply_adds: u64, bytes: u64, peak: f64) {
    let (flops, ms) = (2.0 * multiply_adds as f64, 1e3 * seconds);
    let (share, rate) = (
        100.0 * flops / seconds / peak,
        1e-9 * bytes as f64 / seconds,
    );
    println!(
        "  {label:36} {ms:8.2} ms {:8.2} GFLOP {share:6.1}% of peak {:8.1} MiB {rate:6.1} GB/s",
        1e-9 * flops,
        bytes as f64 / 1048576.0
    );
}
