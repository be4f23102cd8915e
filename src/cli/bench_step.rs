//! `paragon bench step`: measures the time of a training step on a device, and compares it with the
//! least that the step must move and compute. Depends on the backends and the plan's floor.

use super::cuda_details::LoadedKernels;
use super::flags::{MAX_BATCH, MAX_SIDE, count, print, print_json, tell};
use super::recipe::{NetworkFlags, settings_of};
use super::step_time::run_text;
use anyhow::Result;
use paragon::backend::cpu::{CpuBackend, CpuOptions, bf16_peak, fma_peak};
use paragon::backend::cuda::{CopySpeed, CudaBackend, Device};
use paragon::backend::{Backend, BatchView, Scalars, write_floats};
use paragon::config::loss_term;
use paragon::model::{Recompute, Setting, StepSpec, training_plan};
use paragon::plan::{OpFloor, Plan, Precision};
use paragon::support::text::bytes_text;
use paragon::train::{DeviceChoice, LossTerm, OpenedDevice};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Measure a training step on synthetic patches: seconds, the time of a whole run, its floor, and
/// the time of every kernel.
///
/// The floor is every input read once and every output written once at the bandwidth of a large
/// copy (on a GPU), or the useful operations at the measured peak of multiply-adds (on the CPU; that
/// of bf16 products with --precision bf16).
#[derive(clap::Args)]
pub struct Args {
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Type of activations (on the CPU: bf16 is the type of products) [default: f32 on the CPU,
    /// the device's best on CUDA]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    #[command(flatten)]
    network: NetworkFlags,
    /// Side of the LQ patch in pixels
    #[arg(long, default_value_t = 128, value_name = "PIXELS", value_parser = count(MAX_SIDE))]
    lq_size: usize,
    /// Patches in a batch
    #[arg(long, alias = "batch", default_value_t = 16, value_name = "N", value_parser = count(MAX_BATCH))]
    batch_size: usize,
    /// Iterations of the run whose time is said
    #[arg(long, default_value_t = 40_000, value_name = "N")]
    iterations: u64,
    /// A loss and its weight, may be repeated
    #[arg(long = "loss", default_values = ["l1:1.0"], value_name = "KIND:WEIGHT", value_parser = loss_term)]
    losses: Vec<LossTerm>,
    /// What is kept between forward and backward
    #[arg(long, value_enum, default_value = "block")]
    recompute: Recompute,
    /// Steps of a round; the median of five rounds is reported
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = count(1_000_000))]
    steps: usize,
    /// Threads that compute, on the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = count(super::flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
    /// Do not time the kernels (on the CPU: the operations) by themselves
    #[arg(long)]
    step_only: bool,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Most copies of a step's launches that are timed together, to tell the kernels apart.
const MOST_REPEATS: usize = 50;
/// Rounds of which the median is taken.
const ROUNDS: usize = 5;
const SCALARS: Scalars = Scalars {
    lr: 1e-4,
    step: 1,
    clip: 1.0,
    ema_decay: 0.9,
    micro_scale: 1.0,
    loss_scale: 1.0,
    accumulate: false,
};

/// One kernel (or, on the CPU, one operation) by itself.
#[derive(Serialize)]
struct Part {
    /// None for the sums of several operations.
    operation: Option<usize>,
    label: &'static str,
    kernel: &'static str,
    /// What it adds to the step.
    seconds: f64,
    /// By itself, many times in a row; on a GPU. The difference is what running beside others gives.
    alone_seconds: Option<f64>,
    /// Of the operation's floor; the kernels of an operation share it, and the first bears it.
    floor_bytes: u64,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    device: String,
    precision: Precision,
    network: String,
    scale: usize,
    settings: BTreeMap<&'static str, Setting>,
    lq_size: usize,
    batch_size: usize,
    recompute: Recompute,
    planned_bytes: u64,
    allocated_bytes: u64,
    /// With the batch in place.
    step_seconds: f64,
    /// The fastest and the slowest round of these steps.
    step_spread_seconds: [f64; 2],
    /// With every batch brought from the host, as in training.
    fed_step_seconds: f64,
    pairs_per_second: f64,
    iterations: u64,
    /// Of a run of so many iterations, without its validations.
    run_seconds: f64,
    floor_bytes: u64,
    multiply_adds: u64,
    /// Bytes a second of a large copy; on a GPU.
    copy_bandwidth: Option<f64>,
    /// Bytes of that copy, and the peak by the memory's clock and bus; on a GPU.
    copy_bytes: Option<u64>,
    copy_peak: Option<f64>,
    /// Size of the GPU's cache, bytes.
    l2_bytes: Option<u64>,
    /// The kernels as the driver has compiled them; on a GPU.
    loaded: Option<LoadedKernels>,
    /// Operations a second, those of bf16 products with `--precision bf16`; on the CPU.
    fma_peak: Option<f64>,
    floor_seconds: f64,
    times_floor: f64,
    /// The step minus the sum of its kernels: what no kernel explains; on a GPU.
    unexplained_seconds: Option<f64>,
    kernels: Vec<Part>,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let report = measure(args)?;
    report.loaded.iter().for_each(LoadedKernels::warn);
    if args.json {
        return print_json(&report);
    }
    print(format_args!(
        "{}, {} x{}, batch {} of LQ {}",
        report.device, report.network, report.scale, report.batch_size, report.lq_size
    ))?;
    print(format_args!(
        "  arena {} allocated, {} planned",
        bytes_text(report.allocated_bytes),
        bytes_text(report.planned_bytes)
    ))?;
    let against = match (report.copy_bandwidth, report.fma_peak) {
        (Some(b), _) => format!("{} at {:.0} GB/s", bytes_text(report.floor_bytes), b / 1e9),
        (_, Some(p)) => format!(
            "{:.1} GFLOP at {:.0} GFLOP/s",
            2e-9 * report.multiply_adds as f64,
            p / 1e9
        ),
        _ => String::new(),
    };
    print(format_args!(
        "  step {:.3} ms ({:.3} with the batch brought from the host), {:.0} pairs/s; floor {:.3} ms ({against}), {:.2}x{}",
        1e3 * report.step_seconds,
        1e3 * report.fed_step_seconds,
        report.pairs_per_second,
        1e3 * report.floor_seconds,
        report.times_floor,
        // only on the CPU, whose floor counts operations
        if report.times_floor < 1.0 {
            " (the floor is that of direct convolution; Winograd's needs fewer operations)"
        } else {
            ""
        }
    ))?;
    print(format_args!(
        "  {}, validations not counted",
        run_text(report.iterations, report.fed_step_seconds)
    ))?;
    print_gpu(&report)?;
    for part in &report.kernels {
        let rate = if part.floor_bytes > 0 && part.seconds > 0.0 {
            format!("{:9.1} GB/s", part.floor_bytes as f64 / part.seconds / 1e9)
        } else {
            String::new()
        };
        let operation = part.operation.map_or_else(String::new, |at| at.to_string());
        let alone = part
            .alone_seconds
            .map_or_else(String::new, |s| format!(" ({:.1} alone)", 1e6 * s));
        print(format_args!(
            "  {operation:>3} {:36} {:28} {:9.1} us{alone} {rate}",
            part.label,
            part.kernel,
            1e6 * part.seconds
        ))?;
    }
    Ok(())
}

/// What is only known of a GPU: doubts about the figures, and the loaded kernels.
fn print_gpu(report: &Report) -> Result<()> {
    if let Some(cache) = report.l2_bytes.filter(|&l2| report.allocated_bytes <= l2) {
        print(format_args!(
            "  the arena fits the GPU's cache of {}, so a step can be faster than the floor",
            bytes_text(cache)
        ))?;
    }
    if let Some(loaded) = &report.loaded {
        print(format_args!("  {}", loaded.text()))?;
    }
    if let Some(seconds) = report.unexplained_seconds {
        print(format_args!(
            "  the step minus the sum of its kernels: {:.1} us",
            1e6 * seconds
        ))?;
    }
    Ok(())
}

/// The middle one of the values, or the upper of the middle two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns a function that runs steps on an invented batch, and returns the seconds of one. Its
/// arguments are the number of steps, and whether each brings its batch from the host first, as in
/// training.
pub(super) fn step_timer(
    backend: &mut dyn Backend,
) -> Result<impl FnMut(usize, bool) -> Result<f64>> {
    let Some(layout) = backend.plan().batch else {
        anyhow::bail!("the plan takes no batch")
    };
    let mut block = backend.allocate(layout.bytes())?;
    block
        .iter_mut()
        .enumerate()
        .for_each(|(i, b)| *b = paragon::support::rng::mix(i as u64) as u8);
    block[layout.augment_offset()..]
        .iter_mut()
        .for_each(|code| *code %= 8);
    Ok(move |count: usize, fed: bool| -> Result<f64> {
        let (lq, rest) = block.split_at(layout.lq_bytes());
        let (hr, augment) = rest.split_at(layout.hr_bytes());
        let view = BatchView { lq, hr, augment };
        let started = Instant::now();
        let mut copies = Vec::new();
        for _ in 0..count {
            if fed {
                copies.extend(backend.stage(view)?);
            }
            backend.micro_step(&SCALARS)?;
            backend.update(&SCALARS)?;
        }
        backend.metrics()?;
        Ok(started.elapsed().as_secs_f64() / count as f64)
    })
}

/// Seconds of steps.
struct StepSeconds {
    /// Median with the batch in place.
    placed: f64,
    /// The fastest and the slowest round of these.
    spread: [f64; 2],
    /// Median with the batch brought from the host first, as in training.
    fed: f64,
}

/// Times rounds of steps, with the batch in place and brought from the host in turns.
fn time_steps(backend: &mut dyn Backend, steps: usize) -> Result<StepSeconds> {
    let mut step = step_timer(backend)?;
    // both places of a batch are filled
    step(2, true)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, fed) in times.iter_mut().zip([false, true]) {
            times.push(step(steps, fed)?);
        }
    }
    let [placed, fed] = times;
    let spread = [f64::min as fn(f64, f64) -> f64, f64::max];
    Ok(StepSeconds {
        spread: spread.map(|pick| placed.iter().copied().reduce(pick).unwrap_or(f64::NAN)),
        placed: median(placed),
        fed: median(fed),
    })
}

fn measure(args: &Args) -> Result<Report> {
    let net = args.network.network()?;
    let losses = args.losses.iter().map(|l| (l.kind, l.weight)).collect();
    let spec = StepSpec {
        recompute: args.recompute,
        ..StepSpec::new(args.batch_size, (args.lq_size, args.lq_size), losses)
    };
    let cpu = CpuOptions::new(args.threads.unwrap_or(0));
    let (opened, why) = OpenedDevice::new(args.device, args.precision, cpu, false)?;
    let cpu = opened.cpu();
    why.iter().for_each(tell);
    let plan = training_plan(&net, &spec, opened.place.sizing())?;
    let (planned_bytes, precision) = (plan.arena_bytes, plan.precision);
    let floors: Vec<OpFloor> = (0..plan.ops.len()).map(|at| plan.floor_of(at)).collect();
    let labels: Vec<&'static str> = plan.ops.iter().map(|op| op.label()).collect();
    let floor = plan.floor_of_step();
    let start = |backend: &mut dyn Backend| -> Result<()> {
        let Some(port) = backend.plan().ports.parameters else {
            return Ok(());
        };
        write_floats(backend, port, &net.params().start_values(1))
    };
    let part = |operation: Option<usize>, kernel: &'static str, seconds: f64, first: bool| Part {
        operation,
        label: operation.map_or("sums of several", |at| labels[at]),
        kernel,
        seconds,
        alone_seconds: None,
        floor_bytes: operation.filter(|_| first).map_or(0, |at| floors[at].bytes),
    };
    let Measured {
        device,
        allocated_bytes,
        seconds,
        copy,
        peak,
        loaded,
        kernels,
    } = match opened.device() {
        Some(device) => on_cuda(device, plan, args, &start, &part)?,
        None => {
            let mut backend = CpuBackend::new(plan, cpu)?;
            start(&mut backend)?;
            let seconds = time_steps(&mut backend, args.steps)?;
            let mut times = Vec::new();
            if !args.step_only {
                backend.profile(&SCALARS, &mut |_, s| times.push(s));
            }
            let kernels = times
                .into_iter()
                .enumerate()
                .map(|(at, s)| part(Some(at), "", s, true))
                .collect();
            Measured {
                device: backend.description(),
                allocated_bytes: backend.allocated(),
                seconds,
                copy: None,
                peak: Some(bf16_peak(cpu).unwrap_or_else(|| fma_peak(cpu))),
                loaded: None,
                kernels,
            }
        }
    };
    let copy_bandwidth = copy.map(|c| c.bytes_per_second);
    let (step_seconds, fed_step_seconds) = (seconds.placed, seconds.fed);
    let explained = (copy.is_some() && !kernels.is_empty())
        .then(|| kernels.iter().map(|k| k.seconds).sum::<f64>());
    let floor_seconds = match (copy_bandwidth, peak) {
        (Some(bandwidth), _) => floor.bytes as f64 / bandwidth,
        (_, Some(peak)) => 2.0 * floor.multiply_adds as f64 / peak,
        _ => f64::NAN,
    };
    Ok(Report {
        device,
        precision,
        settings: settings_of(&net),
        scale: net.scale,
        network: net.arch,
        lq_size: args.lq_size,
        batch_size: args.batch_size,
        recompute: args.recompute,
        planned_bytes,
        allocated_bytes,
        step_seconds,
        step_spread_seconds: seconds.spread,
        fed_step_seconds,
        pairs_per_second: args.batch_size as f64 / step_seconds,
        iterations: args.iterations,
        run_seconds: fed_step_seconds * args.iterations as f64,
        floor_bytes: floor.bytes,
        multiply_adds: floor.multiply_adds,
        copy_bandwidth,
        copy_bytes: copy.map(|c| c.bytes),
        copy_peak: copy.and_then(|c| c.peak_bytes_per_second),
        l2_bytes: copy.and_then(|c| c.l2_bytes),
        loaded,
        fma_peak: peak,
        floor_seconds,
        times_floor: step_seconds / floor_seconds,
        unexplained_seconds: explained.map(|sum| step_seconds - sum),
        kernels,
    })
}

/// What is measured on either device.
struct Measured {
    device: String,
    allocated_bytes: u64,
    seconds: StepSeconds,
    copy: Option<CopySpeed>,
    peak: Option<f64>,
    loaded: Option<LoadedKernels>,
    kernels: Vec<Part>,
}

fn on_cuda(
    device: &std::sync::Arc<Device>,
    plan: Plan,
    args: &Args,
    start: &dyn Fn(&mut dyn Backend) -> Result<()>,
    part: &dyn Fn(Option<usize>, &'static str, f64, bool) -> Part,
) -> Result<Measured> {
    // before the arena, which may leave no room for it
    let copy = device.copy_speed()?;
    if let Some(share) = copy.suspicious_share() {
        tell(format_args!(
            "warning: a copy reaches {:.0} % of the memory's peak; another program uses the GPU, or it is throttled: the times below are not its best",
            100.0 * share
        ));
    }
    let precision = plan.precision;
    let mut backend = CudaBackend::new(device, plan)?;
    start(&mut backend)?;
    let seconds = time_steps(&mut backend, args.steps)?;
    let mut last = None;
    let times = if args.step_only {
        Vec::new()
    } else {
        backend.profile(&SCALARS, args.steps.min(MOST_REPEATS))?
    };
    let kernels = times.into_iter().map(|time| {
        let first = std::mem::replace(&mut last, time.operation) != time.operation;
        Part {
            alone_seconds: Some(time.alone),
            ..part(time.operation, time.kernel, time.added, first)
        }
    });
    let kernels = kernels.collect();
    let resources = backend.resources()?;
    Ok(Measured {
        device: backend.description(),
        allocated_bytes: backend.allocated(),
        seconds,
        copy: Some(copy),
        peak: None,
        loaded: Some(LoadedKernels::new(
            device,
            precision,
            backend.carveout(),
            resources,
        )),
        kernels,
    })
}
