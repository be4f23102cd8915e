//! `paragon bench upscale`: measures the time of an image on this machine's processor. Depends on
//! `upscale` alone.

use super::bench_step::median;
use super::flags::{MAX_SIDE, count, print, print_json};
use super::recipe::{NetworkFlags, settings_of};
use anyhow::Result;
use paragon::backend::cpu::{CpuOptions, fma_peak};
use paragon::inference::upscale::{Upscale, Upscaler};
use paragon::model::{InferenceSpec, Setting, inference_plan};
use paragon::support::budget::{Budget, PROGRAM_BYTES};
use paragon::support::text::bytes_text;
use paragon::sys;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Measure the seconds to upscale an image on the CPU, from u8 to u8, with a network at its start
/// values.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkFlags,
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
    instructions: String,
    threads: usize,
    network: String,
    scale: usize,
    settings: BTreeMap<&'static str, Setting>,
    size: usize,
    seconds: f64,
    lq_pixels_per_second: f64,
    multiply_adds: u64,
    /// Operations a second.
    fma_peak: f64,
    /// Useful operations over the time at that peak; overlaps of tiles are not useful.
    share_of_peak: f64,
    /// What was computed before the start: arena and buffers.
    computed_bytes: u64,
    /// The most anonymous memory of the process seen.
    anonymous_bytes: Option<u64>,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let net = args.network.network()?;
    let options = CpuOptions::new(args.threads.unwrap_or(0));
    let side = args.size as u32;
    let mut upscaler = Upscaler::new(
        net.clone(),
        net.params().start_values(1),
        options,
        args.tile,
    )?;
    let pictures = 3 * (args.size * args.size * (1 + net.scale * net.scale)) as u64;
    Budget::new(None).check(
        PROGRAM_BYTES + upscaler.bytes_in_memory((side, side))? + pictures,
        "give a smaller --size",
    )?;
    let picture = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb(std::array::from_fn(|c| {
            paragon::support::rng::key(&[u64::from(x), u64::from(y), c as u64]) as u8
        }))
    });
    let whole = inference_plan(
        &net,
        &InferenceSpec {
            batch: 1,
            lq: (args.size, args.size),
            float_input: false,
        },
        &options,
    )?;
    let multiply_adds = whole.floor_of_step().multiply_adds;
    let computed_bytes = upscaler.bytes_in_memory((side, side))?;
    upscaler.upscale(&picture)?;
    let (mut times, mut peaks, mut anonymous) = (Vec::new(), Vec::new(), None);
    for _ in 0..args.pictures {
        peaks.push(fma_peak(options));
        let started = Instant::now();
        let result = upscaler.upscale(&picture)?;
        times.push(started.elapsed().as_secs_f64());
        anonymous = anonymous.max(sys::anonymous_memory());
        drop(result);
    }
    let (seconds, fma_peak) = (median(times), median(peaks));
    let report = Report {
        instructions: options.isa().to_string(),
        threads: options.threads(),
        settings: settings_of(&net),
        scale: net.scale,
        network: net.arch,
        size: args.size,
        seconds,
        lq_pixels_per_second: (args.size * args.size) as f64 / seconds,
        multiply_adds,
        fma_peak,
        share_of_peak: 2.0 * multiply_adds as f64 / seconds / fma_peak,
        computed_bytes,
        anonymous_bytes: anonymous,
    };
    if args.json {
        return print_json(&report);
    }
    print(format_args!(
        "{}, {} threads, {} x{}, {side} x {side}",
        report.instructions, report.threads, report.network, report.scale
    ))?;
    print(format_args!(
        "  {:.1} ms an image, {:.1} million LQ pixels/s, {:.0} % of {:.0} GFLOP/s",
        1e3 * seconds,
        1e-6 * report.lq_pixels_per_second,
        100.0 * report.share_of_peak,
        1e-9 * fma_peak
    ))?;
    let anonymous = report
        .anonymous_bytes
        .map_or_else(|| "unknown".to_string(), bytes_text);
    print(format_args!(
        "  arena and buffers {}; anonymous memory at most {anonymous}, images included",
        bytes_text(computed_bytes)
    ))
}
