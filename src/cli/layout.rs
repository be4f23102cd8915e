//! Text for the width of the terminal: folded lines, and names that are cut in the middle.

use std::borrow::Cow;
use std::io::IsTerminal;

/// Narrower terminals are not considered: every word would stand alone.
const LEAST_COLUMNS: usize = 40;

/// Columns that a line on stdout may take: those of the terminal, else those of `COLUMNS`, as for
/// `--help`. `None`: a file or a pipe, whose lines are never folded.
pub fn columns() -> Option<usize> {
    let columns = if std::io::stdout().is_terminal() {
        let size = console::Term::stdout().size_checked();
        size.map(|(_, columns)| usize::from(columns))
    } else {
        std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok())
    };
    columns.map(|columns| columns.max(LEAST_COLUMNS))
}

/// Folds every line that is too long at spaces; its other parts begin after `indent` spaces. Parts
/// without a space stay whole.
pub fn folded(text: &str, indent: usize, columns: Option<usize>) -> String {
    let Some(columns) = columns else {
        return text.to_string();
    };
    let lines = text.lines().map(|line| fold(line, indent, columns));
    lines.collect::<Vec<_>>().join("\n")
}

fn fold(line: &str, indent: usize, columns: usize) -> String {
    let mut out = String::new();
    let mut rest = line;
    let mut start = 0;
    loop {
        let room = columns - start.min(columns / 2);
        if rest.chars().count() <= room {
            return out + rest;
        }
        // the spaces at the start of a line are its indentation
        let lead = rest.len() - rest.trim_start().len();
        let spaces = rest.char_indices().enumerate();
        let mut cut = None;
        for (at, (byte, _)) in spaces.filter(|(_, (byte, c))| *c == ' ' && *byte > lead) {
            if at > room && cut.is_some() {
                break;
            }
            cut = Some(byte);
            if at > room {
                break;
            }
        }
        let Some(cut) = cut else {
            return out + rest;
        };
        out += rest[..cut].trim_end();
        out += "\n";
        out += &" ".repeat(indent);
        (rest, start) = (rest[cut..].trim_start(), indent);
    }
}

/// A name of at most `width` characters: of a longer one the start and, twice as much, the end are
/// kept, since paths differ at the end.
pub fn middle_cut(name: &str, width: usize) -> Cow<'_, str> {
    let length = name.chars().count();
    if length <= width {
        return Cow::Borrowed(name);
    }
    let kept = width.saturating_sub(2);
    let start: String = name.chars().take(kept / 3).collect();
    let end: String = name.chars().skip(length - (kept - kept / 3)).collect();
    Cow::Owned(format!("{start}..{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_at_spaces() {
        let text = "  name   one two three four five\nshort";
        assert_eq!(folded(text, 9, None), text);
        assert_eq!(
            fold("  name   one two three four five", 9, 20),
            "  name   one two\n         three four\n         five"
        );
        assert_eq!(fold("short", 3, 20), "short");
        assert_eq!(
            fold("a-word-that-is-too-long b", 2, 10),
            "a-word-that-is-too-long\n  b"
        );
        assert_eq!(
            fold("    unbreakable-word-with-indent", 2, 10),
            "    unbreakable-word-with-indent"
        );
        for columns in 12..80 {
            for line in fold(&"word ".repeat(40), 4, columns).lines() {
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
        }
    }

    #[test]
    fn names_are_cut_in_the_middle() {
        assert_eq!(middle_cut("short", 5), "short");
        assert_eq!(
            middle_cut("runs/nano_x2/models/best.safetensors", 20),
            "runs/n...safetensors"
        );
        for width in 2..20 {
            let cut = middle_cut("a/long/path/to/some/model", width);
            assert_eq!(cut.chars().count(), width, "{cut}");
        }
    }
}
