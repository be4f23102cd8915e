//! The configuration of a training: one table of keys, whose values come from paragon's YAML or a
//! traiNNer-redux option file, from `--set` and from flags; later sources override earlier ones.
//! Depends on the plain structures of `train`, which it builds. Every key of a file is used,
//! refused with an error, or listed as ignored.

mod advice;
pub mod docs;
mod folders;
pub mod import;
mod keys;
mod network;
mod preset;
mod scalar;
mod theirs;
mod value;
pub mod words;
pub(crate) mod yaml;

pub use folders::{ImageFolders, image_folders};
pub use keys::{Flag, Heading, KEYS, Key, SECTIONS, TYPE};
pub use network::{alias_settings, parse_setting, setting_of, value_text};
pub use preset::Preset;
pub use value::{Kind, Value, loss_name, loss_term, parse_size};
pub use yaml::{Data, Node, parse};

use crate::degrade::Recipe;
use crate::plan::OptimizerKind;
use crate::support::file_kind::{HEAD_BYTES, look, look_at_options};
use crate::support::text::brief;
use crate::train::{Decay, LossTerm, Schedule, TrainConfig, usual_milestones, usual_warmup};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::PathBuf;

/// Most bytes of an option file; the longest known ones have 20 KB.
pub const MOST_FILE_BYTES: usize = 1 << 20;
/// Least similarity (Jaro-Winkler) of a key that is suggested for an unknown one.
const ALIKE: f64 = 0.8;
/// LQ side of Nano's published recipe, used unless a set stores smaller patches.
const LQ_SIZE: u64 = 128;

/// A value for every key. Where the values came from is no part of a comparison.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Vec<Value>,
    /// Of each value, in the order of the keys.
    origins: Vec<Origin>,
    /// The option file, as messages name it; empty if none was named.
    file: String,
    /// The text of the recipe that `data.degrade` means by [`IMPORTED`].
    recipe: Option<String>,
}

/// The value of `data.degrade` for a recipe that was made of another trainer's file.
pub const IMPORTED: &str = "imported";
/// The value of `data.degrade` that turns degradation off.
pub const NO_RECIPE: &str = "none";

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The table of keys, a flag, `--set` or a preset.
    Program,
    /// This line of a file in paragon's own format.
    Line(usize),
    /// An option file of another trainer.
    Imported,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Settings) -> bool {
        self.values == other.values
    }
}

/// Index of a key in the table.
pub fn index(path: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.path == path)
}

/// The key of a path.
///
/// # Errors
/// Names the key that was most likely meant.
pub fn find(path: &str) -> Result<usize> {
    index(path).ok_or_else(|| {
        let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_lowercase();
        // the last part of a path counts more than the sections before it
        let alike = |key: &Key| {
            strsim::jaro_winkler(&last(path), &last(key.path))
                + 0.1 * strsim::jaro_winkler(path, key.path)
        };
        let best = KEYS
            .iter()
            .max_by(|a, b| alike(a).total_cmp(&alike(b)))
            .filter(|key| alike(key) > ALIKE + 0.05);
        match best {
            Some(key) => anyhow!("unknown key {}; did you mean {}?", brief(path), key.path),
            None => anyhow!(
                "unknown key {}; `paragon config explain` lists all",
                brief(path)
            ),
        }
    })
}

/// Whether keys begin with this path.
fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// Reads `KEY=VALUE`, the value in YAML.
///
/// # Errors
/// An unknown key, or a value it cannot hold.
pub fn parse_assignment(text: &str) -> Result<(usize, Value)> {
    let (path, value) = text.split_once('=').with_context(|| {
        format!(
            "'{}' has no '='; write it as train.total_iter=1000",
            brief(text)
        )
    })?;
    let key = find(path.trim())?;
    let node = parse(value).map_err(|error| anyhow!("'{}' is no YAML: {error:#}", brief(value)))?;
    Ok((key, accept(key, &node)?))
}

fn accept(key: usize, node: &Node) -> Result<Value> {
    let key = &KEYS[key];
    let value = key
        .kind
        .accept(node)
        .map_err(|text| anyhow!("{}: {text}", key.path))?;
    ensure!(
        value != Value::Null || key.unset.is_some(),
        "{}: expected {}, found nothing",
        key.path,
        key.kind.expected()
    );
    Ok(value)
}

/// The text of an option file.
fn text_of(content: &[u8]) -> Result<&str> {
    ensure!(
        content.len() <= MOST_FILE_BYTES,
        "it is longer than {} MiB; expected an option file in YAML, which has some KB",
        MOST_FILE_BYTES >> 20
    );
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    match std::str::from_utf8(content) {
        Ok(text) if !text.contains('\0') => Ok(text),
        found => {
            if let Some(what) = another_kind(content) {
                bail!("it is {what}; expected an option file in YAML, as UTF-8 text");
            }
            let good = found.map_or_else(
                |error| error.valid_up_to(),
                |text| text.find('\0').unwrap_or_default(),
            );
            let line = 1 + content[..good].iter().filter(|b| **b == b'\n').count();
            bail!("line {line}: bytes that are no UTF-8 text; expected an option file in YAML")
        }
    }
}

/// The kind of a file that is not text.
fn another_kind(content: &[u8]) -> Option<&'static str> {
    let found = look(&content[..content.len().min(HEAD_BYTES)])?;
    (!["a text file", "JSON text", "a script", "an empty file"].contains(&found.what))
        .then_some(found.what)
}

/// Extends the error of a file that is not YAML by the language or kind of file that it seems to
/// be.
fn in_another_language(text: &str, error: anyhow::Error) -> anyhow::Error {
    match look_at_options(text)
        .map(|name| format!("this looks like {name}"))
        .or(another_kind(text.as_bytes()).map(|w| format!("it is {w}")))
    {
        Some(what) => anyhow!(
            "{what}, and paragon reads YAML ({error:#}); `paragon config init` writes a file to start from"
        ),
        None => error,
    }
}

impl Default for Settings {
    fn default() -> Settings {
        let default = |key: &Key| {
            parse(key.default)
                .ok()
                .and_then(|node| key.kind.accept(&node).ok())
                .unwrap_or(Value::Null)
        };
        Settings {
            values: KEYS.iter().map(default).collect(),
            origins: vec![Origin::Program; KEYS.len()],
            file: String::new(),
            recipe: None,
        }
    }
}

impl Settings {
    /// Sets the value of a key, given by its index in the table.
    pub fn set(&mut self, key: usize, value: Value) {
        self.set_from(key, value, Origin::Program);
    }

    fn set_from(&mut self, key: usize, value: Value, origin: Origin) {
        if let (Some(place), Some(from)) = (self.values.get_mut(key), self.origins.get_mut(key)) {
            (*place, *from) = (value, origin);
        }
    }

    /// Where a value came from, as the beginning of a message: `FILE: line 3: `, or nothing.
    /// The key and where the option file has it, for messages: `train.scheduler.milestones in
    /// a.yml, line 12`. `None`: the value is not from a file.
    pub fn place_in_file(&self, path: &str) -> Option<String> {
        let key = KEYS.iter().position(|key| key.path == path)?;
        match self.origins.get(key)? {
            Origin::Line(line) => Some(format!("{path} in {}, line {line}", self.file)),
            Origin::Imported => Some(format!("{path} in {}", self.file)),
            _ => None,
        }
    }

    fn place(&self, key: usize) -> String {
        let file = if self.file.is_empty() {
            String::new()
        } else {
            format!("{}: ", self.file)
        };
        match self.origins.get(key) {
            Some(Origin::Line(line)) => format!("{file}line {line}: "),
            Some(Origin::Imported) => file,
            _ => String::new(),
        }
    }

    /// [`Settings::take`] of a file whose name messages give.
    ///
    /// # Errors
    /// Those of [`Settings::take`], after the file's name.
    pub fn take_file(&mut self, name: &str, content: &[u8]) -> Result<Option<import::Imported>> {
        self.file = name.to_string();
        self.take(content).with_context(|| name.to_string())
    }

    /// Sets the value of a key, given by a path that is known to exist; another path is ignored.
    pub fn put(&mut self, path: &str, value: Value) {
        if let Some(key) = index(path) {
            self.set(key, value);
        }
    }

    /// Reads the content of an option file, paragon's or traiNNer-redux's. For the latter, returns
    /// which values were honoured and which were not.
    ///
    /// # Errors
    /// Content that is no YAML or too large; a key or value that cannot be meant, with its line.
    pub fn take(&mut self, content: &[u8]) -> Result<Option<import::Imported>> {
        let text = text_of(content)?;
        let root = parse(text).map_err(|error| in_another_language(text, error))?;
        if import::is_theirs(&root) {
            let imported = import::import(&root)?;
            imported.apply(self);
            return Ok(Some(imported));
        }
        match self.read(&root) {
            Err(error) if !matches!(root.data, Data::Map(_)) => {
                Err(in_another_language(text, error))
            }
            read => read.map(|()| None),
        }
    }

    /// Reads a file of paragon's own format.
    ///
    /// # Errors
    /// Names the line, the key, what it may be, and for an unknown one the key that was likely
    /// meant.
    pub fn read(&mut self, root: &Node) -> Result<()> {
        match &root.data {
            Data::Null => Ok(()),
            Data::Map(entries) => self.read_section("", entries),
            _ => bail!("line {}: expected keys and values", root.line),
        }
    }

    fn read_section(&mut self, section: &str, entries: &[(String, Node)]) -> Result<()> {
        for (name, node) in entries {
            let path = if section.is_empty() {
                name.clone()
            } else {
                format!("{section}.{name}")
            };
            let line = || format!("line {}", node.line);
            match &node.data {
                Data::Map(inner) if is_section(&path) => self.read_section(&path, inner)?,
                Data::Null if is_section(&path) => {}
                _ if is_section(&path) => {
                    bail!("line {}: {path} is a section; it holds keys", node.line)
                }
                _ => {
                    let key = find(&path).with_context(line)?;
                    let value = accept(key, node).with_context(line)?;
                    self.set_from(key, value, Origin::Line(node.line));
                }
            }
        }
        Ok(())
    }

    /// The value of a key; `Value::Null` for a path that is not in the table.
    pub fn value(&self, path: &str) -> &Value {
        index(path)
            .and_then(|key| self.values.get(key))
            .unwrap_or(&Value::Null)
    }

    /// A whole number, where there is one.
    pub fn whole(&self, path: &str) -> Option<u64> {
        match self.value(path) {
            Value::Whole(value) => Some(*value),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// A number, where there is one.
    pub fn number(&self, path: &str) -> Option<f64> {
        match self.value(path) {
            Value::Number(value) => Some(*value),
            _ => None,
        }
    }

    /// Whether a key is on.
    pub fn is_on(&self, path: &str) -> bool {
        *self.value(path) == Value::Bool(true)
    }

    /// Text, where there is one.
    pub fn text(&self, path: &str) -> Option<&str> {
        match self.value(path) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A path, where there is one.
    pub fn path(&self, path: &str) -> Option<PathBuf> {
        match self.value(path) {
            Value::Path(path) => Some(path.clone()),
            _ => None,
        }
    }

    /// The paths of a list.
    pub fn paths(&self, path: &str) -> Vec<PathBuf> {
        self.list(path, |value| {
            if let Value::Path(path) = value {
                Some(path.clone())
            } else {
                None
            }
        })
    }

    /// The numbers of a list.
    pub fn numbers(&self, path: &str) -> Vec<f64> {
        self.list(path, |value| {
            if let Value::Number(value) = value {
                Some(*value)
            } else {
                None
            }
        })
    }

    fn list<'a, T>(&'a self, path: &str, of: impl Fn(&'a Value) -> Option<T>) -> Vec<T> {
        let Value::List(list) = self.value(path) else {
            return Vec::new();
        };
        list.iter().filter_map(of).collect()
    }

    fn needed<T>(&self, path: &str, value: Option<T>) -> Result<T> {
        value.with_context(|| {
            format!("{path} has no value; `paragon config explain {path}` shows the allowed ones")
        })
    }

    /// A whole number that must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn count(&self, path: &str) -> Result<u64> {
        self.needed(path, self.whole(path))
    }

    /// The recipe that `data.degrade` names; `None` if it names none or turns degradation off.
    ///
    /// # Errors
    /// The recipe cannot be read.
    pub fn degrade(&self) -> Result<Option<Recipe>> {
        let recipe = match (self.text("data.degrade"), &self.recipe) {
            (None | Some(NO_RECIPE), _) => return Ok(None),
            (Some(IMPORTED), Some(text)) => Recipe::parse(text, &self.file),
            (Some(name), _) => Recipe::load(name),
        };
        let place = index("data.degrade").map_or_else(String::new, |key| self.place(key));
        let recipe = recipe.map_err(|error| anyhow!("{place}data.degrade: {error:#}"))?;
        Ok(Some(recipe))
    }

    /// The text of the recipe that was made of another trainer's file.
    pub fn imported_recipe(&self) -> Option<&str> {
        self.recipe.as_deref()
    }

    fn real(&self, path: &str) -> Result<f64> {
        self.needed(path, self.number(path))
    }

    /// The configuration of a run on patches of LQ side `stored_lq_size` at `scale`.
    ///
    /// # Errors
    /// Those of [`Settings::network`], or a scale that is not the one asked for.
    pub fn train_config(&self, scale: usize, stored_lq_size: usize) -> Result<TrainConfig> {
        // first: where the network is unknown, a wrong scale is not the user's problem yet
        let network = self.network(scale)?;
        if let Some(wanted) = self.whole("scale") {
            ensure!(
                wanted == scale as u64,
                "the configuration says scale {wanted} and the shards have {scale}; they must agree"
            );
        }
        let total_iter = self.count("train.total_iter")?;
        let wholes = |value: &Value| {
            if let Value::Whole(value) = value {
                Some(*value)
            } else {
                None
            }
        };
        let decay = match self.text("train.scheduler.type") {
            Some("MultiStepLR") => Decay::MultiStep {
                milestones: match self.value("train.scheduler.milestones") {
                    Value::Null => usual_milestones(total_iter).to_vec(),
                    _ => self.list("train.scheduler.milestones", wholes),
                },
                gamma: self.real("train.scheduler.gamma")?,
            },
            Some("CosineAnnealingLR") => Decay::Cosine {
                total: total_iter,
                eta_min: self.real("train.scheduler.eta_min")?,
            },
            _ => Decay::Constant,
        };
        let optimizer = if self.text("train.optim_g.type") == Some("Adam") {
            OptimizerKind::Adam
        } else {
            OptimizerKind::AdamW
        };
        let usual_decay = if optimizer == OptimizerKind::Adam {
            0.0
        } else {
            1e-4
        };
        let &[beta1, beta2] = self.numbers("train.optim_g.betas").as_slice() else {
            bail!("train.optim_g.betas takes two numbers")
        };
        let losses = |value: &Value| {
            if let Value::Loss(term) = value {
                Some(*term)
            } else {
                None::<LossTerm>
            }
        };
        Ok(TrainConfig {
            network,
            lq_size: self
                .whole("data.lq_size")
                .unwrap_or(LQ_SIZE.min(stored_lq_size as u64)) as usize,
            batch_size: self.count("data.batch_size_per_gpu")? as usize,
            accum_iter: self.whole("data.accum_iter").unwrap_or(1) as usize,
            use_hflip: self.is_on("data.use_hflip"),
            use_rot: self.is_on("data.use_rot"),
            losses: self.list("train.losses", losses),
            optimizer,
            betas: (beta1, beta2),
            epsilon: self.real("train.optim_g.eps")?,
            weight_decay: self
                .number("train.optim_g.weight_decay")
                .unwrap_or(usual_decay),
            grad_clip: self.real("train.grad_clip")?,
            schedule: Schedule {
                base_lr: self.real("train.optim_g.lr")?,
                warmup: self
                    .whole("train.warmup_iter")
                    .unwrap_or_else(|| usual_warmup(total_iter)),
                decay,
            },
            total_iter,
            ema_decay: self.real("train.ema_decay")?,
            ema_power: self.real("train.ema_power")?,
            seed: self.count("manual_seed")?,
            window: None,
            degrade: self.degrade()?.map(|recipe| recipe.canonical().to_string()),
        })
    }
}

#[cfg(test)]
mod tests;
