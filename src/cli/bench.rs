//! `paragon bench`: measures the speed of this machine, before a training depends on it. Depends on
//! `loader` and `report`.

use super::data::DataArgs;
use super::flags::{
    MAX_BATCH, MAX_LOADER_SLOTS, MAX_LOADER_THREADS, MAX_SIDE, count, positive, print, print_json,
    tell,
};
use super::recipe::{KeyFlags, Loading};
use super::step_time::{StepOf, StepTime, grouped};
use anyhow::{Context, Result, ensure};
use paragon::config::Settings;
use paragon::degrade::Recipe;
use paragon::loader::bench::{BenchConfig, LoaderMeasurement, measure};
use paragon::loader::quality::{OrderQuality, quality};
use paragon::loader::{LoaderConfig, bound, usual_slots};
use paragon::model::{Network, Recompute};
use paragon::plan::LossKind;
use paragon::report::chart::{Series, line_chart};
use paragon::shard::reader::Io;
use paragon::support::text::{bytes_text, one_line};
use paragon::train::DeviceChoice;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Measure the speed of this machine.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Loader(Box<LoaderArgs>),
    Step(Box<super::bench_step::Args>),
    Upscale(Box<super::bench_upscale::Args>),
}

/// Measure the pairs per second that the loader delivers, its memory, and whether that is enough for
/// a training step on this machine.
///
/// The consumer takes batches and does nothing (or waits --step-ms, as a training step would), so
/// the figures are the loader's own. A few steps of --network are measured afterwards, to compare.
#[derive(clap::Args)]
struct LoaderArgs {
    #[command(flatten)]
    data: KeyFlags<Loading>,
    /// Pairs in a batch
    #[arg(long, alias = "batch", default_value_t = 16, value_name = "N", value_parser = count(MAX_BATCH))]
    batch_size: usize,
    /// Side of the LQ patch in pixels [default: what the set was made for]
    #[arg(long, value_name = "PIXELS", value_parser = count(MAX_SIDE))]
    lq_size: Option<usize>,
    /// Loader threads, one run for each number [default: 1, 2, 4 .. up to the cores]
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = count(MAX_LOADER_THREADS))]
    threads: Vec<usize>,
    /// Batches that exist at once [default: 3 more than threads]
    #[arg(long, value_name = "N", value_parser = count(MAX_LOADER_SLOTS))]
    slots: Option<usize>,
    /// Drop the shards from the kernel's page cache before each run
    #[arg(long)]
    cold: bool,
    /// Measure this number of epochs (0.5, 3) instead of a time
    #[arg(long, value_name = "N", value_parser = positive)]
    epochs: Option<f64>,
    /// Seconds to measure for, each run
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", value_parser = positive, conflicts_with = "epochs")]
    seconds: f64,
    /// Milliseconds that a training step would hold each batch; no step is measured then
    #[arg(long, value_name = "MS", value_parser = positive)]
    step_ms: Option<f64>,
    /// Network whose step is measured to compare with, or none [default: nano; none with --json]
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Device of that step: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Seed of the order
    #[arg(long, default_value_t = 1024)]
    seed: u64,
    /// Take the samples of process R of W, as R/W (0/4)
    #[arg(long, default_value = "0/1", value_name = "R/W", value_parser = rank)]
    rank: (u64, u64),
    /// Print a sum over the content of all samples. Equal sums mean equal samples, for any number
    /// of threads and, summed over all ranks, for any number of ranks
    #[arg(long)]
    content: bool,
    /// Most memory the loader may take (64M, 2G); more is refused before the start
    #[arg(long, value_parser = paragon::config::parse_size, value_name = "SIZE")]
    host_memory: Option<u64>,
    /// Draw pairs/s over the thread counts to this file (SVG)
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

fn rank(text: &str) -> Result<(u64, u64), String> {
    let parts = text
        .split_once('/')
        .and_then(|(r, w)| Some((r.trim().parse().ok()?, w.trim().parse().ok()?)));
    parts
        .filter(|(r, w)| r < w && *w <= 1 << 16)
        .ok_or_else(|| format!("`{text}` is not a rank; write it as 0/4, 1/4, 2/4, 3/4"))
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Loader(args) => bench_loader(args),
        What::Step(args) => super::bench_step::run(args),
        What::Upscale(args) => super::bench_upscale::run(args),
    }
}

fn bench_loader(args: &LoaderArgs) -> Result<()> {
    let started = Instant::now();
    let mut settings = Settings::default();
    args.data.apply(&mut settings);
    let data = DataArgs::new(&settings)?;
    let sources = data.open()?;
    let open_ms = started.elapsed().as_secs_f64() * 1e3;
    let (io, why) = data.io(&sources);
    let config = LoaderConfig {
        rank: args.rank.0,
        ranks: args.rank.1,
        window: data.window(&sources),
        io,
        on_corrupt: data.on_corrupt,
        degrade: data.degrade(&sources)?,
        ..LoaderConfig::new(
            args.batch_size,
            args.lq_size.unwrap_or(sources.crop() as usize),
            args.seed,
        )
    };
    let threads = if args.threads.is_empty() {
        usual_threads()
    } else {
        args.threads.clone()
    };
    let how = BenchConfig {
        epochs: args.epochs,
        seconds: args.seconds,
        cold: args.cold,
        step: Duration::from_secs_f64(args.step_ms.unwrap_or(0.0).min(1e6) / 1e3),
        content: args.content,
    };
    let on = |threads: usize| LoaderConfig {
        threads,
        slots: args.slots.unwrap_or(usual_slots(threads)),
        ..config.clone()
    };
    let largest = bound(&sources, &on(threads.iter().copied().max().unwrap_or(1)))?;
    if let Some(limit) = args.host_memory {
        ensure!(
            largest.total() <= limit,
            "the loader needs {} and --host-memory allows {}; nothing was started. Try fewer --slots, fewer --threads or a smaller --batch-size",
            bytes_text(largest.total()),
            bytes_text(limit)
        );
    }
    let order = quality(&sources, &config)?;
    let window = config.window.map_or(String::new(), |w| {
        format!(" in windows of {}", bytes_text(w))
    });
    tell(format_args!(
        "{}: {} pairs, {} of shards, opened and checked in {open_ms:.0} ms",
        sources.folders(),
        sources.len(),
        bytes_text(sources.bytes())
    ));
    tell(format_args!(
        "reading shards {} ({why})",
        if io == Io::Mmap {
            "from memory, mmap"
        } else {
            "by read calls, pread"
        }
    ));
    tell(format_args!("shuffle{window}: {order}"));
    if let Some(recipe) = &config.degrade {
        tell(format_args!(
            "making the LQ by the recipe {} ({:016x})",
            one_line(recipe.name()),
            recipe.hash()
        ));
    }
    tell(format_args!(
        "memory, known before the start: {} slots of {} + {} threads of {} + index {} = {}",
        largest.slots,
        bytes_text(largest.slot_bytes),
        largest.threads,
        bytes_text(largest.scratch_bytes + largest.degrade_bytes),
        bytes_text(largest.index_bytes),
        bytes_text(largest.total())
    ));
    let mut runs = Vec::new();
    for &threads in &threads {
        let run = measure(&sources, &on(threads), &how)?;
        if !args.json {
            if runs.is_empty() {
                print(HEADER)?;
            }
            print(row(&run, runs.first()))?;
        }
        runs.push(run);
    }
    let best = runs
        .iter()
        .max_by(|a, b| a.pairs_per_second.total_cmp(&b.pairs_per_second));
    let needs = args.needs(&config, sources.scale() as usize);
    if args.json {
        let report = serde_json::json!({
            "step": needs.as_ref().map(Needs::json),
            "records": sources.len(), "open_ms": open_ms, "bytes": sources.bytes(), "batch": config.batch, "lq_size": config.lq_size, "slots": largest.slots,
            "degrade": config.degrade.as_ref().map(|recipe| recipe_json(recipe)),
            "io": if io == Io::Mmap { "mmap" } else { "pread" }, "window": config.window, "order": json_order(&order), "bound": largest.total(), "runs": runs,
        });
        print_json(&report)?;
    } else if let Some(best) = best {
        print(verdict(best, needs.as_ref()))?;
    }
    if let Some(path) = &args.chart {
        let points = |f: &dyn Fn(&LoaderMeasurement) -> f64| {
            runs.iter().map(|r| (r.threads as f64, f(r))).collect()
        };
        let each = runs[0].pairs_per_second / runs[0].threads as f64;
        let series = [
            Series {
                name: "measured".into(),
                points: points(&|r| r.pairs_per_second),
            },
            Series {
                name: "in proportion to the first".into(),
                points: points(&|r| each * r.threads as f64),
            },
        ];
        line_chart("Loader", "threads", "pairs/s", &series, false, path)
            .context("cannot draw the chart")?;
    }
    Ok(())
}

fn recipe_json(recipe: &Recipe) -> serde_json::Value {
    serde_json::json!({ "name": recipe.name(), "hash": format!("{:016x}", recipe.hash()) })
}

fn json_order(order: &OrderQuality) -> serde_json::Value {
    serde_json::json!({ "distance": order.distance, "same_image": order.same_image })
}

fn usual_threads() -> Vec<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut out: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2))
        .take_while(|&n| n < cores)
        .collect();
    out.push(cores);
    out
}

const HEADER: &str = "threads    pairs/s  of first    MiB/s  first batch      p50      p99      max  consumer  producers  anonymous / computed";

fn row(run: &LoaderMeasurement, first: Option<&LoaderMeasurement>) -> String {
    let ratio = first.map_or(1.0, |f| run.pairs_per_second / f.pairs_per_second);
    let [p50, p99, most] = run.latency_ms;
    let (consumer, producers) = (100.0 * run.consumer_waited, 100.0 * run.producers_waited);
    let peak = run.peak_anonymous.map_or("?".to_string(), bytes_text);
    let mut text = format!(
        "{:7} {:10.0} {ratio:8.2}x {:8.0} {:9.1} ms {p50:5.2} ms {p99:5.2} ms {most:5.1} ms {consumer:8.1}% {producers:9.1}%  {peak} / {}",
        run.threads,
        run.pairs_per_second,
        run.megabytes_per_second * 1e6 / f64::from(1 << 20),
        run.first_batch_ms,
        bytes_text(run.bound)
    );
    if let Some(cached) = run.cached.filter(|&share| share < 0.99) {
        text += &format!("  ({:.0}% in memory at the start)", 100.0 * cached);
    }
    if let Some(cost) = run.degrade {
        text += &format!(
            "  (making the LQ: {:.2} ms a pair, {:.0}% of the threads' time)",
            cost.pair_ms,
            100.0 * cost.share
        );
    }
    if run.substituted > 0 {
        text += &format!("  ({} samples replaced)", run.substituted);
    }
    if let Some(content) = &run.content {
        text += &format!("  content {content}");
    }
    text
}

/// What a training step takes from the loader.
struct Needs {
    pairs_per_second: f64,
    /// `a step of nano here`.
    whose: String,
}

impl Needs {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "pairs_per_second": self.pairs_per_second, "what": self.whose })
    }
}

impl LoaderArgs {
    /// Measures a step, or takes the given time of one. `None` where none is to be measured or it
    /// cannot be, which is said.
    fn needs(&self, config: &LoaderConfig, scale: usize) -> Option<Needs> {
        if let Some(ms) = self.step_ms {
            return Some(Needs {
                pairs_per_second: config.batch as f64 / (ms / 1e3),
                whose: format!("a step of {ms} ms"),
            });
        }
        let name = match self.network.as_deref() {
            Some("none") => return None,
            None if self.json => return None,
            name => name.unwrap_or("nano"),
        };
        match self.measured(name, config, scale) {
            Ok(needs) => Some(needs),
            Err(error) => {
                tell(format_args!("a step of {name} was not measured: {error:#}"));
                None
            }
        }
    }

    fn measured(&self, name: &str, config: &LoaderConfig, scale: usize) -> Result<Needs> {
        let step = StepTime::measure(&StepOf {
            network: &Network::new(name, scale)?,
            lq_size: config.lq_size,
            batch_size: config.batch,
            losses: vec![(LossKind::L1, 1.0)],
            recompute: Recompute::Block,
            device: self.device,
            precision: None,
            threads: 0,
        })?;
        Ok(Needs {
            pairs_per_second: config.batch as f64 / step.seconds,
            whose: format!("a step of {name} x{scale} here ({})", step.device),
        })
    }
}

/// Pairs a second that a loader must be faster by than a step takes, so that it is enough.
const MARGIN: f64 = 1.1;

fn verdict(run: &LoaderMeasurement, needs: Option<&Needs>) -> String {
    let rate = grouped(run.pairs_per_second.round() as u64);
    let threads = match run.threads {
        1 => "1 thread".to_string(),
        n => format!("{n} threads"),
    };
    let Some(needs) = needs else {
        return format!("the loader alone delivers {rate} pairs/s on {threads}");
    };
    let times = run.pairs_per_second / needs.pairs_per_second;
    let enough = match times {
        t if t >= 10.0 => format!("{t:.0} times enough"),
        t if t >= MARGIN => format!("{t:.1} times enough"),
        t if t >= 1.0 => format!("just enough ({t:.2} times)"),
        t => format!(
            "too slow ({t:.2} of it): try more --threads, a faster disk, or shards made with --codec raw"
        ),
    };
    format!(
        "delivers {rate} pairs/s on {threads}; {} needs {}: {enough}",
        needs.whose,
        grouped(needs.pairs_per_second.round() as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rate: f64) -> LoaderMeasurement {
        LoaderMeasurement {
            threads: 2,
            pairs: 0,
            seconds: 1.0,
            pairs_per_second: rate,
            megabytes_per_second: 0.0,
            first_batch_ms: 0.0,
            latency_ms: [0.0; 3],
            consumer_waited: 1.0,
            producers_waited: 0.0,
            peak_anonymous: None,
            bound: 0,
            degrade: None,
            substituted: 0,
            cached: None,
            content: None,
        }
    }

    #[test]
    fn the_verdict_compares_with_a_step() {
        let needs = |pairs_per_second| Needs {
            pairs_per_second,
            whose: "a step".into(),
        };
        assert_eq!(
            verdict(&run(6200.0), Some(&needs(170.0))),
            "delivers 6,200 pairs/s on 2 threads; a step needs 170: 36 times enough"
        );
        assert!(verdict(&run(180.0), Some(&needs(170.0))).contains("just enough (1.06 times)"));
        assert!(verdict(&run(85.0), Some(&needs(170.0))).contains("too slow (0.50 of it)"));
        assert_eq!(
            verdict(&run(1234.0), None),
            "the loader alone delivers 1,234 pairs/s on 2 threads"
        );
    }
}
