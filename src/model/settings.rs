//! The settings of a network: each architecture lists the ones it has, with default, range and
//! help. Depends on nothing else in the crate.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Whole(usize),
    /// A number.
    Number(f32),
    /// One of some names.
    Choice(String),
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setting::Flag(value) => write!(f, "{value}"),
            Setting::Whole(value) => write!(f, "{value}"),
            Setting::Number(value) => write!(f, "{value}"),
            Setting::Choice(value) => f.write_str(value),
        }
    }
}

impl From<bool> for Setting {
    fn from(value: bool) -> Setting {
        Setting::Flag(value)
    }
}

impl From<usize> for Setting {
    fn from(value: usize) -> Setting {
        Setting::Whole(value)
    }
}

impl From<f32> for Setting {
    fn from(value: f32) -> Setting {
        Setting::Number(value)
    }
}

impl From<&str> for Setting {
    fn from(value: &str) -> Setting {
        Setting::Choice(value.to_string())
    }
}

/// The settings of one network by name. They are the fields of a [`Network`](super::Network)
/// beside its name and scale, also where it is written as JSON.
pub type Settings = BTreeMap<String, Setting>;

/// The kind of a setting, with its default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SettingKind {
    /// Yes or no.
    Flag(bool),
    /// A whole number in a range, both ends included.
    Whole {
        /// Used where none is given.
        default: usize,
        /// The smallest and the largest value.
        range: (usize, usize),
    },
    /// Any finite number.
    Number(f32),
    /// One of these names; the first is the default.
    Choice(&'static [&'static str]),
}

/// What a network file says about a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFile {
    /// Its tensors show the value.
    Shapes,
    /// No tensor shows the value, so the program writes it to the metadata; a file without
    /// metadata needs it from the caller.
    Metadata,
    /// Nothing: it decides start values alone.
    StartValue,
}

/// One setting of an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SettingSpec {
    /// Its name, also the key in option files and metadata.
    pub name: &'static str,
    /// Its kind and default.
    pub kind: SettingKind,
    /// Where a file has it.
    pub in_file: InFile,
    /// What it means, as a sentence for the help.
    pub doc: &'static str,
}

impl SettingSpec {
    /// The value where none is given.
    pub fn default(&self) -> Setting {
        match self.kind {
            SettingKind::Flag(default) => Setting::Flag(default),
            SettingKind::Whole { default, .. } => Setting::Whole(default),
            SettingKind::Number(default) => Setting::Number(default),
            SettingKind::Choice(names) => {
                Setting::Choice(names.first().copied().unwrap_or_default().to_string())
            }
        }
    }

    /// The value in the setting's own kind, if it is one of its values: a whole number may be given
    /// where a number is wanted.
    pub fn accept(&self, value: &Setting) -> Option<Setting> {
        let accepted = match (self.kind, value) {
            (SettingKind::Flag(_), Setting::Flag(_)) => value.clone(),
            (
                SettingKind::Whole {
                    range: (low, high), ..
                },
                Setting::Whole(n),
            ) => {
                return (low..=high).contains(n).then(|| value.clone());
            }
            (SettingKind::Number(_), Setting::Number(n)) => {
                return n.is_finite().then(|| value.clone());
            }
            (SettingKind::Number(_), &Setting::Whole(n)) => Setting::Number(n as f32),
            (SettingKind::Choice(names), Setting::Choice(name)) => {
                return names.contains(&name.as_str()).then(|| value.clone());
            }
            _ => return None,
        };
        Some(accepted)
    }

    /// The value that a text stands for.
    pub fn parse(&self, text: &str) -> Option<Setting> {
        let value = match self.kind {
            SettingKind::Flag(_) => Setting::Flag(text.parse().ok()?),
            SettingKind::Whole { .. } => Setting::Whole(text.parse().ok()?),
            SettingKind::Number(_) => Setting::Number(text.parse().ok()?),
            SettingKind::Choice(_) => Setting::Choice(text.to_lowercase()),
        };
        self.accept(&value)
    }

    /// The values that it may have, in words.
    pub fn allowed(&self) -> String {
        match self.kind {
            SettingKind::Flag(_) => "true or false".to_string(),
            SettingKind::Whole {
                range: (low, high), ..
            } => {
                format!("a whole number from {low} to {high}")
            }
            SettingKind::Number(_) => "a number".to_string(),
            SettingKind::Choice(names) => names.join(", "),
        }
    }
}
