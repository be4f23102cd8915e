//! Taking a traiNNer-redux option file as it is. Every value of the file ends in one of three places: a key of ours, a list of what is not
//! honoured (with the reason and the nearest thing there is), or an error that names the line. Depends on the table of keys and the
//! YAML tree; its tables say what the other trainer's keys mean.

use super::value::{Kind, Value, loss_kind};
use super::yaml::{Data, Node};
use super::{KEYS, Settings, index};
use crate::train::LossTerm;
use anyhow::{Result, anyhow, bail, ensure};
use std::fmt::Write;

/// Top-level keys of their files that ours do not have.
pub const MARKS: [&str; 7] = ["datasets", "num_gpu", "use_amp", "network_d", "auto_vram_management", "model_type", "use_compile"];

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
}

/// Whether a file is one of theirs.
pub fn is_theirs(root: &Node) -> bool {
    MARKS.iter().any(|mark| root.get(mark).is_some())
}

/// Their key and ours, where both hold the same.
const SAME: [(&str, &str); 25] = [
    ("name", "name"),
    ("scale", "scale"),
    ("manual_seed", "manual_seed"),
    ("network_g.type", "network_g.type"),
    ("network_g.upsampler_alpha", "network_g.upsampler_alpha"),
    ("network_g.detail_gain", "network_g.detail_gain"),
    ("datasets.train.lq_size", "data.lq_size"),
    ("datasets.train.batch_size_per_gpu", "data.batch_size_per_gpu"),
    ("datasets.train.accum_iter", "data.accum_iter"),
    ("datasets.train.num_worker_per_gpu", "data.num_worker_per_gpu"),
    ("datasets.train.use_hflip", "data.use_hflip"),
    ("datasets.train.use_rot", "data.use_rot"),
    ("path.pretrain_network_g", "path.pretrain_network_g"),
    ("path.strict_load_g", "path.strict_load_g"),
    ("train.ema_decay", "train.ema_decay"),
    ("train.ema_power", "train.ema_power"),
    ("train.grad_clip", "train.grad_clip"),
    ("train.total_iter", "train.total_iter"),
    ("train.optim_g.lr", "train.optim_g.lr"),
    ("train.optim_g.weight_decay", "train.optim_g.weight_decay"),
    ("train.optim_g.betas", "train.optim_g.betas"),
    ("train.scheduler.milestones", "train.scheduler.milestones"),
    ("train.scheduler.gamma", "train.scheduler.gamma"),
    ("logger.print_freq", "logger.print_freq"),
    ("logger.save_checkpoint_freq", "logger.save_checkpoint_freq"),
];

/// Beginnings of their keys and why they are not honoured; the first that fits counts.
const REASONS: [(&str, &str); 56] = [
    (
        "datasets.train.dataroot_gt",
        "training reads shards, not folders: make them with `paragon shard FOLDER --out DIR` and give --shards DIR",
    ),
    (
        "datasets.train.dataroot_lq",
        "the shards hold HR and LQ: `paragon shard FOLDER --lq LQ_FOLDER` takes pairs, without --lq it makes the LQ",
    ),
    ("datasets.train.name", "a name of the other trainer's logs; the set of shards is named by its folder"),
    ("datasets.train.type", "shards hold pairs; nothing else is loaded"),
    ("datasets.train.io_backend", "shards are mapped or read by calls: data.io (--io)"),
    ("datasets.train.prefetch_mode", "batches are always prefetched, into a bounded ring: data.slots (--slots)"),
    ("datasets.train.num_prefetch_queue", "the ring holds data.slots batches (--slots)"),
    ("datasets.train.prefetch_factor", "the ring holds data.slots batches (--slots)"),
    ("datasets.train.pin_memory", "the backend decides: pinned where a GPU copies from it, plain on the CPU"),
    ("datasets.train.persistent_workers", "loader threads always live as long as the run"),
    ("datasets.train.dataset_enlarge_ratio", "epochs have no seam here, so a small set needs no enlarging"),
    ("datasets.train", "the data is decided when shards are made (`paragon shard --help`)"),
    (
        "datasets.val.dataroot_gt",
        "validation takes a folder of pictures or a held-out set: val.dataset (--val DIR); `paragon shard --val` makes one",
    ),
    ("datasets.val.dataroot_lq", "val.dataset (--val DIR) finds the LQ beside the HR, in hr/lq and similar folders"),
    ("datasets.val", "validation is told by val.dataset (--val DIR) alone"),
    ("datasets", "there is one set to train on (data.shards) and one to validate on (val.dataset)"),
    ("use_amp", "precision belongs to the device: f32 on the CPU; on CUDA activations are halves and sums f32"),
    ("amp_bf16", "precision belongs to the device: f32 on the CPU, bf16 the default on CUDA"),
    ("use_channels_last", "activations are always NHWC"),
    ("fast_matmul", "there are no libraries' matrix products to tune"),
    ("num_gpu", "one process trains on one device: machine.device (--device)"),
    ("use_compile", "kernels are compiled and fused when the program is built"),
    ("compile_mode", "kernels are compiled and fused when the program is built"),
    ("deterministic", "runs always repeat to the same bits"),
    (
        "auto_vram_management",
        "memory is computed before the start: machine.vram, machine.host_memory and machine.fit bound it, `paragon plan --max` lists batches",
    ),
    ("network_g.use_checkpointing", "what is recomputed is machine.recompute (--recompute); auto takes what fits"),
    ("network_g", "the published shape of the network is trained; only its start values can be told (network_g.*)"),
    ("network_d", "no discriminators: training is on L1, Charbonnier, MSE, SSIM and MS-SSIM"),
    ("train.optim_d", "no discriminators"),
    ("train.net_d", "no discriminators"),
    ("train.gan_opt", "no discriminators"),
    ("path.pretrain_network_d", "no discriminators"),
    ("path.strict_load_d", "no discriminators"),
    ("path.param_key", "`params`, `params_ema` and bare tables are told apart by themselves; the average is taken where there is one"),
    ("path.resume_state", "resuming is the default: the same command goes on from the newest state in path.out (--out)"),
    ("path.ignore_resume_networks", "a state is resumed whole"),
    ("path.experiments_root", "the folder of a run is path.out (--out)"),
    ("path.models", "the folder of a run is path.out (--out)"),
    ("path", "the folder of a run is path.out (--out)"),
    ("auto_resume", "resuming is the default; --restart begins again"),
    ("train.dynamic_loss_scheduling", "weights of losses stay as they are given in train.losses"),
    (
        "train.training_automations.DynamicBatchAndPatchSizeOptimizer",
        "batch and patch stay as given; what does not fit is split before the start (machine.fit), never during it",
    ),
    (
        "train.training_automations.IntelligentEarlyStopping",
        "a run ends at train.total_iter; the best network by PSNR-Y is kept (models/best_*), and Ctrl-C saves and stops",
    ),
    ("train.training_automations", "nothing is changed while a run is under way"),
    ("train.use_moa", "augmentations are flips and turns: data.use_hflip, data.use_rot"),
    ("train.moa", "augmentations are flips and turns: data.use_hflip, data.use_rot"),
    ("val.save_img", "a few fixed previews are kept at every validation (RUN/previews), not every picture every time"),
    ("val.metrics_enabled", "PSNR and SSIM, on RGB and Y, are always measured; --val none turns validation off"),
    ("val.metrics", "PSNR and SSIM, on RGB and Y, are always measured, and only these"),
    ("val", "validation is told by val.dataset, val.val_freq and val.crop_border"),
    ("logger.save_checkpoint_format", "checkpoints are always safetensors, with PyTorch's names"),
    ("logger.use_tb_logger", "TensorBoard files are always written (RUN/tensorboard)"),
    ("logger.wandb", "logs stay in the folder of the run: log.jsonl, TensorBoard files, `paragon report`"),
    ("onnx", "nothing is exported; model.safetensors loads in PyTorch with strict=True"),
    ("high_order_degradation", "the LQ is made when shards are made (`paragon shard --help`), by a filter and optional blur"),
    ("dist", "one process trains on one device"),
];

/// What the other trainer (or PyTorch below it) takes where a file does not say it, and ours would take something else.
const THEIR_DEFAULTS: [(&str, &str); 7] = [
    ("train.warmup_iter", "0"),
    ("train.ema_decay", "0"),
    ("train.grad_clip", "0"),
    ("train.optim_g.lr", "1e-3"),
    ("train.optim_g.betas", "0.9,0.999"),
    ("train.optim_g.weight_decay", "0"),
    ("train.scheduler.type", "constant"),
];

/// A value in one line, for the list.
fn shown(node: &Node) -> String {
    match &node.data {
        Data::Null => "~".into(),
        Data::Scalar(text) => text.clone(),
        Data::List(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Data::Map(entries) => format!("{{{}}}", entries.iter().map(|(k, v)| format!("{k}: {}", shown(v))).collect::<Vec<_>>().join(", ")),
    }
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
                    self.walk(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, inner)?;
                }
                Ok(())
            }
            _ => self.leaf(path, node),
        }
    }

    fn leaf(&mut self, path: &str, node: &Node) -> Result<()> {
        if let Some((_, ours)) = SAME.iter().find(|(theirs, _)| *theirs == path) {
            return if node.data == Data::Null {
                // nothing says nothing: what a missing key means is settled at the end
                self.honoured.push((path.to_string(), ours));
                Ok(())
            } else {
                self.take(path, ours, node)
            };
        }
        let begins = |start: &str| path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']));
        match REASONS.iter().find(|(start, _)| begins(start)) {
            Some((_, reason)) => self.ignore(path, node, *reason),
            None => self.ignore(path, node, "unknown to this program"),
        }
        Ok(())
    }

    fn ignore(&mut self, path: &str, node: &Node, reason: impl Into<String>) {
        self.ignored.push((path.to_string(), shown(node), reason.into()));
    }

    fn take(&mut self, theirs: &str, ours: &'static str, node: &Node) -> Result<()> {
        let Some(key) = index(ours) else { bail!("{ours} is no key") };
        let value = KEYS[key].kind.accept(node).map_err(|text| anyhow!("line {}: {theirs}: {text}", node.line))?;
        self.put(theirs, ours, value);
        Ok(())
    }

    fn put(&mut self, theirs: &str, ours: &'static str, value: Value) {
        self.values.extend(index(ours).map(|key| (key, value)));
        self.honoured.push((theirs.to_string(), ours));
    }

    fn has(&self, ours: &str) -> bool {
        index(ours).is_some_and(|key| self.values.iter().any(|(k, _)| *k == key))
    }

    /// Keys whose meaning differs from ours; true when the whole value is dealt with.
    fn special(&mut self, path: &str, node: &Node) -> Result<bool> {
        let text = if let Data::Scalar(text) = &node.data { text.as_str() } else { "" };
        match path {
            "train.losses" => self.losses(node)?,
            "datasets.train.gt_size" if text.parse::<u64>().is_ok() => return Ok(false), // needs the scale: settled at the end
            "train.warmup_iter" if text.starts_with('-') => self.put(path, "train.warmup_iter", Value::Whole(0)),
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
        let value = KEYS[key].kind.accept(node).map_err(|text| anyhow!("line {}: {path}: {text}", node.line))?;
        match self.values.iter().find(|(k, _)| *k == key).map(|(_, first)| *first == value) {
            None => self.put(path, "val.crop_border", value),
            Some(true) => self.honoured.push((path.to_string(), "val.crop_border")),
            Some(false) => self.ignore(path, node, "all metrics share one border, val.crop_border; that of the first metric is taken"),
        }
        Ok(())
    }

    fn losses(&mut self, node: &Node) -> Result<()> {
        let Data::List(list) = &node.data else { bail!("line {}: train.losses: expected a list of losses", node.line) };
        let mut terms = Vec::new();
        for (i, loss) in list.iter().enumerate() {
            let path = format!("train.losses[{i}]");
            let Data::Map(entries) = &loss.data else { bail!("line {}: {path}: expected type and loss_weight", loss.line) };
            let text = |name: &str| match loss.get(name).map(|n| &n.data) {
                Some(Data::Scalar(text)) => Some(text.as_str()),
                _ => None,
            };
            let name = text("type").unwrap_or_default();
            let Ok(kind) = loss_kind(name) else {
                self.ignore(
                    &path,
                    loss,
                    "not available; training goes on with the other losses (l1, charbonnier, mse, ssim and mssim are there)",
                );
                continue;
            };
            let weight: f32 = text("loss_weight").map_or(Ok(1.0), str::parse).unwrap_or(f32::NAN);
            ensure!(weight.is_finite() && weight >= 0.0, "line {}: {path}.loss_weight: expected 0 or a number above it", loss.line);
            terms.push(Value::Loss(LossTerm { kind, weight }));
            for (key, value) in entries {
                let inner = format!("{path}.{key}");
                match key.as_str() {
                    "type" | "loss_weight" => self.honoured.push((inner, "train.losses")),
                    _ => self.ignore(&inner, value, "a loss has a weight and nothing else; it is computed as docs/training.md says"),
                }
            }
        }
        ensure!(
            !terms.is_empty(),
            "line {}: train.losses holds none that can be trained on (l1loss, charbonnierloss, mseloss, ssimloss, mssimloss)",
            node.line
        );
        self.values.push((self.at("train.losses")?, Value::List(terms)));
        Ok(())
    }

    /// What depends on several keys, and what the file leaves to defaults.
    fn finish(&mut self, root: &Node) -> Result<()> {
        let scale = root.get("scale").and_then(|n| if let Data::Scalar(t) = &n.data { t.parse::<u64>().ok() } else { None });
        let gt = "datasets.train.gt_size";
        if let Some(at) = self.ignored.iter().position(|(path, ..)| path == gt)
            && let (Some(scale), Ok(side)) = (scale.filter(|s| *s > 0), self.ignored[at].1.parse::<u64>())
        {
            self.ignored.remove(at);
            if !self.has("data.lq_size") {
                self.put(gt, "data.lq_size", Value::Whole(side / scale));
            }
        }
        ensure!(
            self.has("train.losses"),
            "the file has no train.losses; older files name losses otherwise: write them as a list of {{type: l1loss, loss_weight: 1.0}}"
        );
        ensure!(self.has("train.total_iter"), "the file has no train.total_iter");
        // PyTorch's AdamW decays by default, its Adam does not
        let adam = self.values.contains(&(self.at("train.optim_g.type")?, Value::Text("Adam".into())));
        for (ours, default) in THEIR_DEFAULTS {
            if self.has(ours) {
                continue;
            }
            let default = if ours == "train.optim_g.weight_decay" && !adam { "0.01" } else { default };
            let key = self.at(ours)?;
            let value = KEYS[key].kind.read(default).map_err(|text| anyhow!("{ours}: {text}"))?;
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
        let mut out =
            format!("{file} is a traiNNer-redux option file: {} values honoured, {} not", self.honoured.len(), self.ignored.len());
        for (path, value, reason) in &self.ignored {
            let _ = write!(out, "\n  not honoured: {path}: {value}\n      {reason}");
        }
        for (path, value) in &self.assumed {
            let _ = write!(out, "\n  not in the file: {path} is {value}, that trainer's default");
        }
        out
    }
}
