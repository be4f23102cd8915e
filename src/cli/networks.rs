//! `paragon networks`: lists the networks that can be trained, from their own table.

use super::flags::{print, print_json};
use anyhow::Result;
use paragon::config::{alias_settings, value_text};
use paragon::model::{InFile, KnownNetwork, SettingSpec, known_networks};
use serde_json::{Value, json};
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
        return print_json(&networks.iter().map(as_json).collect::<Vec<_>>());
    }
    let texts: Vec<String> = networks.iter().map(as_text).collect();
    print(format_args!(
        "{}\n\n\
         `train` and `plan` take a setting as --set network_g.NAME=VALUE, and most as a flag of their own; \
         `eval`, `upscale` and `bench` take --network-set NAME=VALUE.",
        texts.join("\n\n")
    ))
}

fn as_text(network: &KnownNetwork) -> String {
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
    let mut out = format!(
        "{}\n  {}\n  other names  {}\n  scales       {}",
        network.name,
        network.about,
        aliases.join(", "),
        scales.join(", ")
    );
    for (i, spec) in network.settings.iter().enumerate() {
        let title = if i == 0 { "settings" } else { "" };
        let _ = write!(
            out,
            "\n  {title:11}  {:16} {:6} {} ({})",
            spec.name,
            value_text(&spec.default()),
            spec.doc,
            spec.allowed()
        );
    }
    out
}

fn as_json(network: &KnownNetwork) -> Value {
    let aliases: Vec<Value> = network
        .aliases
        .iter()
        .map(|alias| json!({ "name": alias, "settings": alias_settings(network, alias) }))
        .collect();
    let setting = |spec: &SettingSpec| {
        json!({
            "name": spec.name,
            "default": spec.default(),
            "allowed": spec.allowed(),
            "start_value_only": spec.in_file == InFile::StartValue,
            "doc": spec.doc,
        })
    };
    json!({
        "name": network.name,
        "aliases": aliases,
        "about": network.about,
        "scales": network.scales,
        "settings": network.settings.iter().map(setting).collect::<Vec<_>>(),
    })
}
