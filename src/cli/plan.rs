//! `paragon plan`: the memory of a run, computed from its flags alone. Neither data nor a GPU is
//! needed.

use super::flags::{MAX_BATCH, MAX_SIDE, count, positive, print, print_json, tell};
use super::layout::{columns, folded};
use super::plan_max::largest;
use super::recipe::{KeyFlags, Layers, Machine, Planning, Unhonoured, settings_of};
use super::step_time::RunTime;
use anyhow::{Result, bail, ensure};
use paragon::backend::CudaSizing;
use paragon::backend::cpu::CpuOptions;
use paragon::backend::cuda::{Choices, lower, nccl_is_off};
use paragon::config::{Settings, Value};
use paragon::loader::{LoaderBound, STACK_BYTES, degrade_bytes};
use paragon::model::Setting;
use paragon::plan::{Class, LayerLine, Plan, Precision};
use paragon::report::occupancy::{Occupancy, occupancy_chart};
use paragon::shard::codec::Decoder;
use paragon::shard::format::Geometry;
use paragon::support::text::bytes_text;
use paragon::sys;
use paragon::train::{
    DeviceChoice, DevicePlace, Fit, FitChoice, Fitted, ImageSizes, Remedy, RunBudget, RunMemory,
    TrainConfig, Travel, ValidationMemory,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Scale of a plan without `--scale`.
const USUAL_SCALE: u64 = 2;
/// For the estimate of the index: stored bytes of a pair per byte of its pixels, bytes of a shard,
/// and bytes of the index for each shard.
const STORED_SHARE: f64 = 0.4;
const SHARD_BYTES: f64 = 512e6;
const INDEX_BYTES_PER_SHARD: u64 = 400;

/// Show the memory that a run would need: every byte, the peak, and what would fit a budget.
///
/// Takes the flags of `train`; needs no data and no GPU. If the run does not fit --vram or
/// --host-memory, the exit code is 1, after a list of settings that would fit.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    layers_of: Layers,
    #[command(flatten)]
    flags: KeyFlags<Planning>,
    /// Side of the stored LQ patches, where crops are cut out of larger ones [default: the LQ
    /// patch]
    #[arg(long, value_name = "PIXELS", value_parser = count(MAX_SIDE), help_heading = "Recipe")]
    stored_lq_size: Option<usize>,
    /// Pairs in the shards, for an estimate of the index
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Machine")]
    records: u64,
    /// Megapixels of the largest HR image of a validation, which is taken as a square
    #[arg(long, value_name = "MP", value_parser = positive, help_heading = "Machine")]
    val_megapixels: Option<f64>,
    /// Ranks that share an iteration (see docs/clusters.md): shows what one of them holds; rank 0
    /// also holds what validation takes
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count(MAX_BATCH), help_heading = "Machine")]
    ranks: usize,
    /// List activations, gradients and losses layer by layer
    #[arg(long, help_heading = "Output")]
    layers: bool,
    /// The largest batch for each patch size and level that fits the budget
    #[arg(long, help_heading = "Output")]
    max: bool,
    /// Measure a few steps on this machine (about two seconds), and say how long the run would take
    #[arg(long, help_heading = "Output")]
    time: bool,
    /// Draw the arena over the operations of a step (SVG)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    chart: Option<PathBuf>,
    /// Print more: what is live at the peak, and every value of another trainer's option file that
    /// is not honoured
    #[arg(long, short, help_heading = "Output", conflicts_with = "quiet")]
    verbose: bool,
    /// Print only the summary, without the table of the memory
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
    /// Print JSON on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    network: &'a str,
    scale: usize,
    settings: BTreeMap<&'static str, Setting>,
    lq_size: usize,
    effective_batch: usize,
    /// Ranks that share an iteration; the memory is that of one of them.
    ranks: usize,
    device: &'a str,
    precision: Precision,
    /// The unit of the CPU that multiplies bf16 values, with `--precision bf16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    bf16_unit: Option<String>,
    budget: RunBudget,
    fits: bool,
    choice: FitChoice,
    why: Option<&'a str>,
    memory: &'a RunMemory,
    work: Work,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<RunTime>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<LayerLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remedies: Vec<Remedy>,
}

/// The least that an iteration must move and compute, and the number of kernels that it launches.
#[derive(Serialize)]
struct Work {
    /// Every input read once and every output written once, bytes.
    bytes: u64,
    /// Useful multiply-adds.
    multiply_adds: u64,
    /// Kernel launches, on a CUDA device.
    launches: Option<usize>,
    /// The same by kind of operation, in the order in which the kinds first occur.
    operations: Vec<WorkOfKind>,
}

/// What the operations of one kind move and compute in an iteration.
#[derive(Serialize)]
struct WorkOfKind {
    operation: &'static str,
    count: u64,
    /// As in [`Work`].
    bytes: u64,
    multiply_adds: u64,
    /// Bytes of workspaces, which the operations write and read besides.
    workspace: u64,
    /// Kernel launches, on a CUDA device; those that serve several operations are not counted.
    launches: u64,
}

impl Work {
    fn new(plan: &Plan, accum_iter: usize, place: &DevicePlace) -> Result<Work> {
        let per_iteration = |at: usize| {
            if plan.micro.contains(&at) {
                accum_iter as u64
            } else {
                1
            }
        };
        let mut operations: Vec<WorkOfKind> = Vec::new();
        let mut kinds = Vec::with_capacity(plan.ops.len());
        for (at, op) in plan.ops.iter().enumerate() {
            let label = op.label();
            let found = operations.iter().position(|kind| kind.operation == label);
            let kind = found.unwrap_or_else(|| {
                operations.push(WorkOfKind::none(label));
                operations.len() - 1
            });
            kinds.push(kind);
            let (floor, times) = (plan.floor_of(at), per_iteration(at));
            let of = &mut operations[kind];
            of.count += times;
            of.bytes += times * floor.bytes;
            of.multiply_adds += times * floor.multiply_adds;
            of.workspace += times * place.sizing().workspace(op);
        }
        let mut launches = None;
        if place.is_device() {
            let program = lower(plan, Choices::default())?;
            launches = Some(program.micro.len() * accum_iter + program.update.len());
            for op in program.micro.iter().chain(&program.update) {
                if let Some(at) = op.op {
                    operations[kinds[at]].launches += per_iteration(at);
                }
            }
        }
        Ok(Work {
            bytes: operations.iter().map(|of| of.bytes).sum(),
            multiply_adds: operations.iter().map(|of| of.multiply_adds).sum(),
            launches,
            operations,
        })
    }

    fn text(&self) -> String {
        let launches = self
            .launches
            .map_or_else(String::new, |n| format!(", in {n} kernel launches"));
        let gflop = 2e-9 * self.multiply_adds as f64;
        format!(
            "an iteration moves at least {} and computes {gflop:.2} GFLOP{launches}",
            bytes_text(self.bytes)
        )
    }
}

impl WorkOfKind {
    fn none(operation: &'static str) -> WorkOfKind {
        WorkOfKind {
            operation,
            count: 0,
            bytes: 0,
            multiply_adds: 0,
            workspace: 0,
            launches: 0,
        }
    }
}

impl Args {
    fn place(&self, machine: &Machine) -> Result<DevicePlace> {
        match (machine.device, machine.precision) {
            (DeviceChoice::Cuda(_), precision) => Ok(DevicePlace::Cuda {
                sizing: CudaSizing {
                    precision: precision.unwrap_or(Precision::Bf16),
                },
                in_use: None,
            }),
            (_, precision) => {
                let options = CpuOptions::new(machine.threads);
                let (options, reason) = options.with_precision(precision)?;
                reason.iter().for_each(tell);
                Ok(DevicePlace::Cpu(options))
            }
        }
    }

    /// The loader's memory without opening a set: exact for slots and scratch, an estimate for the
    /// index.
    fn loader(&self, threads: usize, config: &TrainConfig, slots: usize) -> Result<LoaderBound> {
        let stored = self
            .stored_lq_size
            .unwrap_or(config.lq_size)
            .max(config.lq_size);
        let geometry = Geometry::new(config.network.scale as u32, u32::try_from(stored)?)?;
        let area = config.network.scale * config.network.scale + 1;
        let pair =
            (config.lq_size * config.lq_size * 3 * area) as u64 + 1 + size_of::<u64>() as u64;
        let crops = if config.lq_size < stored {
            (stored * stored * 3 * area) as u64
        } else {
            0
        };
        let shards = (self.records as f64 * (stored * stored * 3 * area) as f64 * STORED_SHARE
            / SHARD_BYTES)
            .ceil() as u64;
        Ok(LoaderBound {
            slots,
            slot_bytes: pair * config.batch_size as u64,
            threads,
            scratch_bytes: Decoder::bytes(geometry) + crops + STACK_BYTES as u64,
            degrade_bytes: config.degrade_recipe()?.map_or(0, |recipe| {
                degrade_bytes(&recipe, geometry.scale, config.lq_size, geometry.hr())
            }),
            index_bytes: shards * INDEX_BYTES_PER_SHARD,
        })
    }

    fn validation(&self, config: &TrainConfig, place: &DevicePlace) -> Result<ValidationMemory> {
        let Some(megapixels) = self.val_megapixels else {
            return Ok(ValidationMemory::default());
        };
        let pixels = megapixels * 1e6;
        let side = (pixels.sqrt() / config.network.scale as f64).ceil() as u32;
        let sizes = ImageSizes {
            lq: vec![(side, side)],
            largest_hr: pixels as u64,
            degrade_bytes: 0,
        };
        ValidationMemory::new(config, place, &sizes)
    }
}

/// The machine of the settings. A limit of device memory asks for a GPU, where no device is named.
fn machine(settings: &Settings) -> Result<Machine> {
    let mut machine = Machine::new(settings)?;
    if machine.vram.is_some() && machine.device == DeviceChoice::Auto {
        machine.device = DeviceChoice::Cuda(0);
    }
    Ok(machine)
}

/// Prints the plan.
pub fn run(args: &Args) -> Result<()> {
    let settings = args
        .layers_of
        .settings(&args.flags, Unhonoured::new(args.verbose, args.quiet))?;
    let machine = &machine(&settings)?;
    let scale = settings.whole("scale").unwrap_or(USUAL_SCALE) as usize;
    let mut config = settings.train_config(scale, args.stored_lq_size.unwrap_or(usize::MAX))?;
    if *settings.value("data.accum_iter") == Value::Null {
        config.accum_iter = args.ranks;
    }
    config.check_ranks(args.ranks)?;
    config.check()?;
    let place = args.place(machine)?;
    let (loader_threads, slots) = machine.prefetch.at(&place);
    let loader = |config: &TrainConfig, slots: usize| args.loader(loader_threads, config, slots);
    let fit = Fit {
        config: &config,
        place,
        recompute: machine.recompute,
        slots,
        budget: RunBudget {
            host: machine.host_memory,
            device: machine.vram,
        },
        stated: RunBudget {
            host: machine.host_memory,
            device: machine.vram,
        },
        host_limit: None,
        may_split: machine.fit,
        earlier: None,
        loader: &loader,
        validation: args.validation(&config, &place)?,
        travel: Travel {
            ranks: args.ranks,
            by_nccl: args.ranks > 1 && place.is_device() && !nccl_is_off(),
        },
    };
    if machine.vram.is_some() && !place.is_device() {
        bail!(
            "--vram bounds the memory of a GPU; give --device cuda, or --host-memory for the CPU"
        );
    }
    if args.max {
        ensure!(
            !args.time,
            "--time measures one batch and patch, and --max looks for many; run `plan --max`, then \
             `plan --time` with the batch and patch that you choose"
        );
        return largest(args.json, &fit);
    }
    let (fitted, refused) = match fit.choose() {
        Ok(fitted) => (fitted, None),
        // print the plan as it was requested, then return the error
        Err(error) => (
            Fit {
                budget: RunBudget::default(),
                stated: RunBudget::default(),
                ..fit.clone()
            }
            .choose()?,
            Some(error),
        ),
    };
    let plan = &fitted.plan;
    if let Some(path) = &args.chart {
        occupancy_chart(&occupancy(&config, &fitted, plan), path)?;
    }
    let time = args.time && refused.is_none();
    let time = time.then(|| RunTime::measure(&config, fitted.choice, machine));
    let time = time.transpose()?;
    let device = if place.is_device() { "cuda" } else { "cpu" };
    let computes = match place.bf16_unit() {
        Some(unit) => format!("bf16 products on {unit}, activations {}", plan.precision),
        None => plan.precision.to_string(),
    };
    if args.json {
        let report = Report {
            network: &config.network.arch,
            scale: config.network.scale,
            settings: settings_of(&config.network),
            lq_size: config.lq_size,
            effective_batch: config.effective_batch(),
            ranks: args.ranks,
            device,
            precision: plan.precision,
            bf16_unit: place.bf16_unit().map(|unit| unit.to_string()),
            budget: fit.budget,
            fits: refused.is_none(),
            choice: fitted.choice,
            why: fitted.reason.as_deref(),
            memory: &fitted.memory,
            work: Work::new(plan, fitted.choice.accum_iter, &place)?,
            time,
            layers: if args.layers {
                plan.layers()
            } else {
                Vec::new()
            },
            remedies: if refused.is_some() {
                fit.ladder()?
            } else {
                Vec::new()
            },
        };
        print_json(&report)?;
    } else {
        let computes = format!("{device}, {computes}");
        show_summary(&fit, &fitted, &computes, time, refused.is_none())?;
        if !args.quiet {
            show_memory(args, &fitted, plan)?;
        }
    }
    if let Some(path) = args.chart.as_ref().filter(|_| !args.json) {
        tell(format_args!("drawn: {}", path.display()));
    }
    refused.map_or(Ok(()), Err)
}

/// Prints what a run would need in a few lines: how it computes, the least work, the time, and whether
/// it fits.
fn show_summary(
    fit: &Fit<'_>,
    fitted: &Fitted,
    computes: &str,
    time: Option<RunTime>,
    fits: bool,
) -> Result<()> {
    let net = &fit.config.network;
    let line = |text: String| print(folded(&text, 2, columns()));
    line(format!(
        "{} x{}, LQ {}, {computes}: {}",
        net.arch, net.scale, fit.config.lq_size, fitted.choice
    ))?;
    if let Some(why) = &fitted.reason {
        line(why.clone())?;
    }
    line(Work::new(&fitted.plan, fitted.choice.accum_iter, &fit.place)?.text())?;
    if let Some(time) = time {
        line(time.text())?;
    }
    let comparison = fit.budget.compare(&fitted.memory);
    if fits && !comparison.is_empty() {
        line(format!("fits: {comparison}"))?;
    }
    if let Some(limit) = sys::memory_limit().filter(|_| fit.budget.host.is_none()) {
        let verdict = if fitted.memory.host_bytes <= limit.bytes {
            "holds"
        } else {
            "does not hold"
        };
        line(format!(
            "{} {verdict} the host's part: {}",
            limit.limit,
            bytes_text(limit.bytes)
        ))?;
    }
    Ok(())
}

/// Prints the table of the memory and what needs most at the peak.
fn show_memory(args: &Args, fitted: &Fitted, plan: &Plan) -> Result<()> {
    print(format_args!("\n{}", fitted.memory))?;
    let step = &fitted.memory.step;
    print(format_args!(
        "\npeak: operation {} ({}), {} live",
        step.peak.operation,
        step.peak.label,
        bytes_text(step.peak.bytes)
    ))?;
    let live = if args.verbose {
        &step.peak.live[..]
    } else {
        print(format_args!(
            "  {} buffers are live there; -v lists them",
            step.peak.live.len()
        ))?;
        &[]
    };
    for buffer in live {
        print(format_args!(
            "  {:42}{:>12}  {}",
            buffer.name,
            bytes_text(buffer.bytes),
            buffer.class
        ))?;
    }
    print(format_args!(
        "no setting goes below {}: what stays between steps plus the operation that needs most",
        bytes_text(step.floor_bytes)
    ))?;
    if args.layers {
        print("\nlayer by layer (operations that use it)")?;
        for layer in plan.layers() {
            let ops = format!("{} to {}", layer.live.0, layer.live.1);
            print(format_args!(
                "  {:42}{:>12}  {ops:12} {}",
                layer.name,
                bytes_text(layer.bytes),
                layer.class
            ))?;
        }
    }
    Ok(())
}

fn occupancy<'a>(config: &TrainConfig, fitted: &Fitted, plan: &'a Plan) -> Occupancy<'a> {
    let series = |(number, class): (usize, Class)| {
        let bytes = plan.live_bytes(|b| b.class == class);
        bytes
            .iter()
            .any(|&b| b > 0)
            .then(|| (plan.class_label(class), number, bytes))
    };
    let (bytes, peak) = plan.peak();
    let choice = fitted.choice;
    Occupancy {
        title: format!(
            "{} x{}, LQ {}, {} x {}, {}, recomputation {}: {} at the peak",
            config.network.arch,
            config.network.scale,
            config.lq_size,
            choice.accum_iter,
            choice.batch_size,
            plan.precision,
            choice.recompute,
            bytes_text(bytes)
        ),
        classes: Class::ALL
            .into_iter()
            .enumerate()
            .filter_map(series)
            .collect(),
        arena_bytes: plan.arena_bytes,
        peak: (peak, plan.ops.get(peak).map_or("", |op| op.label())),
    }
}
