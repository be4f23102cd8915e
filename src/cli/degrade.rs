//! `paragon degrade`: shows what a recipe makes of images, before anything is trained with it: a
//! contact sheet, files, or the drawn parameters as text. Flags to calls of `paragon::degrade`.

use super::flags::{self, print, print_json};
use anyhow::{Context, Result, bail, ensure};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage, imageops};
use paragon::dataset::decode::{Limits, decode};
use paragon::dataset::recipe::image_key;
use paragon::dataset::scan::{ENDINGS, ImageFile, list_images};
use paragon::degrade::{Degrader, DrawnStep, Draws, HrView, Recipe};
use paragon::report::sheet::{Panel, comparison};
use paragon::support::budget::{Budget, PROGRAM_BYTES};
use paragon::support::files;
use paragon::support::text::one_line;
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Characters of a line under an image of a sheet: as many as its width holds.
const PIXELS_PER_CHARACTER: usize = 8;

/// Show what a recipe of degradations makes of images: a contact sheet of HR crops and LQ variants
/// with the parameters that made them. `paragon shard --degrade` makes sets with the same recipes.
#[derive(clap::Args)]
pub struct Args {
    /// An image, or a folder of images
    #[arg(required_unless_present_any = ["list", "show", "steps"])]
    pictures: Option<PathBuf>,
    /// A contact sheet (a name that ends in .png), or a folder for the LQ images and a sheet
    #[arg(required_unless_present_any = ["list", "show", "steps", "explain"])]
    out: Option<PathBuf>,
    /// A preset or a YAML file
    #[arg(long, default_value = "real-esrgan", value_name = "PRESET|FILE")]
    recipe: String,
    /// LQ variants of each image
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = flags::count(64))]
    count: usize,
    /// HR side over LQ side, 1 to 8
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=8))]
    scale: u64,
    /// Seed of all draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Images of a folder to show, spread over the folder
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = flags::count(1000))]
    images: usize,
    /// Side of the crop from the middle of each image, in HR pixels
    #[arg(long, default_value_t = 256, value_name = "PIXELS", value_parser = flags::count(flags::MAX_SIDE))]
    size: usize,
    /// Take whole images instead of crops
    #[arg(long, conflicts_with = "size")]
    whole: bool,
    /// Print the drawn parameters of each variant as text; with OUT, also write the sheet
    #[arg(long)]
    explain: bool,
    /// List the presets
    #[arg(long, conflicts_with_all = ["pictures", "show", "steps"])]
    list: bool,
    /// Print the file of a preset, to edit it
    #[arg(long, value_name = "PRESET", conflicts_with_all = ["pictures", "steps"])]
    show: Option<String>,
    /// List all steps with their keys, defaults and ranges
    #[arg(long, conflicts_with = "pictures")]
    steps: bool,
    /// Most memory to use (512M, 2G) [default: what the machine and its control group leave]
    #[arg(long, value_name = "SIZE", value_parser = paragon::config::parse_size)]
    host_memory: Option<u64>,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
    /// Print the weights of kernels too, for scripts/check_degrade.py
    #[arg(long, hide = true, requires = "json")]
    weights: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.list {
        return list(args.json);
    }
    if args.steps {
        return steps(args.json);
    }
    if let Some(name) = &args.show {
        return show(name, args.json);
    }
    let Some(pictures) = &args.pictures else {
        bail!("give an image or a folder of images");
    };
    let recipe = Recipe::load(&args.recipe)?;
    let mut shown = Vec::new();
    for image in chosen(pictures, args.images)? {
        shown.push(degraded(args, &recipe, &image)?);
    }
    let sheet = match &args.out {
        Some(out) => Some(write(out, &shown)?),
        None => None,
    };
    report(args, &recipe, &shown, sheet.as_deref())
}

fn list(as_json: bool) -> Result<()> {
    let recipes = Recipe::presets().map(Recipe::load);
    let recipes = recipes.collect::<Result<Vec<_>>>()?;
    if as_json {
        let entry = |r: &Recipe| json!({"name": r.name(), "about": r.about(), "hash": hash(r)});
        return print_json(&recipes.iter().map(entry).collect::<Vec<_>>());
    }
    let lines: Vec<String> = recipes
        .iter()
        .map(|r| format!("{:<18} {}", r.name(), r.about()))
        .collect();
    print(lines.join("\n"))
}

fn show(name: &str, as_json: bool) -> Result<()> {
    // also for a file: its canonical form
    let recipe = Recipe::load(name)?;
    if as_json {
        return print(recipe.canonical());
    }
    match Recipe::preset_text(name) {
        Some(text) => print(text.trim_end()),
        None => print(recipe.canonical()),
    }
}

fn steps(as_json: bool) -> Result<()> {
    let reference = Recipe::reference();
    if as_json {
        let keys = |keys: &[[String; 4]]| -> Vec<serde_json::Value> {
            let entry = |[key, default, accepted, about]: &[String; 4]| json!({"key": key, "default": default, "accepted": accepted, "about": about});
            keys.iter().map(entry).collect()
        };
        let entry = |s: &paragon::degrade::StepReference| json!({"step": s.name, "about": s.about, "keys": keys(&s.keys)});
        return print_json(&reference.iter().map(entry).collect::<Vec<_>>());
    }
    let mut out = String::new();
    for step in &reference {
        writeln!(out, "{}: {}", step.name, step.about)?;
        for [key, default, accepted, about] in &step.keys {
            writeln!(out, "  {key} [{default}]: {about}; {accepted}")?;
        }
    }
    print(out.trim_end())
}

/// The hash of a recipe as text.
fn hash(recipe: &Recipe) -> String {
    format!("{:016x}", recipe.hash())
}

/// The image, or some images of a folder and those below it, spread over the list; with their names
/// below the folder.
fn chosen(place: &Path, count: usize) -> Result<Vec<ImageFile>> {
    ensure!(
        place.exists(),
        "{} does not exist: expected an image or a folder of images",
        place.display()
    );
    if !place.is_dir() {
        let stem = place.file_stem().unwrap_or_default();
        return Ok(vec![ImageFile {
            name: stem.to_string_lossy().into_owned(),
            path: place.to_path_buf(),
        }]);
    }
    let mut all = list_images(place, true)?.images;
    ensure!(
        !all.is_empty(),
        "{} has no images: expected {} files",
        place.display(),
        ENDINGS.join(", ")
    );
    let (count, total) = (count.min(all.len()), all.len());
    let mut index = 0;
    all.retain(|_| {
        index += 1;
        // the first index of each of `count` equal parts
        index * count % total < count
    });
    Ok(all)
}

/// One image with its variants.
struct Shown {
    path: PathBuf,
    name: String,
    /// Left, top.
    at: (u32, u32),
    hr: RgbImage,
    variants: Vec<(RgbImage, Vec<DrawnStep>)>,
}

fn degraded(args: &Args, recipe: &Recipe, file: &ImageFile) -> Result<Shown> {
    let (path, name) = (&file.path, file.name.clone());
    let image = decode(path, &Limits::default())
        .with_context(|| path.display().to_string())?
        .image;
    let scale = args.scale as u32;
    let side = |n: u32| {
        let n = if args.whole {
            n
        } else {
            n.min(args.size as u32)
        };
        n / scale * scale
    };
    let (w, h) = (side(image.width()), side(image.height()));
    ensure!(
        w > 0 && h > 0,
        "{}: {}x{} pixels, or --size {}, are fewer than one LQ pixel at scale {scale}",
        path.display(),
        image.width(),
        image.height(),
        args.size
    );
    let needed = recipe.memory(w as usize, h as usize, scale as usize)
        + 3 * u64::from(w) * u64::from(h) * (args.count as u64 + 3);
    Budget::new(args.host_memory)
        .check(needed + PROGRAM_BYTES, "give a smaller --size")
        .with_context(|| format!("{}: {w}x{h} pixels", path.display()))?;
    let at = ((image.width() - w) / 2, (image.height() - h) / 2);
    let hr = imageops::crop_imm(&image, at.0, at.1, w, h).to_image();
    drop(image);
    let mut degrader = Degrader::new(recipe, scale as usize, w as usize, h as usize);
    let mut variants = Vec::new();
    for variant in 0..args.count {
        let draws = Draws::new(args.seed, image_key(&name), 0, variant as u64);
        let mut lq = RgbImage::new(w / scale, h / scale);
        let view = HrView::packed(hr.as_raw(), w as usize, h as usize);
        degrader
            .apply(view, &draws, &mut lq)
            .with_context(|| path.display().to_string())?;
        variants.push((lq, degrader.explain(&draws, w as usize, h as usize)));
    }
    Ok(Shown {
        path: path.to_path_buf(),
        name,
        at,
        hr,
        variants,
    })
}

/// Writes the sheet, and before it the LQ images if `out` is a folder. Returns the path of the sheet.
fn write(out: &Path, shown: &[Shown]) -> Result<PathBuf> {
    let is_sheet = out
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    if is_sheet && !out.is_dir() {
        sheet(out, shown)?;
        return Ok(out.to_path_buf());
    }
    files::create_folder(out)?;
    for (i, image) in shown.iter().enumerate() {
        save(
            &out.join(format!("{}-hr.png", image.file_name(i))),
            &image.hr,
        )?;
        for (variant, (lq, _)) in image.variants.iter().enumerate() {
            save(
                &out.join(format!("{}-lq{variant}.png", image.file_name(i))),
                lq,
            )?;
        }
    }
    let path = out.join("sheet.png");
    sheet(&path, shown)?;
    Ok(path)
}

impl Shown {
    /// The start of the names of its files; the number keeps images of one name apart.
    fn file_name(&self, index: usize) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let longest = files::bounded_name(&format!("{index:03}-{stem}"), "-lq00.png");
        longest.trim_end_matches("-lq00.png").into()
    }
}

fn save(path: &Path, image: &RgbImage) -> Result<()> {
    files::write_atomic(path, |out| {
        let (w, h) = image.dimensions();
        Ok(PngEncoder::new(out).write_image(image.as_raw(), w, h, ExtendedColorType::Rgb8)?)
    })
}

fn sheet(path: &Path, shown: &[Shown]) -> Result<()> {
    let large: Vec<Vec<RgbImage>> = shown
        .iter()
        .map(|image| {
            let (w, h) = image.hr.dimensions();
            let enlarge = |lq: &RgbImage| {
                let (across, down) = (w / lq.width(), h / lq.height());
                RgbImage::from_fn(w, h, |x, y| *lq.get_pixel(x / across, y / down))
            };
            image.variants.iter().map(|(lq, _)| enlarge(lq)).collect()
        })
        .collect();
    let rows: Vec<Vec<Panel>> = shown
        .iter()
        .zip(&large)
        .map(|(image, large)| {
            let hr = Panel {
                image: &image.hr,
                title: "HR".into(),
                note: image.name.clone(),
            };
            let width = (image.hr.width() as usize).max(200) / PIXELS_PER_CHARACTER;
            let variants = image.variants.iter().zip(large).enumerate();
            std::iter::once(hr)
                .chain(variants.map(|(i, ((_, steps), image))| Panel {
                    image,
                    title: format!("LQ {i}"),
                    note: wrapped(steps, width),
                }))
                .collect()
        })
        .collect();
    comparison(&rows, path)
}

/// The steps as lines of at most `width` characters; a step that needs several is indented.
fn wrapped(steps: &[DrawnStep], width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for step in steps {
        let mut line = String::new();
        for word in step.to_string().split(' ') {
            if line.len() + word.len() + 1 > width && !line.is_empty() {
                lines.push(std::mem::replace(&mut line, format!("  {word}")));
            } else {
                let gap = if line.is_empty() { "" } else { " " };
                line = format!("{line}{gap}{word}");
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// A step for a program, with the weights of a kernel where they are asked for.
fn step_json(step: &DrawnStep, with_weights: bool) -> serde_json::Value {
    let mut json = step.json();
    if let (Some(weights), true) = (step.weights(), with_weights) {
        json["weights"] = json!(weights);
    }
    json
}

fn report(args: &Args, recipe: &Recipe, shown: &[Shown], sheet: Option<&Path>) -> Result<()> {
    let scale = args.scale as usize;
    if args.json {
        let variant = |(i, (lq, steps)): (usize, &(RgbImage, Vec<DrawnStep>))| {
            let steps: Vec<_> = steps
                .iter()
                .map(|step| step_json(step, args.weights))
                .collect();
            json!({"variant": i, "width": lq.width(), "height": lq.height(), "steps": steps})
        };
        let image = |image: &Shown| {
            let variants: Vec<_> = image.variants.iter().enumerate().map(variant).collect();
            json!({
                "image": image.path.to_string_lossy(), "name": image.name, "x": image.at.0, "y": image.at.1,
                "width": image.hr.width(), "height": image.hr.height(), "variants": variants,
            })
        };
        return print_json(&json!({
            "recipe": recipe.name(), "hash": hash(recipe), "canonical": recipe.canonical(), "scale": scale,
            "seed": args.seed, "margin": recipe.margin(scale), "sheet": sheet.map(Path::to_string_lossy),
            "images": shown.iter().map(image).collect::<Vec<_>>(),
        }));
    }
    let mut out = String::new();
    if args.explain {
        for image in shown {
            for (i, (_, steps)) in image.variants.iter().enumerate() {
                writeln!(out, "{}, variant {i}:", one_line(&image.name))?;
                steps
                    .iter()
                    .try_for_each(|step| writeln!(out, "  {step}"))?;
            }
        }
    }
    if let Some(sheet) = sheet {
        writeln!(
            out,
            "{} ({}), x{scale}: {} images, {} variants each: {}",
            recipe.name(),
            hash(recipe),
            shown.len(),
            args.count,
            sheet.display()
        )?;
    }
    print(out.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_steps_are_wrapped() {
        let recipe = Recipe::parse(
            "steps: [blur: {kernels: anisotropic}, jpeg: {quality: 50}]",
            "r",
        )
        .unwrap();
        let steps = Degrader::new(&recipe, 1, 8, 8).explain(&Draws::new(0, 0, 0, 0), 8, 8);
        let text = wrapped(&steps, 25);
        assert!(text.lines().all(|line| line.len() <= 25), "{text}");
        assert!(
            text.lines().count() >= 4 && text.ends_with("jpeg q50, 420"),
            "{text}"
        );
    }
}
