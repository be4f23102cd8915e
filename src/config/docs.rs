//! The table of keys in all its forms: YAML files, the reference page, the explanation of a key, a
//! JSON schema. Depends on the table and on settings.

use super::advice::advice;
use super::network::setting_of;
use super::{Flag, KEYS, Key, Preset, SECTIONS, Settings, TYPE, Value};
use crate::model::known_network;
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

/// Width of comments.
const COLUMNS: usize = 100;

fn section_doc(path: &str) -> &'static str {
    SECTIONS
        .iter()
        .find(|(section, _)| *section == path)
        .map_or("", |(_, doc)| doc)
}

fn comment(out: &mut String, indent: usize, text: &str) {
    let pad = " ".repeat(indent);
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + 2 + line.len() + 1 + word.len() > COLUMNS {
            let _ = writeln!(out, "{pad}# {line}");
            line.clear();
        }
        line += if line.is_empty() { "" } else { " " };
        line += word;
    }
    let _ = writeln!(out, "{pad}# {line}");
}

/// The settings as a YAML file; reading it gives equal settings. Left out are settings without a
/// value that the network does not have.
pub fn yaml(settings: &Settings, comments: bool) -> String {
    let network = settings.text(TYPE).and_then(known_network);
    let is_other = |key: &Key| {
        let lacks = network
            .as_ref()
            .zip(setting_of(key.path))
            .is_some_and(|(network, name)| network.settings.iter().all(|spec| spec.name != name));
        lacks && *settings.value(key.path) == Value::Null
    };
    let keys: Vec<&Key> = KEYS.iter().filter(|key| !is_other(key)).collect();
    yaml_of(&keys, settings, comments)
}

fn yaml_of(keys: &[&Key], settings: &Settings, comments: bool) -> String {
    let mut out = String::new();
    let mut open: Vec<&str> = Vec::new();
    for key in keys {
        let mut parts: Vec<&str> = key.path.split('.').collect();
        let name = parts.pop().unwrap_or_default();
        let same = open.iter().zip(&parts).take_while(|(a, b)| a == b).count();
        for (level, section) in parts.iter().enumerate().skip(same) {
            if comments {
                let _ = writeln!(out);
                comment(&mut out, level * 2, section_doc(&parts[..=level].join(".")));
            }
            let _ = writeln!(out, "{}{section}:", "  ".repeat(level));
        }
        let indent = parts.len() * 2;
        open = parts;
        if comments {
            comment(
                &mut out,
                indent,
                &format!(
                    "{} ({}; default: {})",
                    key.doc,
                    key.kind.expected(),
                    key.default_text()
                ),
            );
        }
        let value = settings.value(key.path);
        let list = if let Value::List(list) = value {
            Some(list)
        } else {
            None
        };
        match list.filter(|list| list.iter().any(|v| matches!(v, Value::Loss(_)))) {
            Some(losses) => {
                let _ = writeln!(out, "{:indent$}{name}:", "");
                for loss in losses {
                    let _ = writeln!(out, "{:indent$}  - {}", "", loss.yaml());
                }
            }
            None => {
                let _ = writeln!(out, "{:indent$}{name}: {}", "", value.yaml());
            }
        }
    }
    out
}

/// A file with every key at its default, explained.
pub fn starter() -> String {
    format!(
        "# A training for `paragon train --config FILE`. Every key is at its default: keep what you change, drop the rest.\n\
         # `paragon config explain KEY` says more; --set KEY=VALUE and flags win over this file.\n{}",
        yaml_of(&KEYS.iter().collect::<Vec<_>>(), &Settings::default(), true)
    )
}

fn flag_text(key: &Key) -> Option<String> {
    match key.flag {
        Flag::None => None,
        Flag::Takes(name, value) => Some(format!("--{name} {value}")),
        Flag::Off(name) => Some(format!("--{name}")),
    }
}

/// One key, explained, with the usual values and a sentence of advice.
pub fn explain(key: &Key) -> String {
    let mut out = format!(
        "{}\n  {}\n  takes    {}\n  default  {}\n",
        key.path,
        key.doc,
        key.kind.expected(),
        key.default_text()
    );
    if let Some(meaning) = key.unset.filter(|_| key.default != "~") {
        let _ = writeln!(out, "  ~        {meaning}");
    }
    let off = if matches!(key.flag, Flag::Off(_)) {
        " (turns it off)"
    } else {
        ""
    };
    let _ = match flag_text(key) {
        Some(flag) => writeln!(out, "  flag     {flag}{off}"),
        None => writeln!(out, "  flag     none; --set {}=VALUE", key.path),
    };
    if let Some((usual, text)) = advice(key.path) {
        if !usual.is_empty() {
            let _ = writeln!(out, "  usual    {usual}");
        }
        let _ = writeln!(out, "  advice   {text}");
    }
    out
}

/// All keys, one line each.
pub fn overview() -> String {
    let line = |key: &Key| format!("{:32}  {}\n", key.path, key.doc);
    KEYS.iter().map(line).collect()
}

/// The reference page.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         Written by `paragon config reference`; do not edit.\n\n\
         `paragon train` and `paragon plan` take their configuration from these sources, of which a later one overrides an earlier one: the \
         defaults below, `--config FILE`, `--preset`, `--set KEY=VALUE` (repeatable, the value in YAML), and flags. The result is kept as `config.yml` in the folder of the run, and \
         `paragon train --config` takes it back.\n\n\
         `paragon config init` writes a commented file to start from, `paragon config explain KEY` explains a key, `paragon config schema` prints a \
         JSON schema for editors. Unknown keys are refused. A whole number may be written as a float that is one (`5e3`, `1000.0`). A file has at most \
         1 MiB; JSON is YAML, and TOML is not.\n\n\
         A traiNNer-redux option file (or one of BasicSR or Real-ESRGAN) is recognised by one of the top-level keys ",
    );
    let marks: Vec<String> = super::import::MARKS
        .iter()
        .map(|m| format!("`{m}`"))
        .collect();
    out += &marks.join(", ");
    out += ", which paragon's files do not have. It is taken as it is: a value that has a counterpart is honoured; a value that asks for what \
            paragon does anyway is counted; of the other values, those that may have decided the trained \
            network are listed with the reason and the nearest equivalent, a network that is not known here first, and \
            the rest are counted. A degradation on the fly becomes a degradation recipe (`data.degrade`). `paragon config import FILE` lists all and converts the file to paragon's format.\n\n\
            `paragon networks` lists the networks, their scales and their settings, each of which is a key of `network_g`. A setting that the \
            network does not have is refused.\n";
    out += "\n## Presets\n\nWhat `--preset` sets, as `paragon config explain PRESET` prints it:\n\n```text\n";
    let presets = Preset::ALL.map(|preset| preset.explain().trim_end().to_string());
    out += &presets.join("\n\n");
    out += "\n```\n";
    let mut section = None;
    for key in KEYS.iter() {
        let own = key.path.rsplit_once('.').map_or("", |(section, _)| section);
        if section != Some(own) {
            section = Some(own);
            let title = if own.is_empty() {
                "Top level".to_string()
            } else {
                format!("`{own}`")
            };
            let _ = write!(
                out,
                "\n## {title}\n\n{}\n\n| key | takes | default | flag | what |\n|---|---|---|---|---|\n",
                section_doc(own)
            );
        }
        let flag = flag_text(key).map_or(String::new(), |f| format!("`{f}`"));
        let default = if key.default == "~" {
            key.default_text()
        } else {
            format!("`{}`", key.default)
        };
        let row = [
            format!("`{}`", key.path.rsplit('.').next().unwrap_or(key.path)),
            key.kind.expected(),
            default,
            flag,
            key.doc.to_string(),
        ];
        let _ = writeln!(
            out,
            "| {} |",
            row.map(|cell| cell.replace('|', "\\|")).join(" | ")
        );
    }
    out
}

/// A JSON schema of paragon's option files, for editors.
pub fn schema() -> Json {
    let mut root = section_schema("The configuration of a paragon training");
    for key in KEYS.iter() {
        let mut place = &mut root;
        let mut path = String::new();
        let mut parts = key.path.split('.').peekable();
        while let Some(part) = parts.next() {
            path = if path.is_empty() {
                part.to_string()
            } else {
                format!("{path}.{part}")
            };
            let Some(properties) = place.get_mut("properties").and_then(Json::as_object_mut) else {
                break;
            };
            if parts.peek().is_none() {
                properties.insert(part.to_string(), key_schema(key));
                break;
            }
            place = properties
                .entry(part.to_string())
                .or_insert_with(|| section_schema(section_doc(&path)));
        }
    }
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root
}

fn section_schema(doc: &str) -> Json {
    json!({"type": "object", "description": doc, "properties": Map::new(), "additionalProperties": false})
}

fn key_schema(key: &Key) -> Json {
    let kind = key.kind.schema();
    let mut schema = if key.unset.is_some() {
        json!({"anyOf": [kind, {"type": "null"}]})
    } else {
        kind
    };
    schema["description"] = json!(format!("{} (default: {})", key.doc, key.default_text()));
    schema
}
