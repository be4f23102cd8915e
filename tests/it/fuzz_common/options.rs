//! Reads the content of an option file, for fuzzers, as every command does. Depends on the
//! library's configuration. For any content the result must be settings or a short error, and every
//! value of another trainer's file must be reported as used or ignored.
#![allow(dead_code)] // the fuzz target that includes this file alone uses a part of it

use paragon::config::import::Imported;
use paragon::config::{Data, Node, Settings, docs, parse, parse_assignment};

/// Largest length of an error, bytes: an error names the mistake and does not repeat the file.
const LONGEST_ERROR: usize = 4000;

/// Reads the content as an option file. Returns whether it gave settings.
pub fn options(content: &[u8]) -> bool {
    let mut settings = Settings::default();
    let taken = settings.take(content);
    // The same content as a value on the command line.
    if let Ok(text) = std::str::from_utf8(content) {
        check_error(parse_assignment(&format!("train.losses={text}")).err());
        check_error(parse_assignment(text).err());
    }
    match taken {
        Err(error) => {
            check_error(Some(error));
            return false;
        }
        Ok(Some(imported)) => {
            assert_eq!(
                lost(&imported, content),
                Vec::<String>::new(),
                "values that are reported neither as used nor as ignored"
            );
            assert!(imported.report("file.yml").len() < 16 * content.len() + 1_000_000);
        }
        Ok(None) => {}
    }
    check_error(
        settings
            .train_config(2, 128)
            .and_then(|config| config.check())
            .err(),
    );
    // The configuration file that a run keeps must be readable.
    let mut again = Settings::default();
    again
        .take(docs::yaml(&settings, true).as_bytes())
        .unwrap_or_else(|e| panic!("{e:#} in {}", docs::yaml(&settings, false)));
    assert!(again == settings, "{}", docs::yaml(&settings, false));
    true
}

fn check_error<E: std::fmt::Display>(error: Option<E>) {
    let text = error.map_or_else(|| "-".to_string(), |error| format!("{error:#}"));
    assert!(
        !text.is_empty() && text.len() < LONGEST_ERROR,
        "an error of {} bytes: {text:.200}",
        text.len()
    );
}

/// The paths of the values of another trainer's file that are on no list.
pub fn lost(imported: &Imported, content: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content));
    let mut all = Vec::new();
    leaves("", &parse(&text).expect("it was read before"), &mut all);
    let named = imported
        .honoured
        .iter()
        .map(|(key, _)| key)
        .chain(imported.without_effect.iter().map(|(key, _)| key))
        .chain(imported.ignored.iter().map(|(key, ..)| key));
    let named: Vec<&String> = named.collect();
    let within = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    all.retain(|leaf| {
        !named
            .iter()
            .any(|name| within(name, leaf) || within(leaf, name))
    });
    all
}

fn leaves(path: &str, node: &Node, out: &mut Vec<String>) {
    match &node.data {
        Data::Map(entries) if !entries.is_empty() => {
            for (key, inner) in entries {
                leaves(
                    &if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    },
                    inner,
                    out,
                );
            }
        }
        _ => out.push(path.to_string()),
    }
}
