//! Imports an unchanged option file of traiNNer-redux or of its relatives (BasicSR, Real-ESRGAN).
//! Every value of the file ends in one of four places: a key of paragon, the values without an
//! effect here (they ask for what paragon does anyway), the list of values that are not honoured
//! (with the reason and the closest alternative), or an error with the line. Depends on the table
//! of keys and the YAML tree. The meaning of the other trainers' keys is in the tables of `theirs`.

mod degradation;
mod effect;
mod network;
mod report;

use super::scalar::{boolean, whole};
pub use super::theirs::MARKS;
use super::theirs::{DEGRADATION, REASONS, SAME, THEIR_DEFAULTS};
use super::value::{Kind, Value, loss_kind};
use super::yaml::{Data, Node};
use super::{IMPORTED, KEYS, Origin, Settings, index};
use crate::plan::LossKind;
use crate::support::text::brief;
use crate::train::LossTerm;
use anyhow::{Result, anyhow, bail, ensure};
pub use degradation::ImportedRecipe;
use report::shown;

/// The values of an imported file, and which of them were honoured.
#[derive(Debug, Default)]
pub struct Imported {
    /// Keys of ours, by their place in the table.
    pub values: Vec<(usize, Value)>,
    /// Their key and ours.
    pub honoured: Vec<(String, &'static str)>,
    /// Their key and its value, where the value has no effect here: it asks for what this program
    /// does anyway, or has no effect in their program either.
    pub without_effect: Vec<(String, String)>,
    /// Their key, its value, and why it is not honoured.
    pub ignored: Vec<(String, String, String)>,
    /// Ours, and what was taken since the file does not say it.
    pub assumed: Vec<(&'static str, String)>,
    /// Their keys of a degradation on the fly, and the values, until all are known.
    degradation: Vec<(String, String)>,
    /// The degradation recipe of a file that degrades on the fly.
    pub recipe: Option<ImportedRecipe>,
    /// The entry that shows that the file's recipe makes its LQ during training.
    on_the_fly: Option<String>,
    /// The keys of `network_g`, until its type is known.
    network_keys: Vec<(String, Node)>,
    /// The HR patch, until scale and LQ patch are known.
    gt_size: Option<Node>,
    /// Whether gradients are clipped, and the norm they are clipped at, until both are known.
    clips: bool,
    clip_norm: Option<Node>,
    /// Losses, before they become one value.
    losses: Vec<Value>,
}

/// Whether a file is one of theirs.
pub fn is_theirs(root: &Node) -> bool {
    MARKS.iter().any(|mark| root.get(mark).is_some())
}

/// Whether a key configures a degradation during training.
fn degrades(path: &str) -> bool {
    path.split('.').any(|part| {
        let name = part.trim_end_matches(|c: char| c.is_ascii_digit());
        DEGRADATION.contains(&name) || part.starts_with("high_order_degradation")
    })
}

/// Whether a model or data set of this name makes the LQ while it trains: `RealESRGANModel`,
/// `RealESRGANDataset`, `otf`.
fn makes_lq(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["realesrgan", "realesrnet", "bsrgan", "otf"]
        .iter()
        .any(|part| name.contains(part))
        && !name.contains("paired")
}

/// Whether a file's recipe makes its LQ while it trains.
pub(super) fn degrades_on_the_fly(root: &Node) -> bool {
    let text = |path: &str| {
        let found = path.split('.').try_fold(root, |node, part| node.get(part));
        found.and_then(effect::scalar).unwrap_or_default()
    };
    ["model_type", "datasets.train.type"]
        .iter()
        .any(|path| makes_lq(text(path)))
        || boolean(text("high_order_degradation")) == Some(true)
}

fn loss_of(node: &Node) -> Option<LossKind> {
    let Some(Data::Scalar(name)) = node.get("type").map(|n| &n.data) else {
        return None;
    };
    loss_kind(name).ok()
}

/// `train.pixel_opt` and the like, which name one loss each in older files.
fn is_old_loss(path: &str, node: &Node) -> bool {
    path.strip_prefix("train.")
        .is_some_and(|name| name.ends_with("_opt") && !name.contains('.'))
        && loss_of(node).is_some()
}

/// Reads one of their files.
///
/// # Errors
/// A value that the key cannot hold, with its line; no loss that can be trained on.
pub fn import(root: &Node) -> Result<Imported> {
    let mut out = Imported::default();
    out.walk("", root)?;
    out.finish(root)?;
    Ok(out)
}

impl Imported {
    /// Every value of the file, one after the other.
    fn walk(&mut self, path: &str, node: &Node) -> Result<()> {
        if self.special(path, node)? {
            return Ok(());
        }
        match &node.data {
            Data::Map(entries) if !entries.is_empty() => {
                for (name, inner) in entries {
                    self.walk(
                        &if path.is_empty() {
                            name.clone()
                        } else {
                            format!("{path}.{name}")
                        },
                        inner,
                    )?;
                }
                Ok(())
            }
            _ => self.leaf(path, node),
        }
    }

    fn leaf(&mut self, path: &str, node: &Node) -> Result<()> {
        if path.starts_with("network_g.") {
            self.network_keys.push((path.to_string(), node.clone()));
            return Ok(());
        }
        if degrades(path) {
            self.degradation.push((path.to_string(), shown(node)));
            return Ok(());
        }
        if let Some((_, ours)) = SAME.iter().find(|(theirs, _)| *theirs == path) {
            return self.take(path, ours, node);
        }
        let begins = |start: &str| {
            path.strip_prefix(start)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
        };
        match REASONS.iter().find(|(start, _)| begins(start)) {
            Some((_, reason)) => self.ignore(path, node, *reason),
            None => self.ignore(path, node, "unknown to this program"),
        }
        Ok(())
    }

    fn ignore(&mut self, path: &str, node: &Node, reason: impl Into<String>) {
        self.ignored
            .push((path.to_string(), shown(node), reason.into()));
    }

    fn take(&mut self, theirs: &str, ours: &'static str, node: &Node) -> Result<()> {
        let Some(key) = index(ours) else {
            bail!("{ours} is no key")
        };
        let value = KEYS[key]
            .kind
            .accept(node)
            .map_err(|text| anyhow!("line {}: {theirs}: {text}", node.line))?;
        self.put(theirs, ours, value);
        Ok(())
    }

    fn put(&mut self, theirs: &str, ours: &'static str, value: Value) {
        // `~` counts as a missing key; `finish` sets the defaults of those
        if value != Value::Null {
            self.values.extend(index(ours).map(|key| (key, value)));
        }
        self.honoured.push((theirs.to_string(), ours));
    }

    fn has(&self, ours: &str) -> bool {
        index(ours).is_some_and(|key| self.values.iter().any(|(k, _)| *k == key))
    }

    /// Handles keys whose meaning differs from paragon's. True: the whole value is handled.
    fn special(&mut self, path: &str, node: &Node) -> Result<bool> {
        let text = if let Data::Scalar(text) = &node.data {
            text.as_str()
        } else {
            ""
        };
        match path {
            "train.losses" => self.list_of_losses(node)?,
            _ if is_old_loss(path, node) => self.loss(path, node)?,
            // needs scale and lq_size: resolved in `finish`
            "datasets.train.gt_size" if node.data != Data::Null => self.gt_size = Some(node.clone()),
            "train.grad_clip_max_norm" if node.data != Data::Null => self.clip_norm = Some(node.clone()),
            "train.grad_clip" => {
                self.clips = boolean(text) == Some(true);
                return Ok(false);
            }
            "model_type" | "datasets.train.type" if makes_lq(text) => {
                self.on_the_fly = Some(format!("{path}: {}", brief(text)));
                return Ok(false);
            }
            "train.warmup_iter" if text.parse::<f64>().is_ok_and(|v| v < 0.0) => self.put(path, "train.warmup_iter", Value::Whole(0)),
            "train.warmup_iter" => self.take(path, "train.warmup_iter", node)?,
            "train.optim_g.type" => match Kind::accept(&KEYS[self.at("train.optim_g.type")?].kind, node) {
                Ok(value) => self.put(path, "train.optim_g.type", value),
                Err(_) => self.ignore(path, node, "AdamW and Adam are there; AdamW is taken with this learning rate"),
            },
            "train.scheduler.type" => match Kind::accept(&KEYS[self.at("train.scheduler.type")?].kind, node) {
                Ok(value) => self.put(path, "train.scheduler.type", value),
                Err(_) if text.starts_with("Cosine") => {
                    self.put(path, "train.scheduler.type", Value::Text("CosineAnnealingLR".into()));
                    self.ignore(path, node, "taken without restarts: one half cosine over train.total_iter");
                }
                Err(_) => self.ignore(path, node, "MultiStepLR, CosineAnnealingLR and constant are there; the rate stays constant"),
            },
            "train.scheduler.eta_min" => self.take(path, "train.scheduler.eta_min", node)?,
            "train.scheduler.T_max" => self.ignore(path, node, "the cosine always ends with the run, at train.total_iter"),
            "val.val_freq" => self.take(path, "val.val_freq", node)?,
            "val.val_enabled" => {
                match KEYS[self.at("data.use_rot")?].kind.accept(node).map_err(|e| anyhow!("line {}: {path}: {e}", node.line))? {
                    Value::Bool(false) => self.put(path, "val.dataset", Value::Path("none".into())),
                    _ => self.honoured.push((path.to_string(), "val.dataset")),
                }
            }
            _ if path.starts_with("val.metrics.") && path.ends_with(".crop_border") => self.crop_border(path, node)?,
            _ if path.starts_with("val.metrics.") && path.ends_with(".type") && ["calculate_psnr", "calculate_ssim"].contains(&text) => {
                self.honoured.push((path.to_string(), "val.dataset"));
            }
            _ if path.starts_with("val.metrics.") && path.ends_with(".type") => {
                self.ignore(path, node, "not measured; PSNR and SSIM, on RGB and Y, are");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn at(&self, ours: &str) -> Result<usize> {
        index(ours).ok_or_else(|| anyhow!("{ours} is no key"))
    }

    /// All metrics share one border: the first counts.
    fn crop_border(&mut self, path: &str, node: &Node) -> Result<()> {
        let key = self.at("val.crop_border")?;
        let value = KEYS[key]
            .kind
            .accept(node)
            .map_err(|text| anyhow!("line {}: {path}: {text}", node.line))?;
        match self
            .values
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, first)| *first == value)
        {
            None => self.put(path, "val.crop_border", value),
            Some(true) => self.honoured.push((path.to_string(), "val.crop_border")),
            Some(false) => self.ignore(
                path,
                node,
                "all metrics share one border, val.crop_border; that of the first metric is taken",
            ),
        }
        Ok(())
    }

    fn list_of_losses(&mut self, node: &Node) -> Result<()> {
        let Data::List(list) = &node.data else {
            bail!(
                "line {}: train.losses: expected a list of losses",
                node.line
            )
        };
        for (i, loss) in list.iter().enumerate() {
            self.loss(&format!("train.losses[{i}]"), loss)?;
        }
        ensure!(
            !self.losses.is_empty(),
            "line {}: train.losses holds none that can be trained on (l1loss, charbonnierloss, mseloss, ssimloss, mssimloss)",
            node.line
        );
        Ok(())
    }

    /// `{type: l1loss, loss_weight: 1.0}`
    fn loss(&mut self, path: &str, loss: &Node) -> Result<()> {
        let Data::Map(entries) = &loss.data else {
            bail!("line {}: {path}: expected type and loss_weight", loss.line)
        };
        let Some(kind) = loss_of(loss) else {
            self.ignore(
                path,
                loss,
                "not available; training goes on with the other losses (l1, charbonnier, mse, ssim and mssim are there)",
            );
            return Ok(());
        };
        let mut weight = 1.0;
        for (key, value) in entries {
            let inner = format!("{path}.{key}");
            match key.as_str() {
                "type" => self.honoured.push((inner, "train.losses")),
                "loss_weight" => {
                    let accepted = Kind::NotNegative
                        .accept(value)
                        .map_err(|text| anyhow!("line {}: {inner}: {text}", value.line))?;
                    weight = if let Value::Number(number) = accepted {
                        number
                    } else {
                        weight
                    };
                    self.honoured.push((inner, "train.losses"));
                }
                _ => self.ignore(
                    &inner,
                    value,
                    "a loss has a weight and nothing else; it is computed as docs/training.md says",
                ),
            }
        }
        ensure!(
            (weight as f32).is_finite(),
            "line {}: {path}.loss_weight: {weight} is too large",
            loss.line
        );
        self.losses.push(Value::Loss(LossTerm {
            kind,
            weight: weight as f32,
        }));
        Ok(())
    }

    /// Derives the LQ patch from the HR patch (gt_size) where the file has no lq_size.
    fn resolve_gt_size(&mut self, root: &Node) -> Result<()> {
        let (path, ours) = ("datasets.train.gt_size", "data.lq_size");
        let Some(node) = &self.gt_size.take() else {
            return Ok(());
        };
        let side = if let Data::Scalar(text) = &node.data {
            whole(text)
        } else {
            None
        };
        let Some(side) = side else {
            bail!(
                "line {}: {path}: expected a whole number from 1, found '{}'",
                node.line,
                shown(node)
            )
        };
        let scale = root
            .get("scale")
            .and_then(|n| {
                if let Data::Scalar(text) = &n.data {
                    whole(text)
                } else {
                    None
                }
            })
            .filter(|s| *s > 0);
        let key = self.at(ours)?;
        let given = self
            .values
            .iter()
            .rfind(|(k, _)| *k == key)
            .map(|(_, value)| value.clone());
        match (scale, given) {
            (None, Some(_)) => self.ignore(path, node, "lq_size is there and counts"),
            (None, None) => self.ignore(
                path,
                node,
                "the file has no scale to divide it by; give data.lq_size (--lq-size)",
            ),
            (Some(scale), Some(Value::Whole(lq))) if lq.checked_mul(scale) == Some(side) => {
                self.honoured.push((path.to_string(), ours))
            }
            (Some(scale), Some(lq)) => {
                let reason = format!(
                    "lq_size is there and counts: it is {}, and gt_size at scale {scale} would be {}",
                    lq.yaml(),
                    side / scale
                );
                self.ignore(path, node, reason);
            }
            (Some(scale), None) => {
                let lq = (side / scale).to_string();
                let value = KEYS[key].kind.read(&lq).map_err(|text| {
                    anyhow!("line {}: {path} at scale {scale}: {text}", node.line)
                })?;
                if side % scale == 0 {
                    self.put(path, ours, value);
                } else {
                    self.values.push((key, value));
                    self.ignore(
                        path,
                        node,
                        format!(
                            "{side} is no multiple of the scale, {scale}; data.lq_size is {lq}"
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    /// The clipping norm is used only where clipping is on.
    fn resolve_clip_norm(&mut self) -> Result<()> {
        let path = "train.grad_clip_max_norm";
        match self.clip_norm.take() {
            Some(node) if self.clips => self.take(path, "train.grad_clip", &node),
            // without clipping, the norm has no effect in their program either
            Some(node) => {
                self.without_effect.push((path.to_string(), shown(&node)));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Keys of a degradation: they become a recipe where it is in use, and have no effect where it is
    /// turned off.
    fn resolve_degradation(&mut self, root: &Node) -> Result<()> {
        let switch = |on: bool| {
            let says = move |(key, value): &(String, String)| {
                key == "high_order_degradation" && boolean(value) == Some(on)
            };
            self.degradation.iter().any(says)
        };
        let (on, off) = (switch(true), switch(false));
        if self.on_the_fly.is_none() && (on || !off) {
            self.on_the_fly = self
                .degradation
                .first()
                .map(|(key, value)| format!("{key}: {value}"));
        }
        if self.on_the_fly.is_none() {
            self.without_effect.append(&mut self.degradation);
            return Ok(());
        }
        let mut recipe = degradation::recipe(root, &std::mem::take(&mut self.degradation))?;
        let ours = "data.degrade";
        let taken = recipe.taken.iter().map(|key| (key.clone(), ours));
        self.honoured.extend(taken);
        self.without_effect.append(&mut recipe.without_effect);
        self.ignored.extend(recipe.missing.iter().cloned());
        if recipe.text.is_some() {
            self.values
                .push((self.at(ours)?, Value::Text(IMPORTED.into())));
        }
        self.recipe = Some(recipe);
        Ok(())
    }

    /// Resolves what depends on several keys, and fills in the defaults of the other trainer.
    fn finish(&mut self, root: &Node) -> Result<()> {
        self.resolve_network(root)?;
        self.resolve_gt_size(root)?;
        self.resolve_clip_norm()?;
        self.resolve_degradation(root)?;
        if !self.losses.is_empty() {
            self.values.push((
                self.at("train.losses")?,
                Value::List(std::mem::take(&mut self.losses)),
            ));
        }
        ensure!(
            self.has("train.losses"),
            "the file has no train.losses; older files name losses otherwise: write them as a list of {{type: l1loss, loss_weight: 1.0}}"
        );
        ensure!(
            self.has("train.total_iter"),
            "the file has no train.total_iter"
        );
        // PyTorch's AdamW decays by default, its Adam does not
        let adam = self
            .values
            .contains(&(self.at("train.optim_g.type")?, Value::Text("Adam".into())));
        for (ours, default) in THEIR_DEFAULTS {
            if self.has(ours) {
                continue;
            }
            let default = if ours == "train.optim_g.weight_decay" && !adam {
                "0.01"
            } else {
                default
            };
            let key = self.at(ours)?;
            let value = KEYS[key]
                .kind
                .read(default)
                .map_err(|text| anyhow!("{ours}: {text}"))?;
            self.values.push((key, value));
            self.assumed.push((KEYS[key].path, default.to_string()));
        }
        self.take_out_what_has_no_effect(root);
        Ok(())
    }

    /// Writes the values of the file into `settings`.
    pub fn apply(&self, settings: &mut Settings) {
        for (key, value) in &self.values {
            settings.set_from(*key, value.clone(), Origin::Imported);
        }
        settings.recipe = self.recipe.as_ref().and_then(|recipe| recipe.text.clone());
    }
}

#[cfg(test)]
mod tests;
