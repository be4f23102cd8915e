//! `paragon networks`: lists the networks that can be trained, from their own table.

use super::flags::{print, print_json};
use super::layout::{columns, folded};
use anyhow::Result;
use paragon::config::{alias_settings, value_text};
use paragon::model::{InFile, KnownNetwork, Setting, known_networks};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// List the networks: names, scales, and settings with their defaults.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Prints the list.
pub fn run(args: &Args) -> Result<()> {
    let networks = known_networks();
    if args.json {
        return print_json(&networks.iter().map(listed).collect::<Vec<_>>());
    }
    let columns = columns();
    let texts: Vec<String> = networks.iter().map(|n| as_text(n, columns)).collect();
    let text = format!(
        "{}\n\n\
         `train` and `plan` take a setting as --set network_g.NAME=VALUE, and most as a flag of their own; \
         `eval`, `upscale` and `bench` take --network-set NAME=VALUE.",
        texts.join("\n\n")
    );
    print(folded(&text, 0, columns))
}

/// Column at which the text of a setting begins; on narrow terminals its other lines begin earlier.
const SETTING_TEXT: usize = 38;
/// The same of the rows above.
const ROW_TEXT: usize = 15;

fn as_text(network: &KnownNetwork, columns: Option<usize>) -> String {
    let aliases: Vec<String> = network
        .aliases
        .iter()
        .map(|alias| {
            let sets: Vec<String> = alias_settings(network, alias)
                .iter()
                .map(|(name, value)| format!("{name} {}", value_text(value)))
                .collect();
            if sets.is_empty() {
                (*alias).to_string()
            } else {
                format!("{alias} ({})", sets.join(", "))
            }
        })
        .collect();
    let scales: Vec<String> = network.scales.iter().map(usize::to_string).collect();
    let row = |text: String| folded(&text, ROW_TEXT, columns);
    let mut out = format!(
        "{}\n{}\n{}\n{}",
        network.name,
        folded(&format!("  {}", network.about), 2, columns),
        row(format!("  other names  {}", aliases.join(", "))),
        row(format!("  scales       {}", scales.join(", ")))
    );
    for (i, spec) in network.settings.iter().enumerate() {
        let title = if i == 0 { "settings" } else { "" };
        let line = format!(
            "  {title:11}  {:16} {:6} {} ({})",
            spec.name,
            value_text(&spec.default()),
            spec.doc,
            spec.allowed()
        );
        let wide = columns.is_none_or(|columns| columns >= 2 * SETTING_TEXT);
        let indent = if wide { SETTING_TEXT } else { ROW_TEXT + 2 };
        let _ = write!(out, "\n{}", folded(&line, indent, columns));
    }
    out
}

/// What `--json` prints of a network.
#[derive(Serialize)]
struct Listed {
    name: &'static str,
    about: &'static str,
    aliases: Vec<ListedAlias>,
    scales: &'static [usize],
    settings: Vec<ListedSetting>,
}

/// Another name, and the settings that it sets to other values than their defaults.
#[derive(Serialize)]
struct ListedAlias {
    name: &'static str,
    settings: BTreeMap<&'static str, Setting>,
}

/// A setting.
#[derive(Serialize)]
struct ListedSetting {
    name: &'static str,
    default: Setting,
    allowed: String,
    /// It decides start values alone, so that a trained network does not show it.
    start_value_only: bool,
    doc: &'static str,
}

fn listed(network: &KnownNetwork) -> Listed {
    let aliases = network.aliases.iter().map(|&name| ListedAlias {
        name,
        settings: alias_settings(network, name),
    });
    let settings = network.settings.iter().map(|spec| ListedSetting {
        name: spec.name,
        default: spec.default(),
        allowed: spec.allowed(),
        start_value_only: spec.in_file == InFile::StartValue,
        doc: spec.doc,
    });
    Listed {
        name: network.name,
        about: network.about,
        aliases: aliases.collect(),
        scales: network.scales,
        settings: settings.collect(),
    }
}
