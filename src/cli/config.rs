//! `paragon config`: explains the options of a training, and writes and converts option files.

use super::flags::{print, print_json, tell};
use super::recipe::{Unhonoured, read_file};
use anyhow::{Result, ensure};
use paragon::config::words::{foreign, keys_of_word};
use paragon::config::{Key, Preset, Settings, TYPE, Value, docs};
use paragon::model::known_network;
use paragon::support::files::write_output;
use paragon::support::text::one_line;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Explain the configuration of a training, and write files of it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Explain a key (what it does, its values, its default, what is usual) or what a preset sets;
    /// without a word, list all keys
    Explain {
        /// A key or the end of one, a section, a flag, a preset, or a word of another trainer:
        /// train.optim_g.lr, lr, train, --iterations, quick, gt_size
        #[arg(value_name = "WORD", allow_hyphen_values = true)]
        key: Option<String>,
    },
    /// Write a commented file with every key at its default
    Init {
        /// The file to write
        #[arg(default_value = "paragon.yml", value_name = "FILE")]
        file: PathBuf,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
    },
    /// Convert a traiNNer-redux option file to paragon's YAML, and list the keys that are ignored; a
    /// degradation on the fly becomes a recipe file beside --out
    Import {
        /// The traiNNer-redux option file
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// Write the YAML to this file [default: print it]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
    },
    /// Print a JSON schema of the file, for editors
    Schema,
    /// Print the reference page
    Reference,
}

fn write(file: &Path, text: &str, force: bool) -> Result<()> {
    // a device or a FIFO holds nothing that could be lost
    ensure!(
        force || !file.is_file(),
        "{} is there already; give another name, or --force to replace it",
        file.display()
    );
    write_output(file, |out| Ok(out.write_all(text.as_bytes())?))?;
    tell(format_args!("written: {}", file.display()));
    Ok(())
}

/// The file for the degradation recipe of an imported file: `train.yml` gives `train-degrade.yml`.
fn beside(out: &Path) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{stem}-degrade.yml"))
}

/// The content of that file.
fn recipe_file(from: &Path, text: &str) -> String {
    format!(
        "# The degradation of {}; `paragon degrade --recipe` shows what it does.\n{text}",
        one_line(from.display())
    )
}

fn explain(key: Option<&str>) -> Result<()> {
    let Some(path) = key else {
        return print(docs::overview().trim_end());
    };
    if let Some(preset) = Preset::from_name(path) {
        return print(preset.explain().trim_end());
    }
    let foreign = foreign(path);
    let keys = match keys_of_word(path) {
        Ok(keys) => keys,
        Err(_) if foreign.is_some_and(|foreign| foreign.flag.is_empty()) => Vec::new(),
        Err(error) => match foreign {
            // a flag that sets no key, such as those of `paragon shard`
            Some(foreign) => return print(format_args!("{path}: {}", foreign.answer(None))),
            None => return Err(error),
        },
    };
    let is_ours = |key: &&Key| key.path.split('.').any(|part| part == path) || key.path == path;
    let mut out = Vec::new();
    if let Some(foreign) = foreign.filter(|_| !keys.iter().any(is_ours)) {
        out.push(format!("{path}: {}\n", foreign.answer(None)));
    }
    out.extend(keys.into_iter().map(docs::explain));
    print(out.join("\n").trim_end())
}

/// Prints or writes what is asked for.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Explain { key } => explain(key.as_deref()),
        What::Init { file, force } => write(file, &docs::starter(), *force),
        What::Import { from, out, force } => {
            let mut settings = Settings::default();
            let theirs = read_file(from, &mut settings, Unhonoured::All)?;
            // for another trainer's file the list of ignored values contains it
            let name = settings.text(TYPE).unwrap_or_default();
            let usual = known_network(name).map_or(2, |network| network.scales[0]);
            let scale = settings
                .whole("scale")
                .map_or(usual, |scale| scale as usize);
            if let Err(error) = settings.network(scale)
                && !theirs
            {
                tell(format_args!(
                    "{error:#}; training is refused until network_g (or --network) describes one that can be trained"
                ));
            }
            let recipe = settings.imported_recipe().map(str::to_string);
            match (&recipe, out) {
                (Some(text), Some(out)) => {
                    let beside = beside(out);
                    write(&beside, &recipe_file(from, text), *force)?;
                    settings.put("data.degrade", Value::Text(beside.display().to_string()));
                }
                (Some(_), None) => {
                    tell("the degradation recipe is written with --out FILE, beside FILE");
                    settings.put("data.degrade", Value::Null);
                }
                (None, _) => {}
            }
            let text = docs::yaml(&settings, true);
            match out {
                Some(out) => write(out, text.trim_start(), *force),
                None => print(text.trim()),
            }
        }
        What::Schema => print_json(&docs::schema()),
        What::Reference => print(docs::reference().trim_end()),
    }
}
