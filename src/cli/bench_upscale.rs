//! `paragon bench upscale`: measures the time of an image on this machine's processor or GPU. Depends
//! on `upscale` alone.

use super::bench_step::median;
use super::device::{DeviceArgs, fit_json, fit_text};
use super::flags::{MAX_SIDE, count, print, print_json};
use super::recipe::{NetworkFlags, settings_of};
use anyhow::Result;
use image::RgbImage;
use paragon::backend::DRIVER_HOST_ESTIMATE;
use paragon::backend::cpu::{CpuOptions, fma_peak};
use paragon::inference::upscale::{DeviceFit, ImageKind, Upscale, Upscaler};
use paragon::model::{InferenceSpec, Network, Setting, inference_plan};
use paragon::support::budget::{Budget, PROGRAM_BYTES};
use paragon::support::text::bytes_text;
use paragon::sys;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Measure the seconds to upscale an image, from u8 to u8, with a network at its start values.
///
/// The images are in memory, and no file is read or written. On a GPU one image follows the other,
/// copies from and to host memory included.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    device: DeviceArgs,
    /// Side of the LQ image in pixels
    #[arg(long, default_value_t = 512, value_name = "PIXELS", value_parser = count(MAX_SIDE))]
    size: usize,
    /// Largest side of a tile in LQ pixels [default: as `paragon upscale`]
    #[arg(
        long,
        default_value_t = 0,
        hide_default_value = true,
        value_name = "PIXELS"
    )]
    tile: usize,
    /// Images; the median is reported
    #[arg(long, default_value_t = 9, value_name = "N", value_parser = count(1_000_000))]
    pictures: usize,
    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N", value_parser = count(super::flags::MAX_COMPUTE_THREADS))]
    threads: Option<usize>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    /// The GPU and its type of activations; nothing where the CPU computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<serde_json::Value>,
    instructions: String,
    threads: usize,
    network: String,
    scale: usize,
    settings: BTreeMap<&'static str, Setting>,
    size: usize,
    /// Median of the images.
    seconds: f64,
    pictures_per_second: f64,
    /// Millions of pixels of results a second.
    megapixels_per_second: f64,
    lq_pixels_per_second: f64,
    multiply_adds: u64,
    /// Operations a second of the CPU, where it computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    fma_peak: Option<f64>,
    /// Useful operations over the time at that peak; overlaps of tiles are not useful.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_peak: Option<f64>,
    /// What was computed before the start: arena and buffers.
    computed_bytes: u64,
    /// The most anonymous memory of the process seen.
    anonymous_bytes: Option<u64>,
}

/// What is upscaled, and by what.
struct Bench {
    upscaler: Upscaler,
    options: CpuOptions,
    /// The tiles on a GPU.
    fit: Option<DeviceFit>,
    picture: RgbImage,
    multiply_adds: u64,
    /// What was computed before the start: arena and buffers in host memory.
    computed_bytes: u64,
}

/// What was measured of the images.
struct Times {
    seconds: f64,
    fma_peak: Option<f64>,
    anonymous: Option<u64>,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let net = args.network.network()?;
    let mut bench = prepare(args, &net)?;
    let times = measure(args, &mut bench)?;
    let Times {
        seconds, fma_peak, ..
    } = times;
    let device = bench.upscaler.device().zip(bench.fit);
    let large = (args.size * args.size * net.scale * net.scale) as f64;
    let report = Report {
        device: device.map(|(device, fit)| fit_json(device, fit, 1)),
        instructions: bench.options.isa().to_string(),
        threads: bench.options.threads(),
        settings: settings_of(&net),
        scale: net.scale,
        network: net.arch,
        size: args.size,
        seconds,
        pictures_per_second: 1.0 / seconds,
        megapixels_per_second: 1e-6 * large / seconds,
        lq_pixels_per_second: (args.size * args.size) as f64 / seconds,
        multiply_adds: bench.multiply_adds,
        fma_peak,
        share_of_peak: fma_peak.map(|peak| 2.0 * bench.multiply_adds as f64 / seconds / peak),
        computed_bytes: bench.computed_bytes,
        anonymous_bytes: times.anonymous,
    };
    if args.json {
        return print_json(&report);
    }
    if let Some((device, fit)) = device {
        print(fit_text(device, fit, 1))?;
    }
    print_report(&report)
}

/// Refuses what the memory does not hold, and draws the image.
fn prepare(args: &Args, net: &Network) -> Result<Bench> {
    let options = CpuOptions::new(args.threads.unwrap_or(0));
    let place = args.device.open(options)?;
    let size = (args.size as u32, args.size as u32);
    let params = net.params().start_values(1);
    let mut upscaler = Upscaler::new(net.clone(), params, place.tiles(), args.tile)?;
    let image = [ImageKind { size, deep: false }];
    let fitted = upscaler
        .check_device()
        .and_then(|()| upscaler.fit_device(&image, args.tile > 0));
    let fit = match fitted {
        Ok(fit) => fit,
        Err(error) => {
            upscaler.use_cpu(place.cpu_instead(error)?, args.tile)?;
            None
        }
    };
    let driver = upscaler.device().map_or(0, |_| DRIVER_HOST_ESTIMATE);
    let computed_bytes = upscaler.bytes_in_memory(size)?;
    let pictures = 3 * (args.size * args.size * (1 + net.scale * net.scale)) as u64;
    Budget::new(None).check(
        PROGRAM_BYTES + driver + computed_bytes + pictures,
        "give a smaller --size",
    )?;
    let whole = InferenceSpec {
        batch: 1,
        lq: (args.size, args.size),
        float_input: false,
    };
    Ok(Bench {
        multiply_adds: inference_plan(net, &whole, &options)?
            .floor_of_step()
            .multiply_adds,
        picture: RgbImage::from_fn(size.0, size.1, |x, y| {
            image::Rgb(std::array::from_fn(|c| {
                paragon::support::rng::key(&[u64::from(x), u64::from(y), c as u64]) as u8
            }))
        }),
        upscaler,
        options,
        fit,
        computed_bytes,
    })
}

fn measure(args: &Args, bench: &mut Bench) -> Result<Times> {
    let on_cpu = bench.upscaler.device().is_none();
    bench.upscaler.upscale(&bench.picture)?;
    let (mut times, mut peaks, mut anonymous) = (Vec::new(), Vec::new(), None);
    for _ in 0..args.pictures {
        if on_cpu {
            peaks.push(fma_peak(bench.options));
        }
        let started = Instant::now();
        let result = bench.upscaler.upscale(&bench.picture)?;
        times.push(started.elapsed().as_secs_f64());
        anonymous = anonymous.max(sys::anonymous_memory());
        drop(result);
    }
    Ok(Times {
        seconds: median(times),
        fma_peak: on_cpu.then(|| median(peaks)),
        anonymous,
    })
}

fn print_report(report: &Report) -> Result<()> {
    let cpu = match report.device {
        Some(_) => String::new(),
        None => format!("{}, {} threads, ", report.instructions, report.threads),
    };
    let side = report.size;
    print(format_args!(
        "{cpu}{} x{}, {side} x {side}",
        report.network, report.scale
    ))?;
    let share = match (report.share_of_peak, report.fma_peak) {
        (Some(share), Some(peak)) => {
            format!(", {:.0} % of {:.0} GFLOP/s", 100.0 * share, 1e-9 * peak)
        }
        _ => String::new(),
    };
    print(format_args!(
        "  {:.1} ms an image, {:.2} images/s, {:.1} million HR pixels/s, {:.1} million LQ pixels/s{share}",
        1e3 * report.seconds,
        report.pictures_per_second,
        report.megapixels_per_second,
        1e-6 * report.lq_pixels_per_second,
    ))?;
    let anonymous = report
        .anonymous_bytes
        .map_or_else(|| "unknown".to_string(), bytes_text);
    print(format_args!(
        "  arena and buffers {}; anonymous memory at most {anonymous}, images included",
        bytes_text(report.computed_bytes)
    ))
}
