//! The entry of a network in OpenModelDB: one JSON file with the fields, the order and the layout
//! that its validation asks for. What only a person knows is marked and listed. Depends on the
//! option file of a run and on shard sets; a run that has moved away leaves more marks, no error.

use super::digest::day_text;
use super::source::Source;
use crate::config::{MOST_FILE_BYTES, Settings, loss_name, value_text};
use crate::model::{InFile, Network};
use crate::shard::reader::ShardSet;
use crate::support::files::open_regular;
use crate::train::TrainConfig;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Marks a field that a person has to fill in.
pub const BLANK: &str = "FILL IN";
/// Side of the LQ patch of a run whose option file names none and whose shards are not there.
const ANY_LQ_SIZE: usize = 0;

/// What a person says about a network.
#[derive(Clone, Debug, Default)]
pub struct Statements {
    /// Name to show.
    pub name: Option<String>,
    /// User ids.
    pub authors: Vec<String>,
    /// SPDX identifier.
    pub license: Option<String>,
    /// Markdown.
    pub description: Option<String>,
    /// Tag ids.
    pub tags: Vec<String>,
}

/// An exported file, as the entry names it.
#[derive(Clone, Debug, Serialize)]
pub struct Resource {
    /// `pytorch` or `onnx`.
    pub platform: &'static str,
    /// `safetensors` or `onnx`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Places to load it from.
    pub urls: Vec<String>,
}

/// Two images that are compared.
#[derive(Clone, Debug, Serialize)]
pub struct ExamplePair {
    /// `paired`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Place of the image before.
    #[serde(rename = "LR")]
    pub before: String,
    /// Place of the image after.
    #[serde(rename = "SR")]
    pub after: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Authors {
    One(String),
    Several(Vec<String>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    author: Authors,
    license: Option<String>,
    tags: Vec<String>,
    description: String,
    date: String,
    architecture: String,
    size: Option<Vec<String>>,
    scale: usize,
    input_channels: u32,
    output_channels: u32,
    resources: Vec<Resource>,
    #[serde(flatten)]
    facts: Facts,
    images: Vec<ExamplePair>,
}

/// What is known about the training, by the names of the entry's fields.
#[derive(Serialize)]
struct Facts {
    #[serde(rename = "trainingIterations", skip_serializing_if = "Option::is_none")]
    iterations: Option<u64>,
    #[serde(rename = "trainingBatchSize", skip_serializing_if = "Option::is_none")]
    batch_size: Option<u64>,
    #[serde(rename = "trainingHRSize", skip_serializing_if = "Option::is_none")]
    hr_size: Option<u64>,
    #[serde(rename = "trainingOTF", skip_serializing_if = "Option::is_none")]
    on_the_fly: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset: Option<String>,
    #[serde(rename = "datasetSize", skip_serializing_if = "Option::is_none")]
    dataset_size: Option<u64>,
}

/// An entry's text, and what a person still has to do.
pub struct Written {
    /// The file's name.
    pub file: String,
    /// The file's content.
    pub json: String,
    /// One line for each thing that is missing.
    pub missing: Vec<String>,
}

/// What a run's folder says about its training.
struct Training {
    config: TrainConfig,
    /// Names of the folders of shards.
    sets: Vec<String>,
    /// Images in them, if all of them are there.
    images: Option<u64>,
}

/// The entry of a network.
///
/// # Errors
/// A name that gives no id.
pub fn entry(
    source: &Source,
    said: &Statements,
    resources: Vec<Resource>,
    images: Vec<ExamplePair>,
) -> Result<Written> {
    let net = &source.net;
    let name = said.name.clone().unwrap_or_else(|| source.name.clone());
    let file = format!("{}.json", id(&name, net.scale)?);
    let mut missing = Vec::new();
    list_missing(said, &resources, &images, &mut missing);
    let training = source.run.as_deref().and_then(|run| {
        let read = training_of(run, net.scale);
        let problem = |e: &anyhow::Error| format!("the recipe: {e:#}");
        read.inspect_err(|e| missing.push(problem(e))).ok()
    });
    let facts = Facts::of(source, training.as_ref());
    missing.extend(facts.missing());
    let (architecture, size) = architecture(net, &mut missing);
    let recipe = training
        .as_ref()
        .map(|t| recipe_text(&t.config, facts.iterations));
    let blank = || BLANK.to_string();
    let entry = Entry {
        name,
        author: match &said.authors[..] {
            [] => Authors::One(blank()),
            [one] => Authors::One(one.clone()),
            several => Authors::Several(several.to_vec()),
        },
        license: said.license.clone(),
        tags: match &said.tags[..] {
            [] => vec![blank()],
            tags => tags.to_vec(),
        },
        description: description(said, recipe.as_deref()),
        date: date_of(&source.file),
        architecture,
        size,
        scale: net.scale,
        input_channels: 3,
        output_channels: 3,
        resources,
        facts,
        images,
    };
    let json = text_of(&entry)?;
    Ok(Written {
        file,
        json,
        missing,
    })
}

impl Facts {
    /// What the network file and the run's folder say; `None` for what they do not.
    fn of(source: &Source, training: Option<&Training>) -> Facts {
        let config = training.map(|t| &t.config);
        let hr_size = config.map(|c| (c.lq_size * source.net.scale) as u64);
        let sets = training.map(|t| t.sets.join(", "));
        let iterations = source.meta.as_ref().and_then(|meta| meta.iteration);
        Facts {
            iterations: iterations.filter(|&n| n > 0),
            batch_size: config.map(|c| (c.batch_size * c.accum_iter) as u64),
            hr_size: hr_size.filter(|&side| side > 0),
            on_the_fly: config.map(|_| false),
            dataset: sets.filter(|text| !text.is_empty()),
            dataset_size: training.and_then(|t| t.images),
        }
    }

    /// The line about the fields that are not known.
    fn missing(&self) -> Option<String> {
        let fields = [
            (self.iterations.is_none(), "trainingIterations"),
            (self.batch_size.is_none(), "trainingBatchSize"),
            (self.hr_size.is_none(), "trainingHRSize"),
            (self.dataset.is_none(), "dataset"),
            (self.dataset_size.is_none(), "datasetSize"),
        ];
        let absent = fields.iter().filter(|(absent, _)| *absent);
        let names: Vec<&str> = absent.map(|(_, name)| *name).collect();
        (!names.is_empty()).then(|| {
            let names = names.join(", ");
            format!("{names} (optional; neither the network file nor the run's folder has them)")
        })
    }
}

/// The JSON with four blanks of indent and no newline at the end.
fn text_of(entry: &Entry) -> Result<String> {
    let mut bytes = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    entry.serialize(&mut serializer)?;
    Ok(String::from_utf8(bytes)?)
}

/// The id of an entry: `2x-`, then ASCII letters and digits with single hyphens between them.
fn id(name: &str, scale: usize) -> Result<String> {
    let parts = name.split(|c: char| !c.is_ascii_alphanumeric());
    let whole = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>();
    let whole = whole.join("-");
    let prefix = format!("{scale}x");
    // the scale stands at the start once, and not at the end
    let rest = whole.strip_prefix(&prefix).unwrap_or(&whole);
    let rest = rest.strip_suffix(&format!("-{prefix}")).unwrap_or(rest);
    let rest = rest.trim_matches('-');
    ensure!(
        !rest.is_empty(),
        "the name '{name}' has no ASCII letter and no digit, and OpenModelDB's ids are made of these; \
         give another one (--name)"
    );
    Ok(format!("{prefix}-{rest}"))
}

/// Id of the architecture in OpenModelDB, and the network's size in the words of its field.
fn architecture(net: &Network, missing: &mut Vec<String>) -> (String, Option<Vec<String>>) {
    let whole = |setting: &str, unit: &str| format!("{}{unit}", net.whole(setting));
    match net.arch.as_str() {
        "compact" => {
            let size = vec![whole("num_feat", "nf"), whole("num_conv", "nc")];
            ("compact".to_string(), Some(size))
        }
        "span" => {
            let size = vec![whole("feature_channels", "nf")];
            ("span".to_string(), Some(size))
        }
        other => {
            let (family, variant) = other.split_once('_').unwrap_or((other, ""));
            missing.push(format!(
                "the architecture {family}: OpenModelDB may not list it; check data/architectures.json \
                 there, and add it with a tag arch:{family} in data/tags.json"
            ));
            let size = (!variant.is_empty()).then(|| vec![variant.to_string()]);
            (family.to_string(), size)
        }
    }
}

/// The description: what the user says, then the recipe.
fn description(said: &Statements, recipe: Option<&str>) -> String {
    let text = said.description.as_deref().unwrap_or(BLANK).trim();
    match recipe {
        Some(recipe) => format!("{text}\n\n{recipe}"),
        None => text.to_string(),
    }
}

fn list_missing(
    said: &Statements,
    resources: &[Resource],
    images: &[ExamplePair],
    missing: &mut Vec<String>,
) {
    let mut need = |absent: bool, text: &str| {
        if absent {
            missing.push(text.to_string());
        }
    };
    need(
        said.authors.is_empty(),
        "author: your id in OpenModelDB's data/users.json, lower case with hyphens (--author)",
    );
    need(
        said.license.is_none(),
        "license: an SPDX identifier such as CC-BY-4.0 or MIT; null means that there is none (--license)",
    );
    need(
        said.description.is_none(),
        "description: what the network is for, in Markdown (--description)",
    );
    need(
        said.tags.is_empty(),
        "tags: ids from OpenModelDB's data/tags.json, such as photo, anime, compression-removal (--tags)",
    );
    need(
        resources.is_empty(),
        "resources: no file was exported with this entry (--onnx, --safetensors)",
    );
    need(
        resources
            .iter()
            .any(|r| r.urls.iter().any(|url| url.starts_with(BLANK))),
        "resources: a URL for each file, after you have uploaded it",
    );
    need(
        images.is_empty(),
        "images: no example; give a folder of LQ images (--examples)",
    );
    need(
        !images.is_empty(),
        "images: a URL for each example, after you have uploaded it",
    );
}

/// The day on which the file was written.
fn date_of(file: &Path) -> String {
    let changed = std::fs::metadata(file).and_then(|about| about.modified());
    day_text(changed.unwrap_or_else(|_| SystemTime::now()))
}

/// The option file of a run and its sets of shards.
fn training_of(run: &Path, scale: usize) -> Result<Training> {
    let path = run.join("config.yml");
    let mut content = Vec::new();
    let file = open_regular(&path).with_context(|| path.display().to_string())?;
    file.take(MOST_FILE_BYTES as u64 + 1)
        .read_to_end(&mut content)
        .with_context(|| path.display().to_string())?;
    let mut settings = Settings::default();
    settings.take_file(&path.display().to_string(), &content)?;
    let folders = settings.paths("data.shards");
    let sets: Option<Vec<ShardSet>> = folders.iter().map(|f| ShardSet::open(f).ok()).collect();
    let sets = sets.filter(|sets| !sets.is_empty());
    let lq_size = sets.as_ref().map(|sets| sets[0].lq_size() as usize);
    let config = settings.train_config(scale, lq_size.unwrap_or(ANY_LQ_SIZE))?;
    let images = sets.map(|sets| sets.iter().map(|set| set.manifest().used).sum());
    let name = |folder: &PathBuf| {
        let name = folder.file_name();
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    Ok(Training {
        config,
        sets: folders
            .iter()
            .map(name)
            .filter(|name| !name.is_empty())
            .collect(),
        images: images.filter(|&count| count > 0),
    })
}

/// One sentence about the training.
fn recipe_text(config: &TrainConfig, iterations: Option<u64>) -> String {
    let losses = config.losses.iter();
    let losses: Vec<String> = losses
        .map(|loss| format!("{} {}", loss_name(loss.kind), loss.weight))
        .collect();
    let settings = config.network.settings();
    let settings: Vec<String> = settings
        .filter(|(spec, _)| spec.in_file != InFile::StartValue)
        .map(|(spec, value)| format!("{} {}", spec.name, value_text(value)))
        .collect();
    let mut flips = vec!["flips", "rotations"];
    flips.retain(|what| match *what {
        "flips" => config.use_hflip,
        _ => config.use_rot,
    });
    let flips = match flips.as_slice() {
        [] => "no augmentation".to_string(),
        list => list.join(" and "),
    };
    format!(
        "Trained with paragon {}: {} ({}), {} iterations, batch {}, {:?} with learning rate {}, losses {}, {flips}, EMA {}.",
        env!("CARGO_PKG_VERSION"),
        config.network.arch,
        settings.join(", "),
        iterations.unwrap_or(config.total_iter),
        config.batch_size * config.accum_iter,
        config.optimizer,
        config.schedule.base_lr,
        losses.join(" + "),
        config.ema_decay,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_rules() {
        for (name, expected) in [
            ("nomos", "2x-nomos"),
            ("2xNomos_v1 SPAN", "2x-Nomos-v1-SPAN"),
            ("nomos--2x", "2x-nomos"),
            ("2x_2", "2x-2"),
        ] {
            assert_eq!(id(name, 2).unwrap(), expected);
        }
        assert!(id("2x", 2).is_err() && id("ü", 2).is_err());
    }
}
