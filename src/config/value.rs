//! The kinds of values that keys have, and one parser for values from a file, `--set` and flags.
//! Depends on the YAML tree. An accepted value is always in its range.

pub use super::scalar::parse_size;
use super::scalar::{boolean, whole};
use super::yaml::{Data, Node};
use crate::plan::LossKind;
use crate::support::text::brief;
use crate::train::LossTerm;
use serde_json::json;
use std::ffi::OsStr;
use std::path::PathBuf;

/// The names of a choice: for each option the name that is written, and aliases that are read.
pub type Names = &'static [(&'static str, &'static [&'static str])];

/// The type of a key's value.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number in a range.
    Whole(u64, u64),
    /// A number above 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// From 0 to 1, without 1.
    Share,
    /// Any number that fits an f32.
    Single,
    /// The largest gradient norm: a number, or true for 1 and false for 0.
    Clip,
    /// true or false.
    Bool,
    /// Any text.
    Text,
    /// A file or folder.
    Path,
    /// One of some names.
    Choice(Names),
    /// Bytes: 512M, 2G.
    Size,
    /// auto, off or bytes.
    Window,
    /// Whole numbers.
    Wholes,
    /// Two shares.
    Betas,
    /// Numbers above 0.
    Weights,
    /// Folders.
    Paths,
    /// Losses with weights.
    Losses,
}

/// An accepted value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value; its meaning is `Key::unset`.
    Null,
    /// true or false.
    Bool(bool),
    /// A whole number.
    Whole(u64),
    /// Any number.
    Number(f64),
    /// Text or the written name of a choice.
    Text(String),
    /// A path; one that is no UTF-8 comes from a flag only.
    Path(PathBuf),
    /// A list.
    List(Vec<Value>),
    /// A loss.
    Loss(LossTerm),
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<Value, String> {
    let value = text
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|v| v.is_finite() && fits(*v));
    value
        .map(Value::Number)
        .ok_or_else(|| format!("expected {expected}, found '{}'", brief(text)))
}

/// A loss and its weight as a flag writes them: `l1:1.0`.
///
/// # Errors
/// What is wrong with it.
pub fn loss_term(text: &str) -> Result<LossTerm, String> {
    let (kind, weight) = text.split_once(':').unwrap_or((text, "1"));
    let kind = loss_kind(kind)?;
    let weight: f32 = weight
        .trim()
        .parse()
        .map_err(|_| format!("'{}' is no weight; write it as l1:1.0", brief(weight)))?;
    if !weight.is_finite() || weight < 0.0 {
        return Err(format!("a weight of {weight} makes no sense"));
    }
    Ok(LossTerm { kind, weight })
}

fn loss(text: &str) -> Result<Value, String> {
    loss_term(text).map(Value::Loss)
}

/// A loss by its name, ours or traiNNer-redux's.
pub fn loss_kind(name: &str) -> Result<LossKind, String> {
    LossKind::from_name(name.trim()).ok_or_else(|| {
        format!(
            "unknown loss '{}'; known are l1, charbonnier, mse, ssim, mssim",
            brief(name)
        )
    })
}

/// The name a loss is written with.
pub fn loss_name(kind: LossKind) -> String {
    format!("{}loss", kind.name())
}

/// `{type: l1loss, loss_weight: 1.0}`
fn loss_of_map(entries: &[(String, Node)]) -> Result<Value, String> {
    let mut parts = ["", "1"];
    for (key, node) in entries {
        let place = match key.as_str() {
            "type" => 0,
            "loss_weight" => 1,
            other => {
                return Err(format!(
                    "a loss has type and loss_weight; '{}' is unknown",
                    brief(other)
                ));
            }
        };
        let Data::Scalar(text) = &node.data else {
            return Err(format!("{key} of a loss takes one value"));
        };
        parts[place] = text;
    }
    loss(&format!("{}:{}", parts[0], parts[1]))
}

impl Kind {
    /// A description of the accepted values, for errors and tables.
    pub fn expected(&self) -> String {
        match self {
            Kind::Whole(least, u64::MAX) => format!("a whole number from {least}"),
            Kind::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Positive => "a number above 0".into(),
            Kind::NotNegative => "0 or a number above it".into(),
            Kind::Share => "a number from 0 up to, but not, 1".into(),
            Kind::Single => "a number".into(),
            Kind::Clip => "0 or a number above it; true is 1, false is 0".into(),
            Kind::Bool => "true or false".into(),
            Kind::Text => "text".into(),
            Kind::Path => "a path".into(),
            Kind::Choice(names) => {
                // other spellings of the same word (`multistep`) and numbers of devices are not shown
                let short = |aliases: &[&'static str], name: &str| {
                    let known = |alias: &&&str| name.to_lowercase().starts_with(**alias);
                    aliases.iter().find(known).copied()
                };
                let text = |(name, aliases): &(&str, &[&'static str])| match short(aliases, name) {
                    Some(alias) => format!("{name} or {alias}"),
                    None => (*name).to_string(),
                };
                let all: Vec<String> = names.iter().map(text).collect();
                format!("one of {}", all.join(", "))
            }
            Kind::Size => "bytes, as 512M or 2G".into(),
            Kind::Window => "auto, off or bytes (2G)".into(),
            Kind::Wholes => "a list of whole numbers".into(),
            Kind::Betas => "two numbers from 0 up to, but not, 1".into(),
            Kind::Weights => "a list of numbers above 0".into(),
            Kind::Paths => "a folder or a list of them".into(),
            Kind::Losses => "a list of {type, loss_weight}; types are l1loss, charbonnierloss, mseloss, ssimloss, mssimloss".into(),
        }
    }

    /// The kind of a list's elements; `None` for a kind that is not a list.
    fn element(&self) -> Option<Kind> {
        match self {
            Kind::Wholes => Some(Kind::Whole(0, u64::MAX)),
            Kind::Betas => Some(Kind::Share),
            Kind::Weights => Some(Kind::Positive),
            Kind::Paths => Some(Kind::Path),
            _ => None,
        }
    }

    /// Reads a value written as one text: a flag, or a scalar of a file. Lists of numbers are split
    /// at commas.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let wrong = || format!("expected {}, found '{}'", self.expected(), brief(text));
        match self {
            Kind::Whole(least, most) => whole(text)
                .filter(|v| (*least..=*most).contains(v))
                .map(Value::Whole)
                .ok_or_else(wrong),
            Kind::Positive => number(text, |v| v > 0.0, &self.expected()),
            Kind::NotNegative => number(text, |v| v >= 0.0, &self.expected()),
            Kind::Share => number(text, |v| (0.0..1.0).contains(&v), &self.expected()),
            Kind::Single => number(text, |v| (v as f32).is_finite(), &self.expected()),
            Kind::Clip => match boolean(text) {
                Some(on) => Ok(Value::Number(f64::from(u8::from(on)))),
                None => number(text, |v| v >= 0.0, &self.expected()),
            },
            Kind::Bool => boolean(text).map(Value::Bool).ok_or_else(wrong),
            Kind::Text | Kind::Path if text.is_empty() => {
                Err(format!("expected {}, found nothing", self.expected()))
            }
            Kind::Text => Ok(Value::Text(text.to_string())),
            Kind::Path => Ok(Value::Path(PathBuf::from(text))),
            Kind::Choice(names) => {
                // `scale: 4.0` names 4
                let written = whole(text)
                    .map_or_else(|| text.trim().to_string(), |number| number.to_string());
                let same = |name: &str| name.eq_ignore_ascii_case(&written);
                let found = names
                    .iter()
                    .find(|(name, others)| same(name) || others.iter().any(|o| same(o)));
                found
                    .map(|(name, _)| Value::Text((*name).to_string()))
                    .ok_or_else(wrong)
            }
            Kind::Size => parse_size(text).map(Value::Whole),
            Kind::Window => match text.to_ascii_lowercase().as_str() {
                "auto" => Ok(Value::Text("auto".into())),
                "off" | "false" | "no" => Ok(Value::Text("off".into())),
                size => match parse_size(size)? {
                    0 => Err(
                        "a window of 0 bytes holds no record; use off to shuffle everything".into(),
                    ),
                    bytes => Ok(Value::Whole(bytes)),
                },
            },
            Kind::Paths => Kind::Path.read(text).map(|v| Value::List(vec![v])),
            Kind::Losses => text
                .split(',')
                .map(loss)
                .collect::<Result<_, _>>()
                .map(Value::List),
            Kind::Wholes | Kind::Betas | Kind::Weights => {
                let element = self.element().unwrap_or(Kind::Single);
                let parts = text.split(',').filter(|part| !part.trim().is_empty());
                let list = parts
                    .map(|part| element.read(part))
                    .collect::<Result<Vec<_>, _>>()?;
                self.whole_list(list)
            }
        }
    }

    /// Reads a flag, whose path may be any bytes.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn read_flag(&self, text: &OsStr) -> Result<Value, String> {
        match (text.to_str(), self) {
            (Some(text), _) => self.read(text),
            (None, Kind::Path) => Ok(Value::Path(PathBuf::from(text))),
            (None, Kind::Paths) => Ok(Value::List(vec![Value::Path(PathBuf::from(text))])),
            (None, _) => Err(format!(
                "expected {}, found bytes that are no text",
                self.expected()
            )),
        }
    }

    fn whole_list(&self, list: Vec<Value>) -> Result<Value, String> {
        match self {
            Kind::Betas if list.len() != 2 => Err(format!(
                "expected two numbers, as in 0.9,0.99; found {}",
                list.len()
            )),
            _ => Ok(Value::List(list)),
        }
    }

    /// Reads a value of a file. Accepts null; the caller checks whether the key allows it.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn accept(&self, node: &Node) -> Result<Value, String> {
        match (&node.data, self) {
            (Data::Null, _) => Ok(Value::Null),
            (Data::Scalar(text), _) => self.read(text),
            (Data::List(list), Kind::Losses) => {
                let one = |node: &Node| match &node.data {
                    Data::Map(entries) => loss_of_map(entries),
                    Data::Scalar(text) => loss(text),
                    _ => Err(format!("expected {}", self.expected())),
                };
                list.iter()
                    .map(one)
                    .collect::<Result<_, _>>()
                    .map(Value::List)
            }
            (Data::List(list), _) => {
                let Some(element) = self.element() else {
                    return Err(format!("expected {}, found a list", self.expected()));
                };
                let one = |node: &Node| match element.accept(node)? {
                    Value::Null => Err(format!(
                        "expected {}, found nothing in the list",
                        element.expected()
                    )),
                    value => Ok(value),
                };
                self.whole_list(list.iter().map(one).collect::<Result<_, _>>()?)
            }
            (Data::Map(_), _) => Err(format!(
                "expected {}, found keys and values",
                self.expected()
            )),
        }
    }

    /// Its JSON schema.
    pub fn schema(&self) -> serde_json::Value {
        let list = |items: serde_json::Value| json!({"type": "array", "items": items});
        match self {
            Kind::Whole(least, u64::MAX) => json!({"type": "integer", "minimum": least}),
            Kind::Whole(least, most) => {
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            Kind::Positive => json!({"type": "number", "exclusiveMinimum": 0}),
            Kind::NotNegative => json!({"type": "number", "minimum": 0}),
            Kind::Share => json!({"type": "number", "minimum": 0, "exclusiveMaximum": 1}),
            Kind::Single => json!({"type": "number"}),
            Kind::Clip => json!({"type": ["number", "boolean"], "minimum": 0}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Text | Kind::Path => json!({"type": "string", "minLength": 1}),
            Kind::Choice(names) => json!({"enum": names.iter().flat_map(|(name, others)| {
                // a scalar that YAML itself takes for a number is written as one
                std::iter::once(*name).chain(others.iter().copied()).map(|n| n.parse::<u64>().map_or(json!(n), |n| json!(n)))
            }).collect::<Vec<_>>()}),
            Kind::Size | Kind::Window => json!({"type": ["integer", "string"]}),
            Kind::Wholes | Kind::Weights => list(self.element().unwrap_or(Kind::Single).schema()),
            Kind::Betas => {
                json!({"type": "array", "items": Kind::Share.schema(), "minItems": 2, "maxItems": 2})
            }
            Kind::Paths => json!({"anyOf": [Kind::Path.schema(), list(Kind::Path.schema())]}),
            Kind::Losses => {
                let types = LossKind::ALL.map(loss_name);
                list(json!({
                    "type": "object",
                    "properties": {"type": {"enum": types}, "loss_weight": Kind::NotNegative.schema()},
                    "required": ["type"],
                    "additionalProperties": false,
                }))
            }
        }
    }
}

impl Value {
    /// The value as YAML in one line.
    pub fn yaml(&self) -> String {
        match self {
            Value::Null => "~".into(),
            Value::Bool(value) => value.to_string(),
            Value::Whole(value) => value.to_string(),
            Value::Number(value) => format!("{value:?}"),
            Value::Text(text) => quoted(text),
            Value::Path(path) => quoted(&path.to_string_lossy()),
            Value::List(list) => format!(
                "[{}]",
                list.iter().map(Value::yaml).collect::<Vec<_>>().join(", ")
            ),
            Value::Loss(term) => format!(
                "{{type: {}, loss_weight: {:?}}}",
                loss_name(term.kind),
                term.weight
            ),
        }
    }
}

/// Text as a plain scalar where it cannot be taken for anything else, in quotes otherwise.
fn quoted(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_alphabetic() || c == '/' || c == '.')
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || "_-./".contains(c))
        && text.parse::<f64>().is_err()
        && !["null", "~", "true", "false", "yes", "no", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str())
        && !text.ends_with('.');
    if plain {
        text.to_string()
    } else {
        serde_json::Value::String(text.to_string()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_whole_numbers_in_every_way_and_name_what_is_none() {
        let steps = Kind::Whole(1, 1_000_000);
        assert_eq!(steps.read("5e3"), Ok(Value::Whole(5000)));
        assert_eq!(
            Kind::Wholes.read("1e5, 2.5e5"),
            Ok(Value::List(vec![
                Value::Whole(100_000),
                Value::Whole(250_000)
            ]))
        );
        assert_eq!(
            Kind::Choice(&[("2", &[]), ("4", &[])]).read("4.0"),
            Ok(Value::Text("4".into()))
        );
        for text in ["5.5", "1e400", "2e6", "0.0", "-5e3"] {
            let error = steps.read(text).unwrap_err();
            assert!(
                error.contains("a whole number from 1 to 1000000") && error.contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn a_list_holds_no_nothing() {
        for (kind, text) in [
            (Kind::Wholes, "[1, ~]"),
            (Kind::Betas, "[0.9, null]"),
            (Kind::Paths, "[a, ]\n"),
            (Kind::Paths, "- a\n-\n"),
        ] {
            let read = kind.accept(&super::super::parse(text).unwrap());
            assert_eq!(read.is_err(), text != "[a, ]\n", "{text}: {read:?}");
        }
    }

    #[test]
    fn errors_do_not_repeat_a_long_value() {
        let long = "x".repeat(1 << 20);
        for kind in [
            Kind::Whole(0, 9),
            Kind::Positive,
            Kind::Clip,
            Kind::Bool,
            Kind::Choice(&[("a", &[])]),
            Kind::Size,
            Kind::Window,
            Kind::Wholes,
            Kind::Losses,
        ] {
            let error = kind.read(&long).unwrap_err();
            assert!(
                error.len() < 500 && error.contains("xxx"),
                "{kind:?}: {} bytes",
                error.len()
            );
        }
    }
}
