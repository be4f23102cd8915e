//! Text for people: numbers of bytes, and text that contains foreign strings (file names, tables of
//! shards, manifests, tensor names, option files). Depends on the standard library alone. No such
//! string can move the cursor, change a colour or fill the screen.

use std::borrow::Cow;
use std::fmt::{Display, Write};

/// Most characters of one line on a terminal; the middle of a longer one is cut out.
const LONGEST_LINE: usize = 4000;

/// Whether a character can affect other text on a terminal: control characters (C0, DEL and C1),
/// and marks that change the direction of the text after them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let harmless = |c: char| keep(c) || !is_unsafe(c);
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmless(c) {
            out.push(c)
        } else {
            out.extend(c.escape_default())
        }
    }
    Cow::Owned(out)
}

/// The text with every unsafe character written as its escape (`\u{1b}`); new lines and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// A string on one line: as [`plain`], with new lines and tabs escaped as well. For a file name
/// within a list.
pub fn one_line(text: impl Display) -> String {
    escaped(&text.to_string(), |_| false).into_owned()
}

/// Most characters of a value inside an error message.
const LONGEST_VALUE: usize = 120;

/// A value for an error message: [`one_line`]; a long value is cut, and its length in characters
/// is appended.
pub fn brief(text: impl Display) -> String {
    let text = text.to_string();
    match text.char_indices().nth(LONGEST_VALUE) {
        None => one_line(text),
        Some((end, _)) => format!(
            "{}... ({} characters)",
            one_line(&text[..end]),
            text.chars().count()
        ),
    }
}

/// [`plain`] text in which the middle of very long lines is replaced by the number of characters
/// cut out.
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    let text = plain(text);
    if text.len() <= LONGEST_LINE
        || text
            .lines()
            .all(|line| line.chars().nth(LONGEST_LINE).is_none())
    {
        return text;
    }
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let count = line.chars().count();
        if count <= LONGEST_LINE {
            out.push_str(line);
            continue;
        }
        let (head, tail) = (LONGEST_LINE * 3 / 4, LONGEST_LINE / 4);
        out.extend(line.chars().take(head));
        let _ = write!(out, " [{} characters left out] ", count - head - tail);
        out.extend(line.chars().skip(count - tail));
    }
    Cow::Owned(out)
}

/// A number of bytes in binary units with one decimal: `5.9 MiB`; exact below 10 KiB.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 10 * 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_codes_are_shown_and_not_sent() {
        assert_eq!(plain("a\x1b[31mb\nc\td"), "a\\u{1b}[31mb\nc\td");
        assert_eq!(
            plain("\u{9b}2J \u{202e}gnp.exe"),
            "\\u{9b}2J \\u{202e}gnp.exe"
        );
        assert_eq!(one_line("two\nlines"), "two\\nlines");
        assert!(matches!(plain("Zürich 東京"), Cow::Borrowed(_)));
    }

    #[test]
    fn values_in_errors_are_short() {
        assert_eq!(brief("a\nb"), "a\\nb");
        assert_eq!(brief("é".repeat(120)), "é".repeat(120));
        assert_eq!(
            brief("é".repeat(121)),
            format!("{}... (121 characters)", "é".repeat(120))
        );
    }

    #[test]
    fn long_lines_are_cut_in_the_middle() {
        let long = format!("short\n{}end", "x".repeat(100_000));
        let shown = for_terminal(&long);
        assert!(
            shown.len() < 5000 && shown.starts_with("short\nx") && shown.ends_with("xend"),
            "{}",
            shown.len()
        );
        assert!(shown.contains("[96003 characters left out]"), "{shown}");
        assert_eq!(for_terminal("plain"), "plain");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes_text(10), "10 B");
        assert_eq!(bytes_text(1 << 20), "1.0 MiB");
        assert_eq!(bytes_text(12_488_000_000), "11.6 GiB");
    }
}
