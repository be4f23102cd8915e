//! Flags generated from the table of keys, and the layers of a configuration: defaults, file,
//! preset, `--set`, flags. `train`, `plan` and `bench` share them, so that they cannot differ.
//! Depends on `config` and clap.

use super::flags::{single, tell};
use anyhow::{Context, Result};
use clap::builder::{OsStringValueParser, PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use paragon::config::{
    Flag, Heading, KEYS, Key, Kind, MOST_FILE_BYTES, Preset, Settings, TYPE, Value,
    parse_assignment, parse_setting,
};
use paragon::model::{ModelHints, Network, Recompute, Setting, known_network, known_networks};
use paragon::plan::Precision;
use paragon::train::{DeviceChoice, Prefetch};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// The keys that a command has flags for.
pub trait Group {
    /// Whether the command has a flag for this key.
    fn takes(key: &Key) -> bool;
}

/// `train`: all keys but the scale.
pub struct Training;
/// `plan`: keys that decide memory.
pub struct Planning;
/// `bench loader`: keys of the data.
pub struct Loading;

impl Group for Training {
    fn takes(key: &Key) -> bool {
        key.path != "scale" // the shards decide it
    }
}

impl Group for Planning {
    fn takes(key: &Key) -> bool {
        key.is_for_plan() || key.path == "scale"
    }
}

impl Group for Loading {
    fn takes(key: &Key) -> bool {
        key.heading == Heading::Data
    }
}

/// The values of a group of flags, as the user gave them.
pub struct KeyFlags<G> {
    given: Vec<(usize, Value)>,
    group: PhantomData<G>,
}

impl<G: Group> clap::Args for KeyFlags<G> {
    fn augment_args(command: Command) -> Command {
        KEYS.iter()
            .filter(|key| G::takes(key))
            .fold(command, |command, key| match flag(key) {
                Some(flag) => command.arg(flag),
                None => command,
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A hidden name of `--network`, as other programs call it.
const OTHER_NETWORK_FLAG: &str = "arch";

fn flag(key: &'static Key) -> Option<Arg> {
    let arg = Arg::new(key.path).help_heading(key.heading.name());
    match key.flag {
        Flag::None => None,
        Flag::Off(name) => Some(arg.long(name).help(key.off_help).action(ArgAction::SetTrue)),
        Flag::Takes(name, value) => {
            // the allowed values are listed for choices; other texts describe them already
            let names = if let Kind::Choice(_) = key.kind {
                format!(" ({})", key.kind.expected())
            } else {
                String::new()
            };
            let help = format!("{}{names} [default: {}]", key.doc, key.default_text());
            let repeated = matches!(key.kind, Kind::Paths | Kind::Losses);
            let action = if repeated {
                ArgAction::Append
            } else {
                ArgAction::Set
            };
            let read = OsStringValueParser::new().try_map(|text| key.kind.read_flag(&text));
            let arg = arg
                .long(name)
                .value_name(value)
                .help(help)
                .action(action)
                .allow_negative_numbers(true);
            Some(if key.path == TYPE {
                arg.alias(OTHER_NETWORK_FLAG)
                    .hide_possible_values(true)
                    .value_parser(WithNetworkNames(read))
            } else {
                arg.value_parser(read)
            })
        }
    }
}

/// A parser of the name of a network that tells a shell which names there are. Other names (`nano`)
/// are read, too.
#[derive(Clone)]
pub struct WithNetworkNames<P>(pub P);

impl<P: TypedValueParser> TypedValueParser for WithNetworkNames<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<P::Value, clap::Error> {
        self.0.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = known_networks().into_iter().flat_map(|network| {
            let short = network.aliases.first().copied();
            [short, Some(network.name)].into_iter().flatten()
        });
        Some(Box::new(names.map(PossibleValue::new)))
    }
}

/// The parser of `--network` where it is text.
pub fn network_name() -> WithNetworkNames<StringValueParser> {
    WithNetworkNames(StringValueParser::new())
}

impl<G: Group> clap::FromArgMatches for KeyFlags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for (index, key) in KEYS.iter().enumerate().filter(|(_, key)| G::takes(key)) {
            match key.flag {
                Flag::None => {}
                Flag::Off(_) if matches.get_flag(key.path) => {
                    given.push((index, Value::Bool(false)))
                }
                Flag::Off(_) => {}
                Flag::Takes(..) => {
                    let values: Vec<Value> = matches
                        .get_many::<Value>(key.path)
                        .into_iter()
                        .flatten()
                        .cloned()
                        .collect();
                    given.extend(join(values).map(|value| (index, value)));
                }
            }
        }
        Ok(KeyFlags {
            given,
            group: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given.extend(Self::from_arg_matches(matches)?.given);
        Ok(())
    }
}

/// What a repeated flag says: the lists one after the other, or the one value.
fn join(values: Vec<Value>) -> Option<Value> {
    if values.len() < 2 {
        return values.into_iter().next();
    }
    let list = values.into_iter().flat_map(|value| {
        if let Value::List(list) = value {
            list
        } else {
            vec![value]
        }
    });
    Some(Value::List(list.collect()))
}

impl<G> KeyFlags<G> {
    /// Whether the flag of this key was given.
    pub fn gives(&self, path: &str) -> bool {
        self.given.iter().any(|(key, _)| KEYS[*key].path == path)
    }

    /// Gives settings what the flags say.
    pub fn apply(&self, settings: &mut Settings) {
        for (key, value) in &self.given {
            settings.set(*key, value.clone());
        }
    }
}

/// Where a configuration comes from beside flags of its own.
#[derive(clap::Args)]
pub struct Layers {
    /// Take the configuration from a file: our YAML (`paragon config init`), or a traiNNer-redux
    /// option file as it is
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    config: Option<PathBuf>,
    /// A named group of values; wins over --config
    #[arg(long, value_enum, help_heading = "Configuration")]
    pub preset: Option<Preset>,
    /// Give a key a value, as in train.optim_g.lr=1e-3; may be repeated, wins over --config and
    /// --preset. Flags win over it. `paragon config explain` lists the keys
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment, help_heading = "Configuration")]
    set: Vec<(usize, Value)>,
}

fn assignment(text: &str) -> Result<(usize, Value), String> {
    parse_assignment(text).map_err(|error| format!("{error:#}"))
}

/// The content of an option file; a longer file than any of these is cut, and refused by its
/// reader.
pub fn content_of(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let mut content = Vec::new();
    // a pipe has no length, so reading itself is bounded
    let file = std::fs::File::open(path).with_context(cannot)?;
    file.take(MOST_FILE_BYTES as u64 + 1)
        .read_to_end(&mut content)
        .with_context(cannot)?;
    Ok(content)
}

/// Which values of another trainer's file are listed because they are not honoured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unhonoured {
    /// None, with --quiet.
    NotListed,
    /// Those that decide the trained network.
    Deciding,
    /// All.
    All,
}

impl Unhonoured {
    /// As --verbose and --quiet ask.
    pub fn new(verbose: bool, quiet: bool) -> Unhonoured {
        match (verbose, quiet) {
            (_, true) => Unhonoured::NotListed,
            (true, false) => Unhonoured::All,
            (false, false) => Unhonoured::Deciding,
        }
    }
}

/// Reads an option file, paragon's or another trainer's, into settings, and lists which values of
/// the latter are not honoured. Returns whether it is another trainer's.
pub fn read_file(path: &Path, settings: &mut Settings, list: Unhonoured) -> Result<bool> {
    let place = || path.display().to_string();
    let imported = settings.take_file(&place(), &content_of(path)?)?;
    if let Some(imported) = &imported {
        match list {
            Unhonoured::NotListed => {}
            Unhonoured::Deciding => tell(imported.short_report(&place())),
            Unhonoured::All => tell(imported.report(&place())),
        }
    }
    Ok(imported.is_some())
}

impl Layers {
    /// The settings that count: defaults, file, preset, `--set`, flags. They name a network that can
    /// be trained: this is checked here, before a command looks for shards of its scale. `list` says
    /// which values of another trainer's file are listed because they are not honoured.
    pub fn settings<G>(&self, flags: &KeyFlags<G>, list: Unhonoured) -> Result<Settings> {
        let mut settings = Settings::default();
        if let Some(path) = &self.config {
            read_file(path, &mut settings, list)?;
        }
        let last = |settings: &mut Settings| {
            for (key, value) in &self.set {
                settings.set(*key, value.clone());
            }
            flags.apply(settings);
        };
        if let Some(preset) = self.preset {
            // what a preset sets depends on the network and the length that --set and flags choose
            let mut chosen = settings.clone();
            last(&mut chosen);
            preset.apply(&mut settings, &chosen);
        }
        last(&mut settings);
        let network = settings.text(TYPE).unwrap_or_default().to_string();
        let dropped = settings.drop_foreign_settings().into_iter();
        for (path, value) in dropped.filter(|_| list != Unhonoured::NotListed) {
            tell(format_args!(
                "  not honoured: {path}: {value}\n      {network} has no such setting"
            ));
        }
        let usual = known_network(&network).map_or(2, |network| network.scales[0]);
        settings.network(
            settings
                .whole("scale")
                .map_or(usual, |scale| scale as usize),
        )?;
        Ok(settings)
    }
}

/// A network made of flags alone, at its start values.
#[derive(clap::Args)]
pub struct NetworkFlags {
    /// Network; `paragon networks` lists them
    #[arg(long, default_value = "nano", value_name = "NAME", alias = OTHER_NETWORK_FLAG,
        value_parser = network_name(), hide_possible_values = true)]
    network: String,
    /// HR pixels per LQ pixel along one side
    #[arg(long, default_value_t = 2)]
    pub scale: usize,
    #[command(flatten)]
    set: NetworkSet,
}

impl NetworkFlags {
    /// The network of the flags.
    ///
    /// # Errors
    /// An unknown network, a scale or a setting that it cannot have.
    pub fn network(&self) -> Result<Network> {
        let mut network = Network::new(&self.network, self.scale)?;
        for (name, setting) in self.set.settings() {
            network.set(name, setting.clone())?;
        }
        Ok(network)
    }
}

/// Settings of a network.
#[derive(clap::Args)]
pub struct NetworkSet {
    /// Give the network a setting, as in norm=true; may be repeated. `paragon networks` lists the
    /// settings
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    network_set: Vec<(String, Setting)>,
}

impl NetworkSet {
    /// The settings in the order of the command line.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &Setting)> {
        let given = self.network_set.iter();
        given.map(|(name, setting)| (name.as_str(), setting))
    }
}

/// What a network file may not say of its network.
#[derive(clap::Args)]
pub struct HintFlags {
    /// The network's name, for files that do not contain it; `paragon networks` lists them
    #[arg(long, value_name = "NAME", alias = OTHER_NETWORK_FLAG, value_parser = network_name(),
        hide_possible_values = true)]
    network: Option<String>,
    /// The scale, for files that do not contain it
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<usize>,
    /// upsampler_alpha, for files that do not contain it
    #[arg(long, value_parser = single, allow_negative_numbers = true)]
    alpha: Option<f32>,
    #[command(flatten)]
    set: NetworkSet,
}

impl HintFlags {
    /// The flags as hints to the reader of a file.
    pub fn hints(&self) -> ModelHints {
        let set = self.set.settings();
        let set = set.map(|(name, setting)| (name.to_string(), setting.clone()));
        let alpha = self
            .alpha
            .map(|alpha| ("upsampler_alpha".to_string(), Setting::Number(alpha)));
        ModelHints {
            arch: self.network.clone(),
            scale: self.scale,
            settings: set.chain(alpha).collect(),
        }
    }
}

fn setting(text: &str) -> Result<(String, Setting), String> {
    parse_setting(text).map_err(|error| format!("{error:#}"))
}

/// The settings of a network by name, for JSON.
pub fn settings_of(network: &Network) -> BTreeMap<&'static str, Setting> {
    let settings = network.settings();
    settings
        .map(|(spec, setting)| (spec.name, setting.clone()))
        .collect()
}

/// Threads and memory.
pub struct Machine {
    /// Threads that compute; 0 for all.
    pub threads: usize,
    /// Threads that load, and batches in the ring.
    pub prefetch: Prefetch,
    /// Most host memory, bytes.
    pub host_memory: Option<u64>,
    /// Most device memory, bytes.
    pub vram: Option<u64>,
    /// What is kept between forward and backward; nothing for the cheapest level that fits.
    pub recompute: Option<Recompute>,
    /// Whether what is too large may be split.
    pub fit: bool,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Type of activations, or, on the CPU, of the products of dense convolutions; nothing for f32
    /// on the CPU and the best one of a CUDA device.
    pub precision: Option<Precision>,
}

impl Machine {
    /// Of the settings of a run.
    pub fn new(settings: &Settings) -> Result<Machine> {
        let count = |path: &str| settings.whole(path).map(|n| n as usize);
        let recompute = match settings.text("machine.recompute") {
            Some("none") => Some(Recompute::None),
            Some("block") => Some(Recompute::Block),
            Some("full") => Some(Recompute::Full),
            _ => None,
        };
        Ok(Machine {
            threads: count("machine.threads").unwrap_or(0),
            prefetch: Prefetch {
                threads: count("data.num_worker_per_gpu"),
                slots: count("data.slots"),
            },
            host_memory: settings.whole("machine.host_memory"),
            vram: settings.whole("machine.vram"),
            recompute,
            fit: settings.is_on("machine.fit"),
            device: settings
                .text("machine.device")
                .unwrap_or("auto")
                .parse()
                .map_err(anyhow::Error::msg)?,
            precision: match settings.text("machine.precision") {
                Some("f32") => Some(Precision::F32),
                Some("bf16") => Some(Precision::Bf16),
                Some("fp16") => Some(Precision::Fp16),
                _ => None,
            },
        })
    }
}
