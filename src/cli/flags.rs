//! What flags may say: numbers in their range, refused by the parser (exit code 2) with the flag's
//! name, and lines on stdout and stderr that never panic and never hand a string's escape codes to
//! the terminal. Depends on clap and `text`.

use anyhow::{Context, Result};
use clap::builder::RangedU64ValueParser;
use paragon::support::text::{for_terminal, plain};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write;

/// Most compute threads, patches in a batch, and pixels of a side: beyond these a slip of the
/// finger is likelier.
pub const MAX_THREADS: u64 = 1024;
pub const MAX_BATCH: u64 = 65_536;
pub const MAX_SIDE: u64 = 16_384;

/// A whole number from 1 to `most`.
pub fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

fn number(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    let value = text
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|v| v.is_finite() && fits(*v));
    value.ok_or_else(|| format!("expected {expected}"))
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0, "a number above 0")
}

/// A number of 0 or more.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |v| v >= 0.0, "0 or a number above it")
}

/// Any number that single precision holds.
pub fn single(text: &str) -> Result<f32, String> {
    number(text, |v| (v as f32).is_finite(), "a number").map(|v| v as f32)
}

/// Prints on stdout; one that is closed or full is an error.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", plain(&text.to_string()))
        .and_then(|()| out.flush())
        .context("cannot write to stdout")
}

/// Prints a value as JSON on stdout. What `print` would show as an escape of its own is written as
/// JSON escapes it, so that a program reads the very string.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(json_text(&serde_json::to_string_pretty(value)?))
}

fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut buffer = [0; 4];
    for c in text.chars() {
        if matches!(plain(c.encode_utf8(&mut buffer)), Cow::Borrowed(_)) {
            out.push(c);
        } else {
            out.extend(
                c.encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}")),
            );
        }
    }
    out
}

/// Tells on stderr. Nobody listening is no reason to stop hours of work.
pub fn tell(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", for_terminal(&text.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_in_json_stay_the_same() {
        let value = serde_json::json!({ "name": "a\u{202e}b\u{9b}c\u{7f}d\u{1b}e\n\u{1f600}" });
        let text = json_text(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            text.contains('\n') && matches!(plain(&text), Cow::Borrowed(_)),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(positive("2e-4"), Ok(2e-4));
        for text in ["0", "-1", "nan", "inf", "", "x"] {
            assert!(positive(text).is_err(), "{text}");
        }
        assert!(not_negative("-0.1").is_err() && single("1e39").is_err());
    }
}
