//! `paragon eval`: a network on a folder of pictures beside bicubic, as a table or JSON.

use super::ModelArgs;
use super::flags::{print, tell};
use anyhow::Result;
use paragon::dataset::scan::ScanOptions;
use paragon::eval::{ImageResult, Scores, evaluate, find, mean};
use paragon::progress::Progress;
use paragon::upscale::Upscale;
use std::path::PathBuf;

/// Measure a network: PSNR and SSIM on RGB and Y, per picture and mean, beside bicubic.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the pictures: HR alone (LQ is made by antialiased bicubic), or with HR and LQ below it
    dataset: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// The HR folder, where it is not found by its name
    #[arg(long, value_name = "DIR")]
    hr: Option<PathBuf>,
    /// The LQ folder, where it is not found by its name
    #[arg(long, value_name = "DIR")]
    lq: Option<PathBuf>,
    /// Pixels cut off each side before comparing [default: the scale]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    crop_border: Option<u32>,
    /// Also write the network's pictures into this folder
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let mut upscaler = args.model.upscaler()?;
    let scale = upscaler.scale();
    let options = ScanOptions { scale: scale as u32, hr: args.hr.clone(), lq: args.lq.clone(), out: args.save.clone() };
    let found = find(&args.dataset, &options)?;
    for left in found.left_out.iter().filter(|l| l.may_surprise()) {
        tell(format_args!("note: {left}"));
    }
    let sources = found.sources;
    let crop = args.crop_border.unwrap_or(scale as u32);
    if let Some(folder) = &args.save {
        paragon::files::create_folder(folder)?;
    }
    let progress = Progress::new("eval", sources.len() as u64, "pictures");
    let results = evaluate(&mut upscaler, &sources, crop, &mut |result, picture, _, _| {
        if let Some(folder) = &args.save {
            super::upscale::save(picture, &folder.join(format!("{}.png", result.name.replace('/', "_"))))?;
        }
        progress.advance(1);
        Ok(())
    });
    progress.finish();
    let results = results?;
    let network = mean(results.iter().map(|r| r.network));
    let bicubic = mean(results.iter().map(|r| r.bicubic));
    if args.json {
        let json = serde_json::json!({
            "model": args.model.model.to_string_lossy(), "dataset": args.dataset.to_string_lossy(), "scale": scale, "crop_border": crop,
            "images": results, "mean": { "network": network, "bicubic": bicubic },
        });
        print(serde_json::to_string_pretty(&json)?)
    } else {
        print_table(&results, &network, &bicubic)
    }
}

/// The table: PSNR in dB, SSIM, network and bicubic side by side.
pub fn print_table(results: &[ImageResult], network: &Scores, bicubic: &Scores) -> Result<()> {
    let width = results.iter().map(|r| r.name.len()).max().unwrap_or(0).max(7);
    print(format_args!("{:width$}   {:^31}   {:^31}", "", "network", "bicubic"))?;
    print(format_args!("{:width$}   PSNR-Y  SSIM-Y    PSNR    SSIM   PSNR-Y  SSIM-Y    PSNR    SSIM", "picture"))?;
    let row = |s: &Scores| format!("{:6.2}  {:.4}  {:6.2}  {:.4}", s.psnr_y, s.ssim_y, s.psnr, s.ssim);
    for r in results {
        print(format_args!("{:width$}   {}   {}", r.name, row(&r.network), row(&r.bicubic)))?;
    }
    print(format_args!("{:width$}   {}   {}", "mean", row(network), row(bicubic)))?;
    print(format_args!("{:width$}   {:+6.2} dB PSNR-Y against bicubic", "", network.psnr_y - bicubic.psnr_y))
}
