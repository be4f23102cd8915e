//! The sheet of `paragon shard --dry-run --sheet`: images and patches that would be left out, with
//! the values, as a PNG or as a page with histograms. Depends on `shard::survey` and `report`.

use super::shard_select::number;
use anyhow::{Context, Result, ensure};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, codecs::png::PngEncoder, imageops};
use paragon::dataset::decode;
use paragon::report::histogram::{Histogram, histogram_svg};
use paragon::report::page::{Headings, Page, Strip, Table};
use paragon::report::sheet::{Panel, comparison};
use paragon::shard::plan::{BuildConfig, Plan};
use paragon::shard::survey::{Distribution, Example, Measure, QUANTILES, Survey};
use paragon::support::files::write_output;
use std::io::Write;
use std::path::Path;

/// Side of a tile, pixels.
const TILE: u32 = 200;
/// Tiles in a row of a PNG.
const COLUMNS: usize = 6;
/// Characters of a name that fit below a tile.
const NAME: usize = 24;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);

/// One tile: its pixels, the value above it and the name below it.
struct Tile {
    image: RgbImage,
    title: String,
    note: String,
}

/// Some examples of one measure.
struct Group {
    title: String,
    tiles: Vec<Tile>,
}

/// Writes the sheet to `path`, as its ending says.
///
/// # Errors
/// No image was measured; an error of the system.
pub fn write_sheet(survey: &Survey, config: &BuildConfig, plan: &Plan, path: &Path) -> Result<()> {
    let with_thresholds = survey.measures.iter().any(|m| m.threshold.is_some());
    let mut groups = Vec::new();
    for found in &survey.measures {
        // without any threshold, what would be left out first is shown for every measure
        if with_thresholds && found.threshold.is_none() {
            continue;
        }
        for (examples, which) in kinds(found) {
            let tiles = examples
                .iter()
                .filter_map(|example| tiles(found.measure, example, config, plan).transpose())
                .collect::<Result<Vec<_>>>()?;
            let group = Group {
                title: title(found, which),
                tiles: tiles.into_iter().flatten().collect(),
            };
            groups.extend((!group.tiles.is_empty()).then_some(group));
        }
    }
    let html = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("html"));
    if html {
        let page = page(survey, groups)?;
        write_output(path, |out| Ok(out.write_all(page.html().as_bytes())?))
    } else {
        ensure!(
            !groups.is_empty(),
            "nothing would be left out, so there is no sheet to write to {}; FILE.html has histograms",
            path.display()
        );
        let rows: Vec<Vec<Panel>> = groups.iter().flat_map(rows).collect();
        comparison(&rows, path)
    }
}

/// The lists of examples that are shown. If they are the same images, only one is.
fn kinds(found: &Distribution) -> Vec<(&[Example], &'static str)> {
    let more = found.left_out > found.extremes.len() as u64;
    let mut kinds = vec![(&found.extremes[..], "left out first")];
    if found.threshold.is_some() && more {
        kinds.push((&found.borderline[..], "nearest to the threshold"));
    }
    kinds
}

fn title(found: &Distribution, which: &str) -> String {
    let name = found.measure.name();
    match found.threshold {
        Some(threshold) => format!("{name}, {} {threshold}: {which}", found.measure.option()),
        None => format!(
            "{name}: what {} would leave out first",
            found.measure.option()
        ),
    }
}

/// The tiles of an example: one, or with the earlier image that it resembles two. `None`: the file
/// can no longer be read.
fn tiles(
    measure: Measure,
    example: &Example,
    config: &BuildConfig,
    plan: &Plan,
) -> Result<Option<Vec<Tile>>> {
    let load = |number: usize| -> Result<(RgbImage, &str)> {
        let job = plan
            .jobs
            .get(number)
            .context("an image that is not planned")?;
        let bytes = decode::load(&job.source.hr, &config.limits)?;
        let decoded = decode::decode_loaded(&job.source.hr, &bytes, &config.limits)?;
        Ok((decoded.image, &job.source.name))
    };
    let Ok((image, name)) = load(example.image) else {
        return Ok(None);
    };
    let title = format!("{} {}", measure.name(), number(measure, example.value));
    if let Some(other) = example.resembles {
        let Ok((earlier, earlier_name)) = load(other) else {
            return Ok(None);
        };
        return Ok(Some(vec![
            Tile {
                image: whole(&image),
                title,
                note: end_of(name),
            },
            Tile {
                image: whole(&earlier),
                title: "resembles".to_string(),
                note: end_of(earlier_name),
            },
        ]));
    }
    let (at, side) = match example.at {
        Some(at) => (at, plan.geometry.hr() as u32),
        None => ((0, 0), u32::MAX),
    };
    Ok(Some(vec![Tile {
        image: middle(&image, at, side),
        title,
        note: end_of(&match example.at {
            Some((x, y)) => format!("{name} {x},{y}"),
            None => name.to_string(),
        }),
    }]))
}

/// The end of a name that is too long for a tile.
fn end_of(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_string();
    }
    let end: String = name.chars().skip(length - (NAME - 2)).collect();
    format!("..{end}")
}

/// An image in the middle of a tile.
fn centred(image: &RgbImage) -> RgbImage {
    let mut tile = RgbImage::from_pixel(TILE, TILE, PAPER);
    let place = |side: u32| i64::from((TILE - side) / 2);
    imageops::replace(
        &mut tile,
        image,
        place(image.width()),
        place(image.height()),
    );
    tile
}

/// The whole image, reduced.
fn whole(image: &RgbImage) -> RgbImage {
    let largest = image.width().max(image.height()).max(1);
    let side = |length: u32| (u64::from(length) * u64::from(TILE) / u64::from(largest)).max(1);
    let (width, height) = (side(image.width()) as u32, side(image.height()) as u32);
    centred(&imageops::thumbnail(image, width, height))
}

/// The middle of an image or of the patch of `side` pixels at `at`, pixel by pixel
/// or enlarged by a whole factor.
fn middle(image: &RgbImage, at: (u32, u32), side: u32) -> RgbImage {
    let cut = |start: u32, length: u32| {
        let length = length.saturating_sub(start).min(side);
        let shown = length.min(TILE);
        (start + (length - shown) / 2, shown)
    };
    let ((x, width), (y, height)) = (cut(at.0, image.width()), cut(at.1, image.height()));
    let cut = imageops::crop_imm(image, x, y, width, height).to_image();
    // a small patch is enlarged by a whole factor, so that its pixels can be judged
    let zoom = (TILE / width.max(height).max(1)).max(1);
    let nearest = imageops::FilterType::Nearest;
    centred(&imageops::resize(
        &cut,
        width * zoom,
        height * zoom,
        nearest,
    ))
}

/// The rows of a group in a PNG.
fn rows(group: &Group) -> Vec<Vec<Panel<'_>>> {
    let rows = group.tiles.chunks(COLUMNS);
    rows.map(|tiles| tiles.iter().map(Tile::panel).collect())
        .collect()
}

impl Tile {
    fn panel(&self) -> Panel<'_> {
        Panel {
            image: &self.image,
            title: self.title.clone(),
            note: self.note.clone(),
        }
    }
}

fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let (width, height) = image.dimensions();
    PngEncoder::new(&mut out).write_image(
        image.as_raw(),
        width,
        height,
        ExtendedColorType::Rgb8,
    )?;
    Ok(out)
}

/// The table of quantiles, with the thresholds.
fn quantiles(survey: &Survey) -> Table {
    let mut head: Vec<String> = ["measure", "unit", "threshold", "left out"]
        .map(String::from)
        .into();
    head.extend(QUANTILES.iter().map(|q| format!("{}%", q * 100.0)));
    let row = |found: &Distribution| {
        let measure = found.measure;
        let threshold = found.threshold;
        let value = |q: &f64| {
            found
                .quantile(*q)
                .map_or("-".into(), |v| number(measure, v))
        };
        let mut row = vec![
            measure.name().to_string(),
            measure.unit().to_string(),
            threshold.map_or("-".into(), |t| format!("{} {t}", measure.option())),
            format!(
                "{} of {} {}",
                found.left_out,
                found.count + found.without,
                measure.of()
            ),
        ];
        row.extend(QUANTILES.iter().map(value));
        row
    };
    Table {
        title: String::new(),
        head,
        rows: survey.measures.iter().map(row).collect(),
    }
}

/// The page: a table of quantiles, histograms, and the groups.
fn page(survey: &Survey, groups: Vec<Group>) -> Result<Page> {
    let mut charts = Vec::new();
    for found in &survey.measures {
        let measure = found.measure;
        let bars = found.bars();
        if !bars.is_empty() {
            charts.push(histogram_svg(&Histogram {
                title: format!("{} of {}", measure.name(), measure.of()),
                x_label: measure.unit().to_string(),
                y_label: measure.of().to_string(),
                bars,
                threshold: found.threshold,
            })?);
        }
    }
    let mut strips = Vec::new();
    for group in groups {
        let version =
            |tile: &Tile| Ok((format!("{}: {}", tile.title, tile.note), png(&tile.image)?));
        strips.push(Strip {
            name: group.title,
            versions: group
                .tiles
                .iter()
                .map(version)
                .collect::<Result<Vec<_>>>()?,
            size: (TILE, TILE),
        });
    }
    Ok(Page {
        title: "What would be left out".to_string(),
        subtitle: format!(
            "{} images and {} patches measured; {} images and {} patches kept, before duplicates",
            survey.images, survey.patches, survey.images_kept, survey.patches_kept
        ),
        summary: Some(quantiles(survey)),
        headings: Headings {
            charts: "Distributions".to_string(),
            strips: "Examples".to_string(),
        },
        charts,
        strips,
        ..Page::default()
    })
}
