//! A recipe: the steps that make an LQ patch from an HR patch, with their ranges. It is read from
//! YAML, and written as one canonical line that sets store. Depends on `config::yaml` and on the
//! steps.

use super::bound::Bound;
use super::canvas::Layout;
use super::keys::{Keys, Lister, Reader, Writer};
use super::resize::ToLq;
use super::step::{Kind, STEPS, Step};
use crate::config::yaml;
use crate::support::text::brief;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// The most context that a patch is given on each side, in HR pixels. What is farther away decides
/// less than a level of 8 bits in nearly all patches; beyond the margin the image is mirrored.
const MOST_MARGIN: usize = 32;
/// Bytes of a recipe file.
const MOST_BYTES: u64 = 1 << 20;
/// Characters of a recipe's name.
const MOST_NAME: usize = 80;

/// The presets: name and file.
const PRESETS: [(&str, &str); 5] = [
    ("real-esrgan", include_str!("presets/real-esrgan.yml")),
    (
        "real-esrgan-light",
        include_str!("presets/real-esrgan-light.yml"),
    ),
    ("jpeg", include_str!("presets/jpeg.yml")),
    ("denoise", include_str!("presets/denoise.yml")),
    ("web", include_str!("presets/web.yml")),
];

/// A recipe, read and checked. Two recipes are equal if their canonical texts are.
#[derive(Clone, Debug)]
pub struct Recipe {
    body: Arc<Body>,
}

#[derive(Debug)]
struct Body {
    name: String,
    about: String,
    steps: Vec<Step>,
    last: ToLq,
    canonical: String,
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Recipe) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Eq for Recipe {}

impl Recipe {
    /// The preset of this name, or the recipe in this YAML file.
    ///
    /// # Errors
    /// Neither exists (the message names the nearest preset), the file cannot be read, or those of
    /// [`Recipe::parse`].
    pub fn load(name_or_path: &str) -> Result<Recipe> {
        if let Some(text) = Recipe::preset_text(name_or_path) {
            return Recipe::parse(text, name_or_path);
        }
        let path = Path::new(name_or_path);
        let data = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let names = PRESETS.iter().map(|(name, _)| *name);
                let near = super::keys::nearest(name_or_path, names);
                bail!(
                    "{}: there is no preset and no file of this name; {near} (`paragon degrade --list` lists the presets)",
                    brief(name_or_path)
                )
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
            Ok(data) => data,
        };
        ensure!(
            data.is_file(),
            "{}: expected a YAML file with the steps of a recipe, found a folder or a device",
            path.display()
        );
        ensure!(
            data.len() <= MOST_BYTES,
            "{}: expected a recipe, which has some kilobytes; found {} bytes",
            path.display(),
            data.len()
        );
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            anyhow!(
                "{}: expected a YAML file with the steps of a recipe, found bytes that are no text",
                path.display()
            )
        })?;
        Recipe::parse(&text, name_or_path)
    }

    /// Reads a recipe. `origin` names it in messages; where the text has no `name`, the recipe is
    /// called by the last part of `origin`, without its ending.
    ///
    /// # Errors
    /// Names the origin, the line, the key, what was expected and what was found.
    pub fn parse(text: &str, origin: &str) -> Result<Recipe> {
        let node = yaml::parse(text).map_err(|error| anyhow!("{origin}, {error}"))?;
        let mut reader = Reader::new(origin, String::new(), &node)
            .with_context(|| format!("{origin} is no recipe: expected the keys name and steps"))?;
        let name = reader.text("name");
        let about = reader.text("about");
        let mut steps = Vec::new();
        let mut last = ToLq::default();
        reader.steps("steps", &mut steps, "");
        reader.mapping("final_resize", |keys| last.visit(keys));
        reader.finish()?;
        ensure!(
            !steps.is_empty(),
            "{origin}: expected the key steps with at least one step; `paragon degrade --show jpeg` prints an example"
        );
        let stem = Path::new(origin).file_stem();
        let stem = stem.map(|stem| stem.to_string_lossy().into_owned());
        let name = name.or(stem).unwrap_or_default();
        ensure!(
            !name.is_empty()
                && name.chars().count() <= MOST_NAME
                && !name.contains(char::is_control),
            "{origin}: name: expected 1 to {MOST_NAME} printable characters, found '{}'",
            brief(&name)
        );
        Step::number(&mut steps, &mut 0);
        // at scale 1 sizes relative to the LQ are largest
        Bound::of(&steps, 1).check(origin)?;
        let canonical = canonical(&name, &steps, &last);
        Ok(Recipe {
            body: Arc::new(Body {
                name,
                about: about.unwrap_or_default(),
                steps,
                last,
                canonical,
            }),
        })
    }

    /// The names of all presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// The file of a preset.
    pub fn preset_text(name: &str) -> Option<&'static str> {
        let preset = PRESETS.iter().find(|(preset, _)| *preset == name);
        preset.map(|(_, text)| *text)
    }

    /// The recipe as one line of JSON, which is also YAML, with all keys; [`Recipe::parse`] makes an
    /// equal recipe of it. Sets store it.
    pub fn canonical(&self) -> &str {
        &self.body.canonical
    }

    /// The first 64 bits of the SHA-256 of the canonical text.
    pub fn hash(&self) -> u64 {
        let digest = Sha256::digest(self.canonical().as_bytes());
        digest[..8]
            .iter()
            .fold(0, |hash, b| hash << 8 | u64::from(*b))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.body.name
    }

    /// One sentence about it; may be empty. It is no part of the canonical text.
    pub fn about(&self) -> &str {
        &self.body.about
    }

    /// HR pixels of context that a patch needs on each side, so that its LQ does not show the
    /// mirrored border: a multiple of `scale`, at most 32 rounded up to one. It is the sum of what
    /// the steps reach, in which a pixel after the first resize counts as an LQ pixel.
    pub fn margin(&self, scale: usize) -> usize {
        let reach = Bound::of(&self.body.steps, scale).reach.ceil() as usize;
        reach.min(MOST_MARGIN).next_multiple_of(scale)
    }

    /// Bytes that a [`super::Degrader`] for HR patches of at most `hr_w` by `hr_h` pixels holds at
    /// most.
    pub fn memory(&self, hr_w: usize, hr_h: usize, scale: usize) -> u64 {
        self.layout(hr_w, hr_h, scale).total()
    }

    pub(super) fn layout(&self, hr_w: usize, hr_h: usize, scale: usize) -> Layout {
        Layout::new(&Bound::of(&self.body.steps, scale), hr_w, hr_h)
    }

    pub(super) fn steps(&self) -> (&[Step], &ToLq) {
        (&self.body.steps, &self.body.last)
    }

    /// All steps: name, what it does, and its keys, each with its default, what is accepted, and what
    /// it means.
    pub fn reference() -> Vec<StepReference> {
        let keys_of = |name: &str| {
            let mut lister = Lister::default();
            if let Some(kind) = Kind::named(name) {
                let mut step = Step {
                    probability: 1.0,
                    kind,
                    id: 0,
                };
                step.visit(&mut lister);
            }
            lister.0
        };
        let reference = |(name, about): &(&'static str, &'static str)| StepReference {
            name,
            about,
            keys: keys_of(name),
        };
        STEPS.iter().map(reference).collect()
    }
}

/// A step as the documentation shows it.
#[derive(Clone, Debug)]
pub struct StepReference {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Key, default, what is accepted, and what it means.
    pub keys: Vec<[String; 4]>,
}

fn canonical(name: &str, steps: &[Step], last: &ToLq) -> String {
    let mut writer = Writer::default();
    last.clone().visit(&mut writer);
    let mut out = Map::new();
    out.insert("name".into(), Json::String(name.into()));
    out.insert(
        "steps".into(),
        Json::Array(steps.iter().map(Step::json).collect()),
    );
    out.insert("final_resize".into(), Json::Object(writer.0));
    Json::Object(out).to_string()
}

/// As its canonical text.
impl Serialize for Recipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.canonical())
    }
}

impl<'de> Deserialize<'de> for Recipe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Recipe, D::Error> {
        let text = String::deserialize(deserializer)?;
        Recipe::parse(&text, "a stored recipe")
            .map_err(|error| de::Error::custom(format!("{error:#}")))
    }
}
