//! What a run's folder says about the run, for its page and for comparisons.

use anyhow::{Context, Result, ensure};
use paragon::config::{Settings, Value};
use paragon::support::text::{bytes_text, one_line};
use paragon::train::{
    BestNetwork, BestScore, LogDigest, LogLine, MeasuredOn, StateHead, duration_text, newest_state,
    read_log,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Keys of `config.yml` that say what the run was made from and how it was measured: shown name and
/// path.
const DATA: [(&str, &str); 4] = [
    ("shards", "data.shards"),
    ("weights of the shards", "data.weights"),
    ("validation set", "val.dataset"),
    ("started from", "path.pretrain_network_g"),
];

/// Most runs that an error lists.
const RUNS_LISTED: usize = 10;
/// The log of a run.
const LOG: &str = "log.jsonl";

/// The error for a folder without a log. If it is one that holds runs, they are listed, the newest
/// first.
fn no_log(folder: &Path) -> String {
    let mut runs: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let about = std::fs::metadata(path.join(LOG)).ok()?;
            Some((about.modified().ok()?, path))
        })
        .collect();
    if runs.is_empty() {
        return format!("{} holds no log of a training ({LOG})", folder.display());
    }
    runs.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    let mut text = format!(
        "{} is no run, but it holds {}; give one of them, or several to compare them:",
        folder.display(),
        if runs.len() == 1 {
            "one".to_string()
        } else {
            format!("{} runs", runs.len())
        }
    );
    for (_, run) in runs.iter().take(RUNS_LISTED) {
        text += &format!("\n  {}", one_line(run.display()));
    }
    if runs.len() > RUNS_LISTED {
        text += &format!("\n  and {} older ones", runs.len() - RUNS_LISTED);
    }
    text
}

/// A run.
pub(super) struct RunFacts {
    /// Name of its folder.
    pub name: String,
    pub folder: PathBuf,
    pub log: LogDigest,
    /// The newest state, apart from its weights; `None` where none is intact.
    pub head: Option<StateHead>,
    /// The best network that is kept.
    pub best: Option<BestScore>,
    /// What the scores were measured on; `None` without a validation, and for old runs.
    pub measured_on: Option<MeasuredOn>,
    /// File of the newest network.
    pub newest: PathBuf,
    /// Recipe: flag and value.
    pub settings: Vec<(String, String)>,
    /// What the run was made from: name and value.
    pub data: Vec<(&'static str, String)>,
    /// What validations compare the network with.
    pub baseline: &'static str,
    /// The iteration up to which previews belong to the run: a resumed run makes later ones again.
    pub reached: Option<u64>,
    /// What is wrong with the folder.
    pub warnings: Vec<String>,
}

impl RunFacts {
    /// Reads a folder.
    ///
    /// # Errors
    /// It is no folder, or has no log that can be read.
    pub fn read(run: &Path) -> Result<RunFacts> {
        ensure!(
            run.is_dir(),
            "{} is no folder of a run; give the --out of a training",
            run.display()
        );
        let log = read_log(run)?.with_context(|| no_log(run))?;
        let (state, warnings) = newest_state(run)?;
        let head = state.map(|state| state.head);
        let name = run.canonicalize().unwrap_or_else(|_| run.to_path_buf());
        let best = BestNetwork::read(run, u64::MAX);
        let reached = log
            .last
            .as_ref()
            .map(|l| l.iteration)
            .max(head.as_ref().map(|head| head.iteration));
        let settings = head.as_ref().map_or_else(Vec::new, |head| {
            let list = head.config.recipe_settings().into_iter();
            list.map(|setting| (setting.flag, setting.value)).collect()
        });
        Ok(RunFacts {
            name: name
                .file_name()
                .map_or_else(|| "run".into(), |n| one_line(n.to_string_lossy())),
            folder: run.to_path_buf(),
            best: best.as_ref().map(|best| best.score(run)),
            measured_on: best.and_then(|best| best.measured_on),
            newest: run.join("model.safetensors"),
            settings,
            data: data_of(run),
            baseline: head
                .as_ref()
                .map_or("bicubic", |head| head.config.baseline()),
            reached,
            warnings,
            head,
            log,
        })
    }

    /// Network, iterations and time in a line.
    pub fn subtitle(&self) -> String {
        let network = self.network().map_or_else(String::new, |name| name + ", ");
        let lines = match (&self.log.first, &self.log.last) {
            (Some(first), Some(last)) => format!(
                "iterations {} to {}, {} of training",
                first.iteration,
                last.iteration,
                duration_text(last.seconds)
            ),
            _ => "killed or stopped before its first log line".to_string(),
        };
        network + &lines
    }

    /// `paragonsr2_realtime x2`
    pub fn network(&self) -> Option<String> {
        let network = &self.head.as_ref()?.config.network;
        Some(format!("{} x{}", network.arch, network.scale))
    }

    /// The last line with a validation.
    pub fn newest_scores(&self) -> Option<&LogLine> {
        self.log.validated.last()
    }

    /// Size of a file of the network.
    pub fn size(&self) -> Option<String> {
        let count = self.head.as_ref()?.config.network.params().len();
        Some(bytes_text(count as u64 * 4))
    }

    /// The figures for programs.
    pub fn figures(&self) -> serde_json::Value {
        let settings: serde_json::Map<_, _> = self
            .settings
            .iter()
            .map(|(flag, value)| (flag.clone(), json!(value)))
            .collect();
        let newest = self.newest_scores();
        json!({
            "run": self.folder.display().to_string(),
            "network": self.network(),
            "iterations": self.reached,
            "best": self.best,
            "newest_psnr_y": newest.and_then(|line| line.val_psnr_y),
            "newest_ssim_y": newest.and_then(|line| line.val_ssim_y),
            "bicubic_psnr_y": newest.and_then(|line| line.val_bicubic_psnr_y),
            "loss": self.log.last.as_ref().map(|line| line.loss),
            "it_per_s": self.log.it_per_s,
            "ranks": self.log.last.as_ref().and_then(|line| line.ranks),
            "seconds": self.log.last.as_ref().map(|line| line.seconds),
            "settings": settings,
        })
    }
}

/// What `config.yml` says about data and validation; nothing where it cannot be read.
fn data_of(run: &Path) -> Vec<(&'static str, String)> {
    let mut settings = Settings::default();
    let read = std::fs::read(run.join("config.yml"))
        .ok()
        .and_then(|text| settings.take(&text).ok());
    if read.is_none() {
        return Vec::new();
    }
    let text = |value: &Value| match value {
        Value::Path(path) => path.display().to_string(),
        value => value.yaml(),
    };
    DATA.iter()
        .filter_map(|(name, path)| match settings.value(path) {
            Value::Null => None,
            Value::List(list) if list.is_empty() => None,
            Value::List(list) => {
                let texts: Vec<String> = list.iter().map(text).collect();
                Some((*name, texts.join(", ")))
            }
            value => Some((*name, text(value))),
        })
        .collect()
}
