//! `paragon completions` and `paragon man`: files for the shell and for `man`, made from the same
//! definitions as the help. Depends on clap_complete and clap_mangen.

use super::flags::{print_bytes, tell};
use anyhow::{Context, Result, bail};
use clap::Command;
use paragon::support::files;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Print a script for the shell that completes commands and options.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Print a manual page, or write the pages of all commands.
#[derive(clap::Args)]
pub struct ManArgs {
    /// The command whose page is printed: shard, shards list [default: paragon itself]
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    command: Vec<String>,
    /// Write the pages of all commands to this folder (paragon.1, paragon-shard.1 ...)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the script.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "paragon", &mut script);
    print_bytes(&script)
}

/// Prints a page, or writes all.
pub fn man(args: &ManArgs, mut command: Command) -> Result<()> {
    // full names (`paragon-shards-list`) and the global options
    command.build();
    if let Some(folder) = &args.out {
        files::create_folder(folder)?;
        let count = write_all(&command, "paragon", folder)?;
        tell(format_args!(
            "{count} pages written to {}",
            folder.display()
        ));
        return Ok(());
    }
    let mut name = "paragon".to_string();
    let mut found = &command;
    for word in &args.command {
        found = match found.find_subcommand(word) {
            Some(inner) => inner,
            None => bail!(
                "{name} has no command {word}; `{} --help` lists them",
                name.replace('-', " ")
            ),
        };
        name += &format!("-{}", found.get_name());
    }
    print_bytes(&page(found, &name)?)
}

fn page(command: &Command, name: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).title(name);
    man.render(&mut out).context("cannot make the page")?;
    Ok(out)
}

/// Writes the page of a command and of those below it. Returns their number.
fn write_all(command: &Command, name: &str, folder: &Path) -> Result<usize> {
    let text = page(command, name)?;
    files::write_atomic(&folder.join(format!("{name}.1")), |out| {
        Ok(out.write_all(&text)?)
    })?;
    let mut count = 1;
    for inner in command.get_subcommands().filter(|c| c.get_name() != "help") {
        count += write_all(inner, &format!("{name}-{}", inner.get_name()), folder)?;
    }
    Ok(count)
}
