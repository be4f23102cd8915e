//! Wrong usage: an unknown flag or command that is a word of another trainer is answered with
//! paragon's word. Depends on clap and on the table `config::words`.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};
use paragon::config::words::{foreign, foreign_command};

/// The commands in the order in which they are searched for a flag.
const SEARCHED: [&[&str]; 6] = [
    &["train"],
    &["shard"],
    &["upscale"],
    &["eval"],
    &["plan"],
    &["bench", "step"],
];

/// Words that other programs have for a subcommand of `shards`, ours, and what it does.
const SHARDS_WORDS: &[(&str, &str, &str)] = &[
    (
        "check test validate fsck scan scrub",
        "shards verify",
        "it decodes every pair and names the damaged ones",
    ),
    (
        "stats show describe inspect stat about",
        "shards info",
        "it prints what a set holds and how it was made",
    ),
    (
        "ls images names sources",
        "shards list",
        "it prints every image of a set",
    ),
    (
        "rm delete del clean",
        "shards remove",
        "it deletes a set, or says how to make it anew without an image",
    ),
    (
        "export dump unpack png save",
        "shards extract",
        "it writes pairs as PNG files",
    ),
    (
        "preview view contact-sheet",
        "shards sheet",
        "it draws pairs of a set side by side",
    ),
    (
        "join concat combine append add",
        "shards merge",
        "it merges the parts of one set; `paragon shard --append` adds images",
    ),
    (
        "new make create build",
        "shard",
        "it makes a set from a folder of images",
    ),
];

/// The subcommand of `shards` that a word means.
fn shards_command(word: &str) -> Option<(&'static str, &'static str)> {
    let word = word.to_lowercase();
    let mut all = SHARDS_WORDS.iter();
    let found = all.find(|(words, ..)| words.split(' ').any(|w| w == word));
    found.map(|(_, command, text)| (*command, *text))
}

/// Adds the answer to an error that is about a word of another trainer. `words` are those of the
/// command line, without the program.
pub fn with_answer(mut error: Error, command: &Command, words: &[String]) -> Error {
    let answer = match error.kind() {
        ErrorKind::UnknownArgument => text(&error, ContextKind::InvalidArg)
            .and_then(|flag| answer_to_flag(&flag, typed(command, words), command)),
        ErrorKind::InvalidSubcommand => text(&error, ContextKind::InvalidSubcommand)
            .and_then(|word| {
                let in_shards = words.first().is_some_and(|first| first == "shards");
                let of_shards = in_shards.then(|| shards_command(&word));
                of_shards.unwrap_or_else(|| foreign_command(&word))
            })
            .map(|(command, text)| format!("paragon has `{command}`: {text}")),
        _ => None,
    };
    if let Some(answer) = answer {
        // clap's own suggestion goes by letters: `--opt` would be answered with `--optimizer`
        // and shown in the usage line too
        for kind in [
            ContextKind::SuggestedArg,
            ContextKind::SuggestedSubcommand,
            ContextKind::Usage,
        ] {
            error.remove(kind);
        }
        let tip = ContextValue::StyledStrs(vec![StyledStr::from(answer)]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// The command that was typed.
fn typed<'a>(command: &'a Command, words: &[String]) -> &'a Command {
    words.iter().fold(command, |command, word| {
        command.find_subcommand(word).unwrap_or(command)
    })
}

fn answer_to_flag(flag: &str, typed: &Command, all: &Command) -> Option<String> {
    let answer = foreign(flag)?;
    if answer.flag.is_empty() || has(typed, answer.flag) {
        return Some(answer.answer(None));
    }
    let command = owner(all, answer.flag)?;
    Some(answer.answer(Some(&command)))
}

fn has(command: &Command, flag: &str) -> bool {
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some(flag))
}

/// The first command that has a flag, as it is typed.
fn owner(all: &Command, flag: &str) -> Option<String> {
    let has_it = |path: &&&[&str]| {
        let found = path
            .iter()
            .try_fold(all, |command, name| command.find_subcommand(name));
        found.is_some_and(|command| has(command, flag))
    };
    SEARCHED.iter().find(has_it).map(|path| path.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::CommandFactory;
    use paragon::config::words::{FOREIGN_WORDS, ForeignWord};

    #[test]
    fn every_flag_of_an_answer_exists() {
        let command = Cli::command();
        for word in FOREIGN_WORDS {
            assert!(
                word.flag.is_empty() || owner(&command, word.flag).is_some(),
                "{word:?}"
            );
            for flag in word.text.split(|c: char| !c.is_alphanumeric() && c != '-') {
                let Some(flag) = flag.strip_prefix("--") else {
                    continue;
                };
                assert!(owner(&command, flag).is_some(), "--{flag} of {word:?}");
            }
        }
    }

    #[test]
    fn no_word_of_the_table_is_a_flag_of_train() {
        // such an answer would never be shown
        let command = Cli::command();
        let train = command.find_subcommand("train").unwrap();
        let allowed = ["name"];
        for word in FOREIGN_WORDS.iter().flat_map(ForeignWord::words) {
            assert!(!has(train, word) || allowed.contains(&word), "{word}");
        }
    }
}
