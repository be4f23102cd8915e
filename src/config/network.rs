//! The settings of the networks as keys of the configuration, `network_g.NAME`. Depends on the
//! networks' own table, from which every key here is made. Promises that a setting which the chosen
//! network does not have is refused or named, never dropped.

use super::keys::{Flag, Heading, Key};
use super::value::{Kind, Names, Value};
use super::{KEYS, Origin, Settings, TYPE, find, index};
use crate::model::{
    Error, KnownNetwork, Network, Setting, SettingKind, SettingSpec, known_network, known_networks,
};
use crate::support::text::brief;
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;

/// The section of the network's keys.
const SECTION: &str = "network_g.";
/// Flags that do not follow from the name of their setting: the setting and the flag.
const OTHER_FLAGS: [(&str, &str); 1] = [("upsampler_alpha", "alpha")];

/// The name of the setting that a key is for; `None` for other keys.
pub fn setting_of(path: &str) -> Option<&str> {
    path.strip_prefix(SECTION)
        .filter(|_| path != TYPE && path.matches('.').count() == 1)
}

/// The path of the key of a setting.
pub(super) fn setting_path(name: &str) -> String {
    format!("{SECTION}{name}")
}

/// The networks by name, each with its first alias if that is shorter.
pub(super) fn type_doc() -> &'static str {
    let networks = known_networks();
    let names: Vec<String> = networks
        .iter()
        .map(|network| match network.aliases.first() {
            Some(alias) if alias.len() < network.name.len() => {
                format!("{} ({alias})", network.name)
            }
            _ => network.name.to_string(),
        })
        .collect();
    format!(
        "Network: {}; `paragon networks` lists their other names and their settings",
        names.join(", ")
    )
    .leak()
}

/// The keys of all settings of all networks, in the order of the networks. A setting that several
/// networks have is one key. `others` are the keys whose flags are not free.
pub(super) fn setting_keys(others: &[Key]) -> Vec<Key> {
    let networks = known_networks();
    let mut names: Vec<&'static str> = Vec::new();
    for spec in networks.iter().flat_map(|network| network.settings) {
        if !names.contains(&spec.name) {
            names.push(spec.name);
        }
    }
    names
        .into_iter()
        .map(|name| setting_key(name, &networks, others))
        .collect()
}

/// The key of one setting. The strings are leaked: the table is made once and kept for good.
fn setting_key(name: &'static str, networks: &[KnownNetwork], others: &[Key]) -> Key {
    let with: Vec<(&'static str, &'static SettingSpec)> = networks
        .iter()
        .filter_map(|network| {
            let spec = network.settings.iter().find(|spec| spec.name == name)?;
            Some((network.name, spec))
        })
        .collect();
    let kinds: Vec<SettingKind> = with.iter().map(|(_, spec)| spec.kind).collect();
    let doc = with.first().map_or("", |(_, spec)| spec.doc);
    let key = Key::new(Heading::Network, setting_path(name).leak(), kind_of(&kinds))
        .doc(doc)
        .unset(defaults_text(&with).leak());
    let other = OTHER_FLAGS.iter().find(|(setting, _)| *setting == name);
    let flag = other.map_or_else(|| name.replace('_', "-"), |(_, flag)| (*flag).to_string());
    let is_taken = others
        .iter()
        .any(|key| matches!(key.flag, Flag::Takes(taken, _) | Flag::Off(taken) if taken == flag));
    if is_taken {
        return key;
    }
    let value = match key.kind {
        Kind::Whole(..) => "N",
        Kind::Bool => "true|false",
        Kind::Choice(_) => "NAME",
        _ => "NUMBER",
    };
    key.flag(flag.leak(), value)
}

/// `the network's own: 0.3 for paragonsr2_realtime, 0 for paragonsr2_stream`
fn defaults_text(with: &[(&str, &SettingSpec)]) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for (network, spec) in with {
        let value = value_text(&spec.default());
        match groups.iter_mut().find(|(other, _)| *other == value) {
            Some((_, networks)) => networks.push(network),
            None => groups.push((value, vec![network])),
        }
    }
    let groups: Vec<String> = groups
        .iter()
        .map(|(value, networks)| format!("{value} for {}", networks.join(" and ")))
        .collect();
    format!("the network's own: {}", groups.join(", "))
}

/// A value as texts show it: small numbers with an exponent.
pub fn value_text(value: &Setting) -> String {
    match value {
        Setting::Number(number) if number.to_string().len() > 6 => format!("{number:?}"),
        value => value.to_string(),
    }
}

/// The kind of a key for settings of these kinds: it takes what any of the networks takes.
fn kind_of(kinds: &[SettingKind]) -> Kind {
    let all: Vec<Kind> = kinds
        .iter()
        .map(|kind| match *kind {
            SettingKind::Flag(_) => Kind::Bool,
            SettingKind::Whole {
                range: (low, high), ..
            } => Kind::Whole(low as u64, high as u64),
            SettingKind::Number(_) => Kind::Single,
            SettingKind::Choice(names) => Kind::Choice(choices(names)),
        })
        .collect();
    let joined = all.into_iter().reduce(|one, other| match (one, other) {
        (Kind::Whole(low, high), Kind::Whole(l, h)) => Kind::Whole(low.min(l), high.max(h)),
        (Kind::Choice(a), Kind::Choice(b)) => {
            let more = b
                .iter()
                .filter(|(name, _)| a.iter().all(|(n, _)| n != name));
            Kind::Choice(a.iter().chain(more).copied().collect::<Vec<_>>().leak())
        }
        // a test refuses networks whose settings of one name have different kinds
        (one, _) => one,
    });
    joined.unwrap_or(Kind::Text)
}

fn choices(names: &[&'static str]) -> Names {
    let none: &'static [&'static str] = &[];
    let names: Vec<_> = names.iter().map(|name| (*name, none)).collect();
    names.leak()
}

/// The value of a key as a setting of a network. `None` for no value and for values that no setting
/// has.
pub(super) fn as_setting(value: &Value) -> Option<Setting> {
    match value {
        Value::Bool(value) => Some(Setting::Flag(*value)),
        Value::Whole(value) => Some(Setting::Whole(usize::try_from(*value).ok()?)),
        Value::Number(value) => Some(Setting::Number(*value as f32)),
        Value::Text(value) => Some(Setting::Choice(value.clone())),
        _ => None,
    }
}

/// A setting of a network as the value of its key.
pub(super) fn as_value(setting: &Setting) -> Value {
    match setting {
        Setting::Flag(value) => Value::Bool(*value),
        Setting::Whole(value) => Value::Whole(*value as u64),
        // the shortest text of the f32: 0.3 and not 0.30000001192
        Setting::Number(value) => Value::Number(value.to_string().parse().unwrap_or_default()),
        Setting::Choice(value) => Value::Text(value.clone()),
    }
}

/// Reads `NAME=VALUE` of a network's setting, as `norm=true`.
///
/// # Errors
/// A name that no network's setting has, or a value that it cannot hold.
pub fn parse_setting(text: &str) -> Result<(String, Setting)> {
    let (name, value) = text
        .split_once('=')
        .with_context(|| format!("'{}' has no '='; write it as norm=true", brief(text)))?;
    let name = name.trim();
    let path = setting_path(name);
    let Some(key) = index(&path).filter(|_| setting_of(&path).is_some()) else {
        let known: Vec<&str> = KEYS.iter().filter_map(|key| setting_of(key.path)).collect();
        return Err(anyhow!(
            "no network has a setting '{}'; there are {}",
            brief(name),
            known.join(", ")
        ));
    };
    let value = KEYS[key]
        .kind
        .read(value.trim())
        .map_err(|e| anyhow!("{name}: {e}"))?;
    let setting = as_setting(&value).with_context(|| format!("{name} has no value"))?;
    Ok((name.to_string(), setting))
}

impl Settings {
    /// The network of `network_g` at a scale.
    ///
    /// # Errors
    /// An unknown network, a scale that it cannot have; a setting that the network does not have,
    /// or a value that it cannot have, with file and line where a file says it.
    pub fn network(&self, scale: usize) -> Result<Network> {
        let mut network = Network::new(self.text(TYPE).unwrap_or_default(), scale)?;
        for (at, key) in KEYS.iter().enumerate() {
            let setting = setting_of(key.path).zip(self.values.get(at).and_then(as_setting));
            let Some((name, setting)) = setting else {
                continue;
            };
            let set = network.set(name, setting);
            let unset = match &set {
                Err(Error::NoSetting { .. }) => format!("; {}=~ unsets it", key.path),
                _ => String::new(),
            };
            set.map_err(|error| anyhow!("{}{}: {error}{unset}", self.place(at), key.path))?;
        }
        Ok(network)
    }

    /// Writes the name and every setting of a network into the keys of `network_g`, so that a file
    /// of these settings gives the same network in a version with other defaults.
    pub fn put_network(&mut self, network: &Network) {
        self.put(TYPE, Value::Text(network.arch.clone()));
        for (spec, setting) in network.settings() {
            self.put(&setting_path(spec.name), as_value(setting));
        }
    }

    /// Unsets what an imported file says about settings that the chosen network does not have: the
    /// file's own network may have been replaced by `--network`. Returns the keys and their values.
    pub fn drop_foreign_settings(&mut self) -> Vec<(&'static str, String)> {
        let Some(known) = self.known_network() else {
            return Vec::new();
        };
        let mut dropped = Vec::new();
        for (at, key) in KEYS.iter().enumerate() {
            let is_known = |name: &str| known.settings.iter().any(|spec| spec.name == name);
            let lacks = setting_of(key.path).is_some_and(|name| !is_known(name));
            if lacks && self.origins.get(at) == Some(&Origin::Imported) {
                let value = std::mem::replace(&mut self.values[at], Value::Null);
                if value != Value::Null {
                    dropped.push((key.path, value.yaml()));
                }
            }
        }
        dropped
    }

    /// The network of `network_g.type`; `None` where its name is not known.
    pub fn known_network(&self) -> Option<KnownNetwork> {
        known_network(self.text(TYPE)?)
    }
}

/// The settings that an alias of a network sets to other values than its defaults.
pub fn alias_settings(network: &KnownNetwork, alias: &str) -> BTreeMap<&'static str, Setting> {
    let scale = network.scales.first().copied().unwrap_or(2);
    let Ok(made) = Network::new(alias, scale) else {
        return BTreeMap::new();
    };
    made.settings()
        .filter(|(spec, setting)| spec.default() != **setting)
        .map(|(spec, setting)| (spec.name, setting.clone()))
        .collect()
}

/// The index of the key of a setting.
///
/// # Errors
/// A setting that has no key.
pub(super) fn key_of(name: &str) -> Result<usize> {
    find(&setting_path(name))
}
