//! Taking an option file of traiNNer-redux or of its relatives (BasicSR, Real-ESRGAN) as it is.
//! Every value of the file ends in one of three places: a key of ours, a list of what is not
//! honoured (with the reason and the nearest thing there is), or an error that names the line.
//! Depends on the table of keys and the YAML tree; what the other trainers' keys mean is in the
//! tables of `theirs`.

pub use super::theirs::MARKS;
use super::theirs::{DEGRADATION, MADE_IN_SHARDS, REASONS, SAME, THEIR_DEFAULTS};
use super::value::{Kind, Value, loss_kind, whole};
use super::yaml::{Data, Node};
use super::{KEYS, Settings, index};
use crate::model::Network;
use crate::plan::LossKind;
use crate::support::text::{brief, one_line};
use crate::train::LossTerm;
use anyhow::{Result, anyhow, bail, ensure};
use std::fmt::Write;

/// Values that the report lists one by one; an option file has some hundred.
const MOST_LINES: usize = 1000;
/// Keys that the line on degradation names.
const MOST_NAMES: usize = 60;

/// What a file said and what became of it.
#[derive(Debug, Default)]
pub struct Imported {
    /// Keys of ours, by their place in the table.
    pub values: Vec<(usize, Value)>,
    /// Their key and ours.
    pub honoured: Vec<(String, &'static str)>,
    /// Their key, its value, and why it is not honoured.
    pub ignored: Vec<(String, String, String)>,
    /// Ours, and what was taken since the file does not say it.
    pub assumed: Vec<(&'static str, String)>,
    /// Their keys of a degradation on the fly, and the values.
    pub degradation: Vec<(String, String)>,
    /// What of the file says that its LQ is made on the fly.
    on_the_fly: Option<String>,
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

/// Whether a key belongs to a degradation on the fly.
fn degrades(path: &str) -> bool {
    path.split('.').any(|part| {
        let name = part.trim_end_matches(|c: char| c.is_ascii_digit());
        DEGRADATION.contains(&name) || part.starts_with("high_order_degradation")
    })
}

/// A value in one short line, for the list.
fn shown(node: &Node) -> String {
    fn write(node: &Node, out: &mut String) {
        // more than an error shows of a value is not written in the first place
        if out.len() > 1000 {
            return;
        }
        match &node.data {
            Data::Null => out.push('~'),
            Data::Scalar(text) => out.push_str(text),
            Data::List(list) => {
                out.push('[');
                for (i, node) in list.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    write(node, out);
                }
                out.push(']');
            }
            Data::Map(entries) => {
                out.push('{');
                for (i, (key, node)) in entries.iter().enumerate() {
                    let _ = write!(out, "{}{key}: ", if i > 0 { ", " } else { "" });
                    write(node, out);
                }
                out.push('}');
            }
        }
    }
    let mut out = String::new();
    write(node, &mut out);
    brief(out)
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
        // nothing says nothing: what a missing key means is settled at the end
        if value != Value::Null {
            self.values.extend(index(ours).map(|key| (key, value)));
        }
        self.honoured.push((theirs.to_string(), ours));
    }

    fn has(&self, ours: &str) -> bool {
        index(ours).is_some_and(|key| self.values.iter().any(|(k, _)| *k == key))
    }

    /// Keys whose meaning differs from ours; true when the whole value is dealt with.
    fn special(&mut self, path: &str, node: &Node) -> Result<bool> {
        let text = if let Data::Scalar(text) = &node.data {
            text.as_str()
        } else {
            ""
        };
        match path {
            "train.losses" => self.list_of_losses(node)?,
            _ if is_old_loss(path, node) => self.loss(path, node)?,
            // needs scale and lq_size: settled at the end
            "datasets.train.gt_size" if node.data != Data::Null => self.gt_size = Some(node.clone()),
            "train.grad_clip_max_norm" if node.data != Data::Null => self.clip_norm = Some(node.clone()),
            "train.grad_clip" => {
                self.clips = super::value::boolean(text) == Some(true);
                return Ok(false);
            }
            "network_g.type" if !text.is_empty() => self.network(path, node, text)?,
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

    /// A network that this program does not know stays in the settings, so that training it is
    /// refused; the list says so.
    fn network(&mut self, path: &str, node: &Node, name: &str) -> Result<()> {
        let Err(error) = Network::new(name, 2) else {
            return self.take(path, "network_g.type", node);
        };
        self.values
            .push((self.at("network_g.type")?, Value::Text(name.to_string())));
        let reason = format!(
            "{error:#}; training is refused until network_g.type (--network) names one that can be trained"
        );
        self.ignored
            .insert(0, (path.to_string(), shown(node), reason));
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

    /// The HR patch, which becomes the LQ patch where the file has none.
    fn settle_gt_size(&mut self, root: &Node) -> Result<()> {
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

    /// The norm counts where clipping is on.
    fn settle_clip_norm(&mut self) -> Result<()> {
        let path = "train.grad_clip_max_norm";
        match self.clip_norm.take() {
            Some(node) if self.clips => self.take(path, "train.grad_clip", &node),
            Some(node) => {
                self.ignore(path, &node, "train.grad_clip is not `true`; one key holds the norm here, train.grad_clip (--grad-clip)");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Keys of a degradation: one line where it is in use, ordinary ones where it is turned off.
    fn settle_degradation(&mut self) {
        let switch = |on: bool| {
            let says = move |(key, value): &(String, String)| {
                key == "high_order_degradation" && super::value::boolean(value) == Some(on)
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
            self.ignored.extend(
                self.degradation
                    .drain(..)
                    .map(|(key, value)| (key, value, MADE_IN_SHARDS.to_string())),
            );
        }
    }

    /// What depends on several keys, and what the file leaves to defaults.
    fn finish(&mut self, root: &Node) -> Result<()> {
        self.settle_gt_size(root)?;
        self.settle_clip_norm()?;
        self.settle_degradation();
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
        Ok(())
    }

    /// Gives settings what the file says.
    pub fn apply(&self, settings: &mut Settings) {
        for (key, value) in &self.values {
            settings.set(*key, value.clone());
        }
    }

    /// The list for the user.
    pub fn report(&self, file: &str) -> String {
        let left = self.ignored.len() + self.degradation.len();
        let mut out = format!(
            "{file} is a traiNNer-redux option file: {} values honoured, {left} not",
            self.honoured.len()
        );
        if let Some(sign) = &self.on_the_fly {
            let names: Vec<&str> = self
                .degradation
                .iter()
                .take(MOST_NAMES)
                .map(|(key, _)| key.as_str())
                .collect();
            let more = self.degradation.len() - names.len();
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let _ = write!(
                out,
                "\n  this recipe degrades on the fly ({}); {MADE_IN_SHARDS}",
                one_line(sign)
            );
            if !names.is_empty() {
                let _ = write!(
                    out,
                    "\n      not honoured with it, {} values: {}{more}",
                    self.degradation.len(),
                    one_line(names.join(", "))
                );
            }
        }
        for (path, value, reason) in self.ignored.iter().take(MOST_LINES) {
            let _ = write!(
                out,
                "\n  not honoured: {}: {value}\n      {}",
                one_line(path),
                one_line(reason)
            );
        }
        if self.ignored.len() > MOST_LINES {
            let _ = write!(
                out,
                "\n  and {} more values that are not honoured",
                self.ignored.len() - MOST_LINES
            );
        }
        for (path, value) in &self.assumed {
            let _ = write!(
                out,
                "\n  not in the file: {path} is {value}, that trainer's default"
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    /// A file with what every one must have, and these lines.
    fn read(more: &str) -> Result<Imported> {
        import(&parse(more)?)
    }

    const LEAST: &str = "num_gpu: 1\ntrain: {total_iter: 10, losses: [{type: l1loss}]}\n";

    fn value(imported: &Imported, path: &str) -> Option<Value> {
        imported
            .values
            .iter()
            .rfind(|(key, _)| KEYS[*key].path == path)
            .map(|(_, value)| value.clone())
    }

    fn reason<'a>(imported: &'a Imported, path: &str) -> &'a str {
        imported
            .ignored
            .iter()
            .find(|(key, ..)| key == path)
            .map_or("", |(_, _, reason)| reason)
    }

    /// The leaves of a file that are on no list.
    fn lost(imported: &Imported, root: &Node) -> Vec<String> {
        fn leaves(path: &str, node: &Node, out: &mut Vec<String>) {
            match &node.data {
                Data::Map(entries) if !entries.is_empty() => {
                    entries.iter().for_each(|(k, n)| {
                        leaves(
                            &if path.is_empty() {
                                k.clone()
                            } else {
                                format!("{path}.{k}")
                            },
                            n,
                            out,
                        )
                    });
                }
                _ => out.push(path.to_string()),
            }
        }
        let mut all = Vec::new();
        leaves("", root, &mut all);
        let named = imported
            .honoured
            .iter()
            .map(|(k, _)| k)
            .chain(imported.ignored.iter().map(|(k, ..)| k));
        let named: Vec<&String> = named
            .chain(imported.degradation.iter().map(|(k, _)| k))
            .collect();
        let covers = |name: &str, leaf: &str| {
            leaf.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        all.retain(|leaf| {
            !named
                .iter()
                .any(|name| covers(name, leaf) || covers(leaf, name))
        });
        all
    }

    #[test]
    fn the_templates_of_other_trainers_come_through() {
        // values as the templates of BasicSR and Real-ESRGAN write them
        let text = "\
name: x4plus
model_type: RealESRNetModel
scale: 4
num_gpu: auto
resize_prob: [0.2, 0.7, 0.1]
jpeg_range2: [30, 95]
gt_usm: True
queue_size: 180
datasets:
  train:
    type: RealESRGANDataset
    blur_kernel_size: 21
    final_sinc_prob: 0.8
    gt_size: !!float 2.56e2
    batch_size_per_gpu: 12.0
network_g:
  type: RRDBNet
  num_in_ch: 3
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 2e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [1e5, !!float 2.5e5], gamma: 0.5}
  total_iter: !!int 1_000_000
  warmup_iter: -1.0
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  perceptual_opt: {type: PerceptualLoss}
val: {val_freq: !!float 5e3}
logger: {print_freq: 1e2, save_checkpoint_freq: !!float 5e3}
dist_params: {backend: nccl, port: 29500}
";
        let imported = read(text).unwrap();
        for (path, number) in [
            ("data.lq_size", 64),
            ("data.batch_size_per_gpu", 12),
            ("train.total_iter", 1_000_000),
            ("train.warmup_iter", 0),
            ("val.val_freq", 5000),
            ("logger.print_freq", 100),
            ("logger.save_checkpoint_freq", 5000),
        ] {
            assert_eq!(value(&imported, path), Some(Value::Whole(number)), "{path}");
        }
        let milestones = Value::List(vec![Value::Whole(100_000), Value::Whole(250_000)]);
        assert_eq!(
            value(&imported, "train.scheduler.milestones"),
            Some(milestones)
        );
        assert_eq!(
            value(&imported, "train.losses"),
            Some(Value::List(vec![Value::Loss(LossTerm {
                kind: LossKind::L1,
                weight: 1.0
            })]))
        );
        assert!(
            imported
                .ignored
                .iter()
                .all(|(.., reason)| reason != "unknown to this program"),
            "{:?}",
            imported.ignored
        );
        assert_eq!(lost(&imported, &parse(text).unwrap()), Vec::<String>::new());
        // what matters most comes first
        let report = imported.report("x.yml");
        let lines: Vec<&str> = report.lines().collect();
        assert!(
            lines[1].contains("degrades on the fly") && lines[1].contains("LQ in the shards"),
            "{report}"
        );
        assert!(
            lines[2].contains("6 values") && lines[2].contains("datasets.train.final_sinc_prob"),
            "{report}"
        );
        assert!(
            lines[3].contains("network_g.type: RRDBNet")
                && lines[4].contains("paragonsr2_realtime"),
            "{report}"
        );
        assert_eq!(report.matches("resize_prob").count(), 1);
    }

    #[test]
    fn a_recipe_degrades_on_the_fly_or_says_that_it_does_not() {
        for (more, on) in [
            ("high_order_degradation: true\njpeg_range: [30, 95]", true),
            ("datasets: {train: {type: otf}}", true),
            ("datasets: {train: {sinc_prob2: 0.1}}", true),
            ("high_order_degradation: false\nblur_prob: 0.5", false),
            ("datasets: {train: {type: pairedimagedataset}}", false),
        ] {
            let text = format!("{LEAST}{more}\n");
            let imported = read(&text).unwrap();
            assert_eq!(
                imported.report("x").contains("degrades on the fly"),
                on,
                "{}",
                imported.report("x")
            );
            assert_eq!(
                lost(&imported, &parse(&text).unwrap()),
                Vec::<String>::new(),
                "{more}"
            );
        }
    }

    #[test]
    fn gt_size_is_honoured_or_named() {
        for (more, lq, why) in [
            ("scale: 2\ndatasets: {train: {gt_size: 128}}", Some(64), ""),
            (
                "scale: 4.0\ndatasets: {train: {gt_size: 1.28e2, lq_size: 32}}",
                Some(32),
                "",
            ),
            (
                "scale: 4\ndatasets: {train: {lq_size: 64, gt_size: 128}}",
                Some(64),
                "lq_size is there and counts: it is 64",
            ),
            (
                "datasets: {train: {lq_size: 64, gt_size: 128}}",
                Some(64),
                "lq_size is there",
            ),
            ("datasets: {train: {gt_size: 128}}", None, "no scale"),
            (
                "scale: 2\ndatasets: {train: {gt_size: 129}}",
                Some(64),
                "no multiple of the scale",
            ),
            ("scale: 2\ndatasets.train.gt_size: 128\n", Some(64), ""),
        ] {
            let text = format!("{LEAST}{more}\n");
            let imported = read(&text).unwrap();
            assert_eq!(
                value(&imported, "data.lq_size"),
                lq.map(Value::Whole),
                "{more}"
            );
            let found = reason(&imported, "datasets.train.gt_size");
            assert!(
                found.contains(why) && found.is_empty() == why.is_empty(),
                "{more}: {found}"
            );
            assert_eq!(
                lost(&imported, &parse(&text).unwrap()),
                Vec::<String>::new(),
                "{more}"
            );
        }
        for more in [
            "gt_size: many",
            "gt_size: 12.5",
            "gt_size: [128]",
            "gt_size: {a: 1}",
            "gt_size: 1",
        ] {
            let error = read(&format!("{LEAST}scale: 2\ndatasets: {{train: {{{more}}}}}"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("line 4: datasets.train.gt_size") && error.contains("expected"),
                "{more}: {error}"
            );
        }
    }

    #[test]
    fn a_network_that_is_not_known_is_not_honoured() {
        for (name, words) in [
            ("compact", "known are"),
            ("paragonsr2_pro", "not available"),
            ("SPAN", "unknown network 'SPAN'"),
        ] {
            let imported = read(&format!(
                "{LEAST}frob: 1\nnetwork_g: {{type: {name}, num_feat: 64}}"
            ))
            .unwrap();
            assert!(
                imported
                    .honoured
                    .iter()
                    .all(|(key, _)| key != "network_g.type")
            );
            let (key, value, reason) = &imported.ignored[0];
            assert!(
                key == "network_g.type" && value == name && reason.contains(words),
                "{reason}"
            );
            assert!(
                reason.contains("paragonsr2_realtime") && reason.contains("training is refused"),
                "{reason}"
            );
            let mut settings = Settings::default();
            imported.apply(&mut settings);
            assert!(settings.train_config(2, 128).is_err());
        }
        let imported = read(&format!("{LEAST}network_g: {{type: Nano}}")).unwrap();
        assert!(
            imported
                .honoured
                .iter()
                .any(|(key, _)| key == "network_g.type")
        );
    }

    #[test]
    fn the_norm_of_clipping_counts_where_clipping_is_on() {
        for (more, norm, honoured) in [
            ("grad_clip: true, grad_clip_max_norm: 100", 100.0, true),
            (
                "grad_clip_max_norm: !!float 1e-1, grad_clip: yes",
                0.1,
                true,
            ),
            ("grad_clip: false, grad_clip_max_norm: 100", 0.0, false),
            ("grad_clip_max_norm: 100", 0.0, false),
            ("grad_clip: true, grad_clip_max_norm: ~", 1.0, true),
        ] {
            let imported = read(&format!(
                "num_gpu: 1\ntrain: {{{more}, total_iter: 10, losses: [{{type: l1loss}}]}}"
            ))
            .unwrap();
            assert_eq!(
                value(&imported, "train.grad_clip"),
                Some(Value::Number(norm)),
                "{more}"
            );
            let named = reason(&imported, "train.grad_clip_max_norm");
            assert!(
                named.is_empty() == honoured || named.contains("holds nothing"),
                "{more}: {named}"
            );
        }
    }

    #[test]
    fn a_key_that_holds_nothing_says_nothing() {
        let keys = "warmup_iter: ~, ema_decay: ~, optim_g: {type: ~, lr: ~}, scheduler: {type: ~, eta_min: ~, milestones: ~}";
        let imported = read(&format!(
            "num_gpu: 1\nscale: ~\nnetwork_g: {{type: ~}}\nval: {{val_freq: ~, val_enabled: ~, metrics: {{p: {{crop_border: ~}}}}}}\n\
             train: {{{keys}, total_iter: 10, losses: [{{type: l1loss, loss_weight: ~}}]}}"
        ));
        let imported = imported.unwrap();
        assert!(
            imported
                .values
                .iter()
                .all(|(_, value)| *value != Value::Null)
        );
        assert!(
            imported
                .assumed
                .contains(&("train.warmup_iter", "0".to_string())),
            "{:?}",
            imported.assumed
        );
        let mut settings = Settings::default();
        imported.apply(&mut settings);
        settings.train_config(2, 128).unwrap().check().unwrap();
    }

    #[test]
    fn the_tables_name_keys_that_there_are() {
        for (_, ours) in SAME {
            assert!(index(ours).is_some(), "{ours}");
        }
        for (ours, default) in THEIR_DEFAULTS {
            assert!(
                KEYS[index(ours).unwrap()].kind.read(default).is_ok(),
                "{ours}: {default}"
            );
        }
    }

    #[test]
    fn the_report_is_bounded() {
        let long = "y".repeat(500_000);
        let many: String = (0..2000)
            .map(|i| format!("unknown{i}: \"a\\nb\"\n"))
            .collect();
        let list = "x, ".repeat(2000);
        let report = read(&format!(
            "{LEAST}big: {long}\nlist: [{list}]\nnetwork_g: {{type: {long}}}\n{many}"
        ))
        .unwrap()
        .report("x.yml");
        assert!(
            report.len() < 200_000 && report.contains("and 1004 more values"),
            "{}",
            report.len()
        );
        assert!(
            report.lines().all(|line| line.len() < 1000) && report.contains("(500000 characters)")
        );
    }
}
