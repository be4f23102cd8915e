//! The network of another trainer's file: its name, and its keys as settings of paragon's network
//! of that name. Depends on the networks' table. A name that means different networks in different
//! trainers is decided by the keys beside it, and what was assumed is reported.

use super::super::network::{as_setting, as_value, key_of, value_text};
use super::super::theirs::{FIXED, REASONS};
use super::super::value::Value;
use super::super::yaml::{Data, Node};
use super::super::{KEYS, TYPE};
use super::Imported;
use super::effect::{is_same, scalar};
use super::report::shown;
use crate::model::{InFile, Network, known_networks};
use crate::support::text::brief;
use anyhow::{Result, anyhow, ensure};

/// Mean colour that SPAN subtracts where it normalises.
const RGB_MEAN: [f64; 3] = [0.4488, 0.4371, 0.4040];
/// SPAN of its paper's code: always normalised, which traiNNer-redux's `span` is not.
const PAPER_SPAN: (&str, usize) = ("SPAN", 48);
/// Keys that the paper's SPAN must be given and that traiNNer-redux's does not have in its files.
const PAPER_KEYS: [&str; 2] = ["upscale", "num_in_ch"];

/// A network of this name at its first scale.
fn made(name: &str) -> Result<Network, crate::model::Error> {
    let networks = known_networks();
    let lower = name.to_lowercase();
    let named = networks
        .iter()
        .find(|n| n.name == lower || n.aliases.contains(&lower.as_str()));
    let scale = named.and_then(|n| n.scales.first().copied()).unwrap_or(2);
    Network::new(name, scale)
}

impl Imported {
    /// Reads the keys of `network_g`.
    pub(super) fn resolve_network(&mut self, root: &Node) -> Result<()> {
        let keys = std::mem::take(&mut self.network_keys);
        let kind = keys.iter().find(|(path, _)| path == TYPE);
        let Some((name, node)) = kind.and_then(|(_, node)| Some((scalar(node)?, node))) else {
            return keys
                .iter()
                .try_for_each(|(path, node)| self.key_without_network(path, node));
        };
        let mut net = match made(name) {
            Ok(net) => net,
            Err(error) => {
                self.unknown_network(name, node, &error)?;
                for (path, node) in keys.iter().filter(|(path, _)| path != TYPE) {
                    self.key_without_network(path, node)?;
                }
                return Ok(());
            }
        };
        self.take(TYPE, TYPE, node)?;
        let name_of = |path: &str| path[SECTION..].to_string();
        let has = |key: &&str| keys.iter().any(|(path, _)| name_of(path) == **key);
        let (paper_name, features) = PAPER_SPAN;
        if name == paper_name && PAPER_KEYS.iter().any(has) {
            net.set("feature_channels", features)?;
            net.set("norm", true)?;
            self.put_setting(&net, "feature_channels")?;
            self.put_setting(&net, "norm")?;
        }
        let keys = keys.iter().filter(|(path, _)| path != TYPE);
        let (settings, others): (Vec<_>, Vec<_>) =
            keys.partition(|(path, _)| net.spec(&name_of(path)).is_ok());
        // settings first: whether other keys have an effect depends on them
        for (path, node) in &settings {
            self.setting(&mut net, path, node)?;
        }
        for (path, node) in others {
            self.other_key(root, &net, path, node)?;
        }
        let has_value = settings.iter().filter(|(_, node)| node.data != Data::Null);
        let said: Vec<String> = has_value.map(|(path, _)| name_of(path)).collect();
        for (spec, setting) in net.settings() {
            // start values leave no trace in the network, so they are not worth a line
            let is_assumed = !said.iter().any(|name| name == spec.name);
            if is_assumed && spec.in_file != InFile::StartValue {
                let path = KEYS[key_of(spec.name)?].path;
                self.assumed.push((path, value_text(setting)));
            }
        }
        Ok(())
    }

    /// A key of `network_g` that is a setting of the network.
    fn setting(&mut self, net: &mut Network, path: &str, node: &Node) -> Result<()> {
        let name = &path[SECTION..];
        let key = key_of(name)?;
        self.take(path, KEYS[key].path, node)?;
        let taken = self.values.last().filter(|(k, _)| *k == key);
        if let Some(setting) = taken.and_then(|(_, value)| as_setting(value)) {
            net.set(name, setting)
                .map_err(|error| anyhow!("line {}: {path}: {error}", node.line))?;
        }
        Ok(())
    }

    fn put_setting(&mut self, net: &Network, name: &'static str) -> Result<()> {
        let found = net.settings().find(|(spec, _)| spec.name == name);
        if let Some((_, setting)) = found {
            self.values.push((key_of(name)?, as_value(setting)));
        }
        Ok(())
    }

    /// A key of `network_g` that is no setting of the network.
    fn other_key(&mut self, root: &Node, net: &Network, path: &str, node: &Node) -> Result<()> {
        let (key, line, value) = (&path[SECTION..], node.line, shown(node));
        if node.data == Data::Null {
            // the same as a missing key
        } else if key == "upscale" || key == "scale" {
            let Some(scale) = root.get("scale").filter(|node| node.data != Data::Null) else {
                return self.take(path, "scale", node);
            };
            ensure!(
                is_same(&value, &shown(scale)),
                "line {line}: {path} is {}, and the file's scale is {}; they must agree",
                brief(&value),
                brief(shown(scale))
            );
        } else if let Some((is_it, wanted)) = required(net, key, node) {
            ensure!(
                is_it,
                "line {line}: {path} is {}, which makes another network; {} has {wanted}",
                brief(&value),
                net.arch
            );
        } else if let Some((_, reason)) = REASONS.iter().find(|(name, _)| *name == path) {
            self.ignore(path, node, *reason);
            return Ok(());
        } else {
            let known: Vec<&str> = net.settings().map(|(spec, _)| spec.name).collect();
            let (arch, known) = (&net.arch, known.join(", "));
            let reason = format!("not a setting of {arch}, which has {known}");
            self.ignore(path, node, reason);
            return Ok(());
        }
        self.without_effect.push((path.to_string(), value));
        Ok(())
    }

    /// A key of `network_g` where its type is missing or not known.
    fn key_without_network(&mut self, path: &str, node: &Node) -> Result<()> {
        if path == TYPE {
            return self.take(path, TYPE, node);
        }
        // the default network of the table of keys
        if let Ok(key) = key_of(&path[SECTION..])
            && !self.has(TYPE)
        {
            return self.take(path, KEYS[key].path, node);
        }
        let begins = |start: &str| {
            path.strip_prefix(start)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
        };
        let reason = REASONS.iter().find(|(start, _)| begins(start));
        self.ignore(path, node, reason.map_or("", |(_, reason)| reason));
        Ok(())
    }

    /// A network that this program does not know stays in the settings, so that training it is
    /// refused; the list says so.
    fn unknown_network(
        &mut self,
        name: &str,
        node: &Node,
        error: &crate::model::Error,
    ) -> Result<()> {
        self.values
            .push((self.at(TYPE)?, Value::Text(name.to_string())));
        let reason = format!(
            "{error:#}; training is refused until network_g.type (--network) names one that can be trained"
        );
        self.ignored
            .insert(0, (TYPE.to_string(), shown(node), reason));
        Ok(())
    }
}

/// Bytes of `network_g.` before the name of a key.
const SECTION: usize = "network_g.".len();

/// For a key that must have one value: whether it has that value, and the value in words. The
/// constants of the normalisation may be anything where the network does not normalise.
fn required(net: &Network, key: &str, node: &Node) -> Option<(bool, String)> {
    let unused = ["img_range", "rgb_mean"].contains(&key) && !net.flag("norm");
    if net.arch == "span" && key == "rgb_mean" {
        return Some((unused || is_mean_colour(node), format!("{RGB_MEAN:?}")));
    }
    let mut all = FIXED.iter();
    let found = all.find(|(network, name, _)| *network == net.arch && *name == key);
    found.map(|(_, _, wanted)| {
        let is_it = unused || is_same(&shown(node), wanted);
        (is_it, (*wanted).to_string())
    })
}

fn is_mean_colour(node: &Node) -> bool {
    let Data::List(list) = &node.data else {
        return false;
    };
    let numbers = list.iter().map(|node| scalar(node)?.parse::<f64>().ok());
    numbers.collect::<Option<Vec<_>>>().as_deref() == Some(&RGB_MEAN[..])
}

#[cfg(test)]
mod tests;
