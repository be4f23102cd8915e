//! The training recipe as a user gives it: flags and values, and what differs between the recipe of
//! a stored run and a wanted one. Depends on the configuration alone. Promises that every field of
//! [`TrainConfig`] is covered: a field that is added does not compile until it has a flag here.

use super::{Decay, TrainConfig};
use crate::model::{InFile, Network, Setting};
use crate::support::text::one_line;

/// What a change of a setting means for a run that is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The trained weights depend on it.
    Recipe,
    /// It must not change: the shape of the state or the order of the samples depends on it.
    Fixed,
    /// Only the product of these must not change: the samples of an iteration.
    Split,
    /// The number of iterations; a run may always be extended.
    Length,
}

/// One setting of a recipe: the flag that gives it (or `--set KEY`), and its value as that flag
/// takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipeSetting {
    /// `--lr`, or `--set train.optim_g.eps` where there is no flag.
    pub flag: String,
    /// `2e-4`, `l1:1 ssim:0.05`, `on`.
    pub value: String,
    role: Role,
}

/// A number in its shortest form: `0.05`, `2e-4`.
fn number(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e7).contains(&value.abs()) {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

fn setting(role: Role, flag: &str, value: impl ToString) -> RecipeSetting {
    RecipeSetting {
        flag: flag.to_string(),
        value: value.to_string(),
        role,
    }
}

fn switch(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// The flag of a setting of the network.
fn network_flag(name: &str) -> String {
    match name {
        "upsampler_alpha" => "--alpha".to_string(),
        name => format!("--{}", name.replace('_', "-")),
    }
}

/// The network's name and settings. A setting that has only given the start values counts as
/// recipe; the others decide what is computed.
fn network_settings(network: &Network, list: &mut Vec<RecipeSetting>) {
    list.push(setting(Role::Fixed, "--network", &network.arch));
    list.push(setting(Role::Fixed, "--scale", network.scale));
    for (spec, value) in network.settings() {
        let role = if spec.in_file == InFile::StartValue {
            Role::Recipe
        } else {
            Role::Fixed
        };
        // f32 values are written as such: 0.3 and not 0.30000001192
        let value = match value {
            Setting::Number(value) => number(value.to_string().parse().unwrap_or(f64::NAN)),
            other => other.to_string(),
        };
        list.push(setting(role, &network_flag(spec.name), value));
    }
}

/// The kind of a decay by the name that `--schedule` takes, and its own settings.
fn decay_settings(decay: &Decay, list: &mut Vec<RecipeSetting>) {
    let mut add = |flag: &str, value: String| list.push(setting(Role::Recipe, flag, value));
    match decay {
        Decay::Constant => add("--schedule", "constant".into()),
        Decay::MultiStep { milestones, gamma } => {
            let milestones: Vec<String> = milestones.iter().map(u64::to_string).collect();
            add("--schedule", "multistep".into());
            add("--milestones", milestones.join(","));
            add("--gamma", number(*gamma));
        }
        // The length of the cosine is that of the run.
        Decay::Cosine { total: _, eta_min } => {
            add("--schedule", "cosine".into());
            add("--eta-min", number(*eta_min));
        }
    }
}

impl TrainConfig {
    /// The settings of the recipe in the order of the help, each by its flag.
    pub fn recipe_settings(&self) -> Vec<RecipeSetting> {
        let TrainConfig {
            network,
            lq_size,
            batch_size,
            accum_iter,
            use_hflip,
            use_rot,
            losses,
            optimizer,
            betas,
            epsilon,
            weight_decay,
            grad_clip,
            schedule,
            total_iter,
            ema_decay,
            ema_power,
            seed,
            window,
            degrade,
        } = self;
        let mut list = Vec::new();
        network_settings(network, &mut list);
        list.push(setting(Role::Fixed, "--seed", seed));
        list.push(setting(Role::Recipe, "--lq-size", lq_size));
        list.push(setting(Role::Split, "--batch-size", batch_size));
        list.push(setting(Role::Split, "--accum-iter", accum_iter));
        let mut recipe = |flag: &str, value: String| list.push(setting(Role::Recipe, flag, value));
        recipe("--no-hflip", switch(!use_hflip).into());
        recipe("--no-rot", switch(!use_rot).into());
        let losses: Vec<String> = losses
            .iter()
            .map(|term| format!("{}:{}", term.kind.name(), term.weight))
            .collect();
        recipe("--loss", losses.join(" "));
        recipe("--optimizer", format!("{optimizer:?}"));
        recipe("--lr", number(schedule.base_lr));
        recipe(
            "--betas",
            format!("{},{}", number(betas.0), number(betas.1)),
        );
        recipe("--weight-decay", number(*weight_decay));
        recipe("--set train.optim_g.eps", number(*epsilon));
        recipe("--grad-clip", number(*grad_clip));
        recipe("--warmup", schedule.warmup.to_string());
        decay_settings(&schedule.decay, &mut list);
        list.push(setting(Role::Recipe, "--ema-decay", number(*ema_decay)));
        list.push(setting(Role::Recipe, "--ema-power", number(*ema_power)));
        let window = window.map_or_else(|| "off".to_string(), |bytes| bytes.to_string());
        list.push(setting(Role::Fixed, "--window", window));
        let recipe = match self.degrade_recipe() {
            Ok(Some(recipe)) => format!("{} ({:016x})", one_line(recipe.name()), recipe.hash()),
            Err(_) if degrade.is_some() => "a recipe that cannot be read".to_string(),
            _ => "off".to_string(),
        };
        list.push(setting(Role::Recipe, "--degrade", recipe));
        list.push(setting(Role::Length, "--iterations", total_iter));
        list
    }

    /// What differs between this (stored) recipe and a wanted one.
    pub fn changes(&self, wanted: &TrainConfig) -> RecipeChanges {
        let same_samples = self.effective_batch() == wanted.effective_batch();
        let (before, now) = (self.recipe_settings(), wanted.recipe_settings());
        let mut changes = RecipeChanges::default();
        for old in &before {
            // A setting that only one of the two has goes with another one that is listed, as the
            // milestones go with the schedule.
            let Some(new) = now.iter().find(|new| new.flag == old.flag) else {
                continue;
            };
            if old.value == new.value {
                continue;
            }
            let text = format!("{} {} -> {}", old.flag, old.value, new.value);
            match old.role {
                Role::Fixed => changes.obstacles.push(text),
                Role::Split if !same_samples => changes.obstacles.push(text),
                Role::Split => changes.split.push(text),
                Role::Recipe => changes.recipe.push(text),
                Role::Length => changes.length.push(text),
            }
        }
        changes
    }
}

/// What differs between two recipes, each change as `--lr 2e-4 -> 1e-3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipeChanges {
    /// Changes with which a stored run cannot continue.
    pub obstacles: Vec<String>,
    /// Changes of the recipe: the run can continue with them if the user says so.
    pub recipe: Vec<String>,
    /// Another split of the same samples into micro-batches; changes only how sums are rounded.
    pub split: Vec<String>,
    /// Another number of iterations.
    pub length: Vec<String>,
}

impl RecipeChanges {
    /// All changes, those that matter most first.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        let lists = [&self.obstacles, &self.recipe, &self.split, &self.length];
        lists.into_iter().flatten()
    }
}

/// A rate for people: `3.60e-5`.
fn rate(value: f64) -> String {
    format!("{value:.2e}")
}

/// What the learning rate does if a run that was stored after `iteration` continues with `now`;
/// `None` if it continues as it would have.
pub(super) fn rate_change(
    before: &TrainConfig,
    now: &TrainConfig,
    iteration: u64,
) -> Option<String> {
    let next = iteration + 1;
    let last = before.schedule.lr(iteration.max(1));
    let (old, new) = (before.schedule.lr(next), now.schedule.lr(next));
    if before.total_iter == now.total_iter && old == new {
        return None;
    }
    let (from, to) = (rate(last), rate(new));
    if from == to {
        return Some(format!(
            "the learning rate goes on at {to}; to train on with another one, begin a new run with --pretrain"
        ));
    }
    let why = match (&before.schedule.decay, &now.schedule.decay) {
        (Decay::Cosine { .. }, Decay::Cosine { .. }) if before.total_iter != now.total_iter => {
            format!(
                ", because a cosine over {} iterations is another one than over {}",
                now.total_iter, before.total_iter
            )
        }
        _ => String::new(),
    };
    let jumps = new > last * 1.5;
    let verb = if jumps { "jumps up" } else { "goes" };
    let advice = if jumps {
        "; a new run from this one's network falls smoothly: --pretrain and a new --name"
    } else {
        ""
    };
    Some(format!(
        "the learning rate {verb} from {from} at iteration {iteration} to {to} at iteration {next}{why}{advice}"
    ))
}

impl TrainConfig {
    /// What to say about a warm-up or milestones that do not fit the number of iterations.
    /// `milestones_from` is the key and the file that gave the milestones; `None`: not a file.
    pub fn schedule_advice(&self, milestones_from: Option<&str>) -> Vec<String> {
        let (total, schedule) = (self.total_iter, &self.schedule);
        let mut out = Vec::new();
        if schedule.warmup >= total && schedule.warmup > 1 {
            out.push(format!(
                "the warm-up of {} iterations does not end within {total}: the learning rate only reaches {} of {}; \
                 give a smaller --warmup, or leave it out: it is then {}",
                schedule.warmup,
                rate(schedule.lr(total)),
                rate(schedule.base_lr),
                super::usual_warmup(total)
            ));
        }
        let Decay::MultiStep { milestones, .. } = &schedule.decay else {
            return out;
        };
        let Some(last) = milestones.iter().max() else {
            return out;
        };
        let usual: Vec<String> = super::usual_milestones(total)
            .iter()
            .map(u64::to_string)
            .collect();
        let list: Vec<String> = milestones.iter().map(u64::to_string).collect();
        let list = list.join(",");
        let what = if milestones.iter().all(|m| *m >= total) {
            format!(
                "the milestones {list} are not reached in {total} iterations, so the learning rate never falls"
            )
        } else if *last < total / 2 {
            format!(
                "after the last of the milestones {list} come {} of {total} iterations at the lowest learning rate",
                total - last
            )
        } else {
            return out;
        };
        out.push(match milestones_from {
            Some(place) => format!(
                "{what}; they are set by {place}, and without it they are {}: --milestones {0}",
                usual.join(",")
            ),
            None => format!("{what}; without --milestones they are {}", usual.join(",")),
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, Heading, KEYS};
    use crate::plan::{LossKind, OptimizerKind};
    use crate::train::LossTerm;
    use crate::train::state::tests::config;

    #[test]
    fn every_recipe_key_of_the_configuration_is_listed_by_its_flag() {
        let schedules = [
            Decay::Constant,
            Decay::MultiStep {
                milestones: vec![5],
                gamma: 0.5,
            },
            config().schedule.decay,
        ];
        let mut listed = std::collections::BTreeSet::new();
        for decay in schedules {
            let mut with = config();
            with.schedule.decay = decay;
            listed.extend(with.recipe_settings().into_iter().map(|s| s.flag));
        }
        for key in KEYS.iter().filter(|key| key.heading == Heading::Recipe) {
            let flag = match key.flag {
                Flag::None => format!("--set {}", key.path),
                Flag::Takes(name, _) | Flag::Off(name) => format!("--{name}"),
            };
            assert!(listed.contains(&flag), "{flag} is missing in {listed:?}");
        }
        // The settings of all networks have the flags that are shown for them.
        for key in KEYS.iter() {
            let setting = key
                .path
                .strip_prefix("network_g.")
                .filter(|name| *name != "type");
            let Some(name) = setting else { continue };
            let own = network_flag(name);
            assert!(
                matches!(key.flag, Flag::Takes(flag, _) if own == format!("--{flag}")),
                "{own} is not the flag of {}",
                key.path
            );
        }
    }

    #[test]
    fn changes_are_written_as_flags_and_sorted_by_what_they_mean() {
        let mut wanted = config();
        wanted.losses = [(LossKind::Charbonnier, 1.0), (LossKind::Ssim, 0.05)]
            .map(|(kind, weight)| LossTerm { kind, weight })
            .to_vec();
        wanted.optimizer = OptimizerKind::Adam;
        (wanted.batch_size, wanted.accum_iter) = (1, 2);
        wanted.total_iter = 20;
        wanted.schedule.decay = Decay::Constant;
        let changes = config().changes(&wanted);
        assert_eq!(
            changes.recipe,
            [
                "--loss l1:1 -> charbonnier:1 ssim:0.05",
                "--optimizer AdamW -> Adam",
                "--schedule cosine -> constant",
            ]
        );
        assert_eq!(
            changes.split,
            ["--batch-size 2 -> 1", "--accum-iter 1 -> 2"]
        );
        assert_eq!(changes.length, ["--iterations 10 -> 20"]);
        assert!(changes.obstacles.is_empty());
        wanted.batch_size = usize::MAX;
        wanted.seed = 4;
        wanted.network.set("upsampler_alpha", 0.1).unwrap();
        wanted.network.set("layer_scale", 0.1).unwrap();
        let changes = config().changes(&wanted);
        assert_eq!(changes.obstacles.len(), 4, "{changes:?}");
        assert!(
            changes
                .recipe
                .contains(&"--layer-scale 1e-5 -> 0.1".to_string()),
            "{changes:?}"
        );
    }

    #[test]
    fn the_rate_of_an_extended_run_is_said() {
        let mut longer = config();
        longer.total_iter = 20;
        longer.schedule.decay = Decay::Cosine {
            total: 20,
            eta_min: 1e-7,
        };
        let text = rate_change(&config(), &longer, 10).unwrap();
        assert!(
            text.contains("jumps up from 5.24e-6 at iteration 10 to 1.05e-4 at iteration 11"),
            "{text}"
        );
        assert_eq!(rate_change(&config(), &config(), 5), None);
        let level = |total| {
            let mut config = config();
            config.schedule.decay = Decay::Constant;
            config.total_iter = total;
            config
        };
        let text = rate_change(&level(10), &level(20), 10).unwrap();
        assert!(text.contains("goes on at 2.10e-4"), "{text}");
    }

    #[test]
    fn a_schedule_that_does_not_fit_its_run_is_noticed() {
        let with = |total: u64, warmup: u64, milestones: &[u64]| {
            let mut config = config();
            (config.total_iter, config.schedule.warmup) = (total, warmup);
            config.schedule.decay = Decay::MultiStep {
                milestones: milestones.to_vec(),
                gamma: 0.5,
            };
            config.schedule_advice(None).join("\n")
        };
        assert_eq!(with(40_000, 1000, &[30_000, 35_000]), "");
        assert!(with(300, 1000, &[200]).contains("only reaches 6.30e-5 of 2.10e-4"));
        assert!(with(300, 7, &[30_000]).contains("not reached in 300"));
        assert!(with(200_000, 7, &[30_000, 35_000]).contains("165000 of 200000"));
        assert_eq!(with(100, 2, &[]), "");
        let mut config = config();
        config.total_iter = 300;
        config.schedule.decay = Decay::MultiStep {
            milestones: vec![30_000],
            gamma: 0.5,
        };
        let advice = config.schedule_advice(Some("train.scheduler.milestones in a.yml"));
        let advice = advice.join("\n");
        assert!(
            advice.contains("set by train.scheduler.milestones in a.yml"),
            "{advice}"
        );
        assert!(advice.contains("--milestones 225,262"), "{advice}");
    }
}
