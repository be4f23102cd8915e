//! `paragon eval`: measures a network on a folder of images next to bicubic, as a table or JSON.
//! Depends on `inference::eval`. The memory is known before the first image. A mean that leaves out
//! images is reported as such, also by the exit code.

use super::ModelArgs;
use super::flags::{print, print_json, tell};
use super::upscale::file_of;
use anyhow::{Context, Result, ensure};
use image::RgbImage;
use paragon::dataset::encode::{Format, InMemory};
use paragon::dataset::scan::{RESTORATION_SCALE, ScanOptions, Source};
use paragon::inference::eval::{
    Evaluation, ImageResult, MOST_PSNR, Scores, evaluate, find, mean, pair_bytes,
};
use paragon::inference::upscale::{Upscale, Upscaler};
use paragon::support::budget::{Budget, PROGRAM_BYTES};
use paragon::support::failure::system_cause;
use paragon::support::files::{create_folder, write_output};
use paragon::support::progress::Progress;
use paragon::support::text::bytes_text;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Measure a network: PSNR and SSIM on RGB and Y, for each image and their mean, next to bicubic.
///
/// At scale 1 the network is compared with the LQ itself, which JSON calls bicubic too. A PSNR above
/// 100 dB counts as 100 in means. An image that cannot be measured (damaged, too small, of another
/// size than its partner) is reported and left out of the means, and the exit code is 1.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the images: HR alone (LQ is made by antialiased bicubic; not at scale 1), or with
    /// HR and LQ below it
    dataset: PathBuf,
    /// The network: a safetensors file, a PyTorch checkpoint (.pth, .pt, .ckpt), or the folder of a
    /// run, whose best network is taken
    #[arg(long, short, value_name = "FILE|RUN")]
    model: PathBuf,
    #[command(flatten)]
    apply: ModelArgs,
    /// The HR folder, if its name is not one that is recognised
    #[arg(long, value_name = "DIR")]
    hr: Option<PathBuf>,
    /// The LQ folder, if its name is not one that is recognised
    #[arg(long, value_name = "DIR")]
    lq: Option<PathBuf>,
    /// Pixels cut off each side before comparing [default: the scale]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    crop_border: Option<u32>,
    /// Also write the network's images into this folder, as PNG, in the folders that they have in
    /// the dataset
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let mut upscaler = args.apply.upscaler(&args.model)?;
    let scale = upscaler.scale();
    let options = ScanOptions {
        scale: scale as u32,
        hr: args.hr.clone(),
        lq: args.lq.clone(),
        out: args.save.clone(),
    };
    let found = find(&args.dataset, &options)?;
    for left in found.left_out.iter().filter(|l| l.may_surprise()) {
        tell(format_args!("note: {left}"));
    }
    let sources = found.sources;
    let crop = args.crop_border.unwrap_or(scale as u32);
    if let Some(folder) = &args.save {
        check_saving(folder, &sources)?;
    }
    let memory = check_memory(&upscaler, &sources, args.apply.budget())?;
    let progress = Progress::new("eval", sources.len() as u64, "images");
    let evaluation = evaluate(&mut upscaler, &sources, crop, &mut |result, image, _, _| {
        if let Some(folder) = &args.save {
            save(image, &folder.join(file_of(&result.name, Format::Png)))?;
        }
        progress.advance(1);
        Ok(())
    });
    progress.finish();
    let Evaluation { results, left_out } = evaluation?;
    results.iter().flat_map(|r| &r.notes).for_each(tell);
    left_out
        .iter()
        .for_each(|l| tell(format_args!("error: left out of the mean: {}", l.reason)));
    ensure!(
        !results.is_empty(),
        "no image of {} could be measured, {} were left out",
        args.dataset.display(),
        left_out.len()
    );
    let network = mean(results.iter().map(|r| r.network));
    let bicubic = mean(results.iter().map(|r| r.bicubic));
    if args.json {
        let json = serde_json::json!({
            "model": args.model.to_string_lossy(), "dataset": args.dataset.to_string_lossy(), "scale": scale, "crop_border": crop,
            "images": results, "mean": { "network": network, "bicubic": bicubic }, "most_psnr": MOST_PSNR, "left_out": left_out,
            "memory_planned": memory,
        });
        print_json(&json)?;
    } else {
        let baseline = if scale == RESTORATION_SCALE as usize {
            "LQ"
        } else {
            BICUBIC
        };
        print_table_against(baseline, &results, &network, &bicubic)?;
        print(format_args!("memory at most {}", bytes_text(memory)))?;
    }
    ensure!(
        left_out.is_empty(),
        "{} of {} images were left out of the mean, see above",
        left_out.len(),
        sources.len()
    );
    Ok(())
}

/// Checks the memory of the largest pair against the budget. An error in a header is reported
/// later, when its image is measured.
fn check_memory(upscaler: &Upscaler, sources: &[Source], budget: Budget) -> Result<u64> {
    let mut most = (PROGRAM_BYTES, None);
    for source in sources {
        match pair_bytes(upscaler, source) {
            Ok(bytes) if bytes > most.0 => most = (bytes, Some(source)),
            Ok(_) => {}
            Err(error) if system_cause(&error).is_some() => return Err(error),
            Err(_) => {}
        }
    }
    let text = || {
        most.1
            .map_or_else(String::new, |source| source.hr.display().to_string())
    };
    let mut ways = vec!["take the image out of the folder or cut it into parts"];
    if upscaler.takes_whole_images() {
        ways.push(ModelArgs::smaller_tiles(upscaler));
    }
    ways.push("allow more with --host-memory");
    budget
        .check(most.0, &ways.join(", or "))
        .with_context(text)?;
    Ok(most.0)
}

/// Creates the folder for the network's images. Refuses a folder in which they would replace images
/// that are measured.
fn check_saving(folder: &Path, sources: &[Source]) -> Result<()> {
    create_folder(folder)?;
    let inputs: HashSet<PathBuf> = sources
        .iter()
        .flat_map(|s| [Some(&s.hr), s.lq.as_ref()])
        .flatten()
        .filter_map(|p| p.canonicalize().ok())
        .collect();
    for source in sources {
        let path = folder.join(file_of(&source.name, Format::Png));
        ensure!(
            !path.canonicalize().is_ok_and(|path| inputs.contains(&path)),
            "--save would overwrite {}, which is measured; name another folder",
            path.display()
        );
    }
    Ok(())
}

fn save(image: &RgbImage, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    write_output(path, |out| Format::Png.write(out, &mut InMemory::new(image)))
        .context("while saving the network's image; free some room there, or name another folder with --save")
}

/// The table: PSNR in dB, SSIM, network and bicubic side by side.
pub fn print_table(results: &[ImageResult], network: &Scores, bicubic: &Scores) -> Result<()> {
    print_table_against(BICUBIC, results, network, bicubic)
}

/// Name of the baseline above scale 1.
const BICUBIC: &str = "bicubic";

/// [`print_table`] with the name of what the network is compared with.
fn print_table_against(
    baseline: &str,
    results: &[ImageResult],
    network: &Scores,
    bicubic: &Scores,
) -> Result<()> {
    let width = results
        .iter()
        .map(|r| r.name.len())
        .max()
        .unwrap_or(0)
        .max(7);
    print(format_args!(
        "{:width$}   {:^31}   {:^31}",
        "", "network", baseline
    ))?;
    print(format_args!(
        "{:width$}   PSNR-Y  SSIM-Y    PSNR    SSIM   PSNR-Y  SSIM-Y    PSNR    SSIM",
        "image"
    ))?;
    let decibels = |psnr: f64| {
        if psnr >= MOST_PSNR {
            format!(">={MOST_PSNR:.0}")
        } else {
            format!("{psnr:.2}")
        }
    };
    let row = |s: &Scores| {
        format!(
            "{:>6}  {:.4}  {:>6}  {:.4}",
            decibels(s.psnr_y),
            s.ssim_y,
            decibels(s.psnr),
            s.ssim
        )
    };
    for r in results {
        print(format_args!(
            "{:width$}   {}   {}",
            r.name,
            row(&r.network),
            row(&r.bicubic)
        ))?;
    }
    print(format_args!(
        "{:width$}   {}   {}",
        "mean",
        row(network),
        row(bicubic)
    ))?;
    print(format_args!(
        "{:width$}   {:+6.2} dB PSNR-Y against {baseline}",
        "",
        network.psnr_y - bicubic.psnr_y
    ))
}
