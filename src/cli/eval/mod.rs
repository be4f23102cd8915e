//! `paragon eval`: measures networks on a folder of images or a set of shards next to bicubic, as
//! tables or JSON. Depends on `inference::eval`. The memory is known before the first image. A mean
//! that leaves out images is reported as such, also by the exit code.

mod table;

pub use table::print_table;

use super::ModelArgs;
use super::data::tell_side;
use super::device::{InferencePlace, Workers, fit_json, fit_text};
use super::flags::{print, print_json, tell};
use super::layout::{columns, folded};
use super::upscale::file_of;
use anyhow::{Context, Result, ensure};
use image::RgbImage;
use paragon::backend::DRIVER_HOST_ESTIMATE;
use paragon::dataset::encode::{Format, InMemory};
use paragon::dataset::scan::{RESTORATION_SCALE, ScanOptions, Source};
use paragon::inference::compare::{Comparison, compare};
use paragon::inference::eval::{
    Evaluation, ImagePair, ImageResult, MOST_PSNR, NotMeasured, Scores, evaluate_set,
    evaluate_set_by, mean,
};
use paragon::inference::eval_set::EvalSet;
use paragon::inference::upscale::{DeviceFit, ImageKind, Upscale, Upscaler};
use paragon::support::budget::Budget;
use paragon::support::failure::system_cause;
use paragon::support::files::{create_folder, write_output};
use paragon::support::progress::Progress;
use paragon::support::text::bytes_text;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Measure networks: PSNR and SSIM on RGB and Y, for each image and their mean, next to bicubic.
///
/// Several networks (-m A -m B) are measured on the same images and compared with the first one
/// image by image. At scale 1 a network is compared with the LQ itself, which JSON calls bicubic too. A
/// PSNR above 100 dB counts as 100 in means. An image that cannot be measured (damaged, too small, of
/// another size than its partner, without a partner) is reported and left out of the means, and the
/// exit code is 1.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of the images: HR alone (LQ is made by antialiased bicubic; not at scale 1), or with
    /// HR and LQ below it; or a set of shards, as shards/val
    dataset: PathBuf,
    /// The network: a safetensors file, a PyTorch checkpoint (.pth, .pt, .ckpt), or the folder of a
    /// run, whose best network is taken. May be repeated
    #[arg(long, short, value_name = "FILE|RUN", required = true)]
    model: Vec<PathBuf>,
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

/// One network's results.
#[derive(Serialize)]
struct Measured {
    model: String,
    mean: Scores,
    images: Vec<ImageResult>,
}

/// The results of all networks on the images that every one of them could measure.
struct Report {
    models: Vec<Measured>,
    bicubic: Scores,
    /// Each network after the first, against the first.
    comparisons: Vec<Comparison>,
    left_out: Vec<NotMeasured>,
    /// Images of the dataset.
    total: usize,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let place = args.apply.place()?;
    let mut upscalers = open_models(args, &place)?;
    let scale = upscalers
        .first()
        .map_or(RESTORATION_SCALE as usize, Upscale::scale);
    let options = ScanOptions {
        scale: scale as u32,
        hr: args.hr.clone(),
        lq: args.lq.clone(),
        out: args.save.clone(),
    };
    tell_side("hr", &args.dataset, args.hr.as_ref());
    tell_side("lq", &args.dataset, args.lq.as_ref());
    let set = EvalSet::open(&args.dataset, &options)?;
    for left in set.left_out.iter().filter(|l| l.may_surprise()) {
        tell(format_args!("note: {left}"));
    }
    let held_out = args.dataset.join("val");
    if set.sources().is_empty() && EvalSet::open(&held_out, &options).is_ok() {
        tell(format_args!(
            "note: networks are trained on the pairs of {}; {} holds those that were held out",
            args.dataset.display(),
            held_out.display()
        ));
    }
    let crop = args.crop_border.unwrap_or(scale as u32);
    if let Some(folder) = &args.save {
        ensure!(
            args.model.len() == 1,
            "--save writes the images of one network, and -m names {}",
            args.model.len()
        );
        check_saving(folder, set.sources())?;
    }
    let fits = fit_all(args, &mut upscalers, &place, &set)?;
    let budget = args.apply.budget();
    let mut works = Vec::new();
    for (upscaler, fit) in upscalers.into_iter().zip(fits) {
        let most = check_memory(&upscaler, &set, &budget)?;
        let on_device = upscaler.device().is_some();
        let size = (set.len(), most);
        let workers = Workers::new(on_device, size, &budget, args.apply.threads);
        works.push((upscaler, fit, workers));
    }
    let memory = works.iter().map(|(_, _, workers)| workers.memory).max();
    let memory = memory.unwrap_or(0);
    let device = works.first().and_then(|(upscaler, fit, workers)| {
        let (device, fit) = (upscaler.device()?, (*fit)?);
        tell(fit_text(device, fit, workers.threads));
        Some(fit_json(device, fit, workers.threads))
    });
    let report = measure(args, works, &set, crop)?;
    if args.json {
        let mut json = json(args, &report, &set, (scale, crop, memory));
        if let Some(device) = device {
            json["device"] = device;
        }
        print_json(&json)?;
    } else {
        print_report(&report, &set, (scale, crop))?;
        print(format_args!("memory at most {}", bytes_text(memory)))?;
    }
    ensure!(
        report.left_out.is_empty(),
        "{} of {} images were left out of the mean, see above",
        report.left_out.len(),
        report.total
    );
    Ok(())
}

/// Reads all networks, before the first image.
fn open_models(args: &Args, place: &InferencePlace) -> Result<Vec<Upscaler>> {
    let scratch = std::env::temp_dir();
    let open = |model: &PathBuf| args.apply.upscaler(place, model, &scratch);
    let upscalers = args.model.iter().map(open).collect::<Result<Vec<_>>>()?;
    let first = upscalers.first().map(Upscale::scale);
    for (upscaler, model) in upscalers.iter().zip(&args.model) {
        ensure!(
            Some(upscaler.scale()) == first,
            "{} has scale {} and {} scale {}; networks of one scale can be compared",
            args.model[0].display(),
            first.unwrap_or_default(),
            model.display(),
            upscaler.scale()
        );
    }
    Ok(upscalers)
}

/// Chooses the tiles of every network on the GPU, if there is one.
fn fit_all(
    args: &Args,
    upscalers: &mut [Upscaler],
    place: &InferencePlace,
    set: &EvalSet,
) -> Result<Vec<Option<DeviceFit>>> {
    if upscalers.iter().all(|upscaler| upscaler.device().is_none()) {
        return Ok(vec![None; upscalers.len()]);
    }
    let scale = upscalers.first().map_or(1, Upscale::scale);
    let sizes = set.lq_sizes(scale).into_iter();
    let images: Vec<ImageKind> = sizes.map(|size| ImageKind { size, deep: false }).collect();
    let fits = upscalers.iter_mut();
    fits.map(|upscaler| args.apply.fit(upscaler, place, &images))
        .collect()
}

/// Measures every network on the set, one after the other, each in the memory that the one before
/// it has freed.
fn measure(
    args: &Args,
    works: Vec<(Upscaler, Option<DeviceFit>, Workers)>,
    set: &EvalSet,
    crop: u32,
) -> Result<Report> {
    let progress = Progress::new("eval", (set.len() * works.len()) as u64, "images");
    let mut evaluations = Vec::with_capacity(works.len());
    for (mut upscaler, _, workers) in works {
        let mut each = |result: &ImageResult, image: &RgbImage, _: &RgbImage, _: &ImagePair| {
            if let Some(folder) = &args.save {
                save(image, &folder.join(file_of(&result.name, Format::Png)))?;
            }
            progress.advance(1);
            Ok(())
        };
        let evaluation = match workers.threads {
            1 => evaluate_set(&mut upscaler, set, crop, &mut each),
            threads => {
                let others = (1..threads).map(|_| upscaler.for_another_thread());
                let mut all = others.collect::<Result<Vec<Upscaler>>>()?;
                all.push(upscaler);
                evaluate_set_by(all, set, crop, &mut each)
            }
        };
        match evaluation {
            Ok(evaluation) => evaluations.push(evaluation),
            Err(error) => {
                progress.finish();
                return Err(error);
            }
        }
    }
    progress.finish();
    report(args, evaluations, set)
}

/// Brings the results of the networks together, and prints what happened to single images.
fn report(args: &Args, evaluations: Vec<Evaluation>, set: &EvalSet) -> Result<Report> {
    let notes = evaluations.first().map(|e| &e.results);
    notes
        .into_iter()
        .flatten()
        .flat_map(|r| &r.notes)
        .for_each(tell);
    let mut left_out: BTreeMap<String, String> = BTreeMap::new();
    let measured = evaluations
        .iter()
        .flat_map(|evaluation| &evaluation.left_out);
    for left in set.rejected.iter().chain(measured) {
        left_out
            .entry(left.name.clone())
            .or_insert_with(|| left.reason.clone());
    }
    for reason in left_out.values() {
        tell(format_args!("error: left out of the mean: {reason}"));
    }
    let common = |mut results: Vec<ImageResult>| {
        results.retain(|result| !left_out.contains_key(&result.name));
        results
    };
    let results: Vec<Vec<ImageResult>> = evaluations
        .into_iter()
        .map(|evaluation| common(evaluation.results))
        .collect();
    ensure!(
        results.iter().all(|results| !results.is_empty()),
        "no image of {} could be measured, {} were left out",
        args.dataset.display(),
        left_out.len()
    );
    let first = results.first().map(Vec::as_slice).unwrap_or_default();
    let comparisons = results
        .iter()
        .skip(1)
        .map(|other| compare(first, other))
        .collect();
    let bicubic = mean(first.iter().map(|r| r.bicubic));
    let models = args
        .model
        .iter()
        .zip(results)
        .map(|(model, images)| Measured {
            model: model.to_string_lossy().into_owned(),
            mean: mean(images.iter().map(|r| r.network)),
            images,
        });
    let left_out = left_out
        .into_iter()
        .map(|(name, reason)| NotMeasured { name, reason });
    Ok(Report {
        models: models.collect(),
        bicubic,
        comparisons,
        left_out: left_out.collect(),
        total: set.len() + set.rejected.len(),
    })
}

/// What `--json` prints. One network is written as earlier versions wrote it.
fn json(
    args: &Args,
    report: &Report,
    set: &EvalSet,
    (scale, crop, memory): (usize, u32, u64),
) -> serde_json::Value {
    let mut json = serde_json::json!({
        "dataset": args.dataset.to_string_lossy(), "scale": scale, "crop_border": crop, "lq": set.lq,
        "most_psnr": MOST_PSNR, "left_out": report.left_out, "memory_planned": memory,
    });
    match report.models.as_slice() {
        [one] => {
            json["model"] = serde_json::json!(one.model);
            json["images"] = serde_json::json!(one.images);
            json["mean"] = serde_json::json!({ "network": one.mean, "bicubic": report.bicubic });
        }
        all => {
            json["models"] = serde_json::json!(all);
            json["mean"] = serde_json::json!({ "bicubic": report.bicubic });
            json["comparisons"] = serde_json::json!(report.comparisons);
        }
    }
    json
}

/// The tables, and how the figures came about.
fn print_report(report: &Report, set: &EvalSet, (scale, crop): (usize, u32)) -> Result<()> {
    let baseline = if scale == RESTORATION_SCALE as usize {
        "LQ"
    } else {
        table::BICUBIC
    };
    match report.models.as_slice() {
        [one] => table::print_table_against(baseline, &one.images, &one.mean, &report.bicubic)?,
        all => {
            let means: Vec<(String, Scores)> =
                all.iter().map(|m| (m.model.clone(), m.mean)).collect();
            table::print_models(baseline, &means, &report.bicubic)?;
            for (comparison, other) in report.comparisons.iter().zip(&all[1..]) {
                table::print_comparison(&all[0].model, &other.model, comparison)?;
            }
        }
    }
    let count = report.models.first().map_or(0, |m| m.images.len());
    let text = format!(
        "{count} images; LQ {}; {crop} pixels cut off at each edge (--crop-border)",
        set.lq
    );
    print(folded(&text, 2, columns()))
}

/// Checks the memory of the largest pair against the budget. An error in a header is reported
/// later, when its image is measured.
fn check_memory(upscaler: &Upscaler, set: &EvalSet, budget: &Budget) -> Result<u64> {
    let unreadable = |error: anyhow::Error| match system_cause(&error) {
        Some(_) => Err(error),
        None => Ok(()),
    };
    let (mut bytes, largest) = set.most_bytes(upscaler, &unreadable)?;
    if upscaler.device().is_some() {
        bytes += DRIVER_HOST_ESTIMATE;
    }
    let text = || {
        largest.map_or_else(String::new, |source: &Source| {
            source.hr.display().to_string()
        })
    };
    let mut ways = vec!["take the image out of the folder or cut it into parts"];
    if upscaler.takes_whole_images() {
        ways.push(ModelArgs::smaller_tiles(upscaler));
    }
    ways.push("allow more with --host-memory");
    budget
        .check(bytes, &ways.join(", or "))
        .with_context(text)?;
    Ok(bytes)
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
