//! Parsers for the values of flags, and printing. A number out of its range is refused by the
//! parser (exit code 2) with the flag's name. Lines on stdout and stderr never panic and never pass
//! the escape codes of a string to the terminal. Depends on `config` and `text`.

use anyhow::{Context, Result};
use paragon::config::{Kind, Value};
pub use paragon::support::limits::{
    LARGEST_BATCH_SEARCHED, MAX_BATCH, MAX_COMPUTE_THREADS, MAX_LOADER_SLOTS, MAX_LOADER_THREADS,
    MAX_SIDE,
};
use paragon::support::text::{for_terminal, plain};
use std::borrow::Cow;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Parses a whole number from 1 to `most`, in every form that a configuration key accepts (`5000`,
/// `5_000`, `5e3`).
pub fn count(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync {
    move |text| match Kind::Whole(1, most as u64).read(text)? {
        Value::Whole(number) => Ok(number as usize),
        _ => Err("expected a whole number".into()),
    }
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

/// Any number that fits an f32.
pub fn single(text: &str) -> Result<f32, String> {
    number(text, |v| (v as f32).is_finite(), "a number").map(|v| v as f32)
}

type LineCopy = Box<dyn Fn(&str) + Send + Sync>;

/// Receives a copy of every line that is printed; set once.
static COPY: OnceLock<LineCopy> = OnceLock::new();

/// Gives every line that is printed from now on to `copy` as well. A second call changes nothing.
pub fn copy_lines_to(copy: impl Fn(&str) + Send + Sync + 'static) {
    let _ = COPY.set(Box::new(copy));
}

fn copy_line(text: &str) {
    if let Some(copy) = COPY.get() {
        copy(text);
    }
}

/// The reader of stdout has gone, as in `paragon plan | head`: no failure of the work.
#[derive(Debug)]
pub struct StdoutClosed;

impl Display for StdoutClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout was closed by its reader")
    }
}

impl std::error::Error for StdoutClosed {}

/// Prints on stdout.
///
/// # Errors
/// A full disk; [`StdoutClosed`].
pub fn print(text: impl Display) -> Result<()> {
    let text = text.to_string();
    copy_line(&text);
    print_bytes(format!("{}\n", plain(&text)).as_bytes())
}

/// Writes bytes to stdout as they are: files for other programs, which hold no foreign string.
///
/// # Errors
/// A full disk; [`StdoutClosed`].
pub fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        written => written.context("cannot write to stdout"),
    }
}

/// Prints a value as JSON on stdout. Characters that [`print`] would replace are written as JSON
/// escapes, so that a program that parses the output gets the original string.
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

/// True where only errors are printed: on ranks other than 0.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Prints nothing from now on but what [`tell_error`] is given.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether [`silence`] was called.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Prints on stderr, also where everything else is silent.
pub fn tell_error(text: impl Display) {
    let text = text.to_string();
    copy_line(&text);
    let _ = writeln!(std::io::stderr(), "{}", for_terminal(&text));
}

/// Prints on stderr. An error is ignored: a closed stderr must not stop hours of work.
pub fn tell(text: impl Display) {
    if !is_silent() {
        tell_error(text);
    }
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
