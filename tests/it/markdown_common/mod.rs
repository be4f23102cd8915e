//! A reader of Markdown for the tests of the documents: links, headings, code spans and fenced
//! blocks, each with its position. Depends on nothing. It reads GitHub's flavour as this repository
//! uses it: no reference links, no HTML links, no setext headings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

/// A Markdown file, divided into prose, code spans and fenced blocks.
pub struct Document {
    /// Path from the root of the repository, with `/`.
    pub path: String,
    text: String,
    /// The text with all characters of code replaced by spaces, so that offsets stay the same.
    prose: String,
    /// Ranges of the code spans' contents.
    spans: Vec<Range<usize>>,
    /// Ranges of the lines inside fences.
    fenced: Vec<Range<usize>>,
}

impl Document {
    /// Divides a text; messages use `path` as its name.
    pub fn new(path: &str, text: &str) -> Document {
        let mut document = Document {
            path: path.to_string(),
            text: text.to_string(),
            prose: text.to_string(),
            spans: Vec::new(),
            fenced: Vec::new(),
        };
        document.take_fences();
        document.take_spans();
        document
    }

    /// Reads a document of the repository.
    pub fn read(path: &str) -> Document {
        let full = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let text = fs::read_to_string(full).unwrap_or_else(|e| panic!("{path}: {e}"));
        Document::new(path, &text)
    }

    fn take_fences(&mut self) {
        let (mut at, mut open) = (0, None::<String>);
        for line in self.text.clone().split_inclusive('\n') {
            let range = at..at + line.len();
            at = range.end;
            let start = line.trim_start();
            let ticks = start.len() - start.trim_start_matches('`').len();
            match &open {
                None if ticks >= 3 => {
                    open = Some(start[..ticks].to_string());
                    self.blank(range);
                }
                None => {}
                Some(fence) if start.trim_end() == fence => {
                    open = None;
                    self.blank(range);
                }
                Some(_) => {
                    self.fenced.push(range.clone());
                    self.blank(range);
                }
            }
        }
        assert!(open.is_none(), "{}: a code fence is not closed", self.path);
    }

    fn take_spans(&mut self) {
        let prose = self.prose.clone();
        let mut at = 0;
        while let Some(start) = prose[at..].find('`').map(|i| at + i) {
            let ticks = prose[start..].len() - prose[start..].trim_start_matches('`').len();
            let content = start + ticks;
            // A span ends with the same number of backticks, within its paragraph.
            let paragraph = prose[content..]
                .find("\n\n")
                .map_or(prose.len(), |i| content + i);
            let Some(length) = prose[content..paragraph].find(&"`".repeat(ticks)) else {
                at = content;
                continue;
            };
            self.spans.push(content..content + length);
            self.blank(content..content + length);
            at = content + length + ticks;
        }
    }

    fn blank(&mut self, range: Range<usize>) {
        let blank: String = self.text[range.clone()]
            .bytes()
            .map(|b| if b == b'\n' { '\n' } else { ' ' })
            .collect();
        self.prose.replace_range(range, &blank);
    }

    /// `path:line` of a position in the text.
    pub fn place(&self, at: usize) -> String {
        let line = 1 + self.text[..at].matches('\n').count();
        format!("{}:{line}", self.path)
    }

    /// The targets of its links and images, with their positions.
    pub fn links(&self) -> Vec<(usize, &str)> {
        let starts = self.prose.match_indices("](").map(|(at, _)| at + 2);
        let links = starts.filter_map(|at| {
            let length = self.text[at..].find(')')?;
            let target = self.text[at..at + length].split_whitespace().next()?;
            Some((at, target))
        });
        links.collect()
    }

    /// The anchors that GitHub makes for its headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut seen = BTreeMap::<String, usize>::new();
        let mut at = 0;
        let mut anchors = BTreeSet::new();
        for line in self.prose.split_inclusive('\n') {
            let heading = &self.text[at..at + line.len()];
            at += line.len();
            let level = line.len() - line.trim_start_matches('#').len();
            if !(1..=6).contains(&level) || !line[level..].starts_with(' ') {
                continue;
            }
            let anchor = anchor(&heading[level..]);
            let count = seen.entry(anchor.clone()).or_default();
            anchors.insert(match *count {
                0 => anchor,
                n => format!("{anchor}-{n}"),
            });
            *count += 1;
        }
        anchors
    }

    /// Contents of code spans and the lines of fenced blocks, with their positions.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.spans
            .iter()
            .chain(&self.fenced)
            .map(|range| (range.start, &self.text[range.clone()]))
    }
}

/// GitHub's anchor of a heading: lower case, with hyphens for spaces; of all other characters only
/// letters, digits, hyphens and underscores are kept. A link in a heading counts with its text.
fn anchor(heading: &str) -> String {
    let mut text = heading.trim().to_string();
    while let Some(middle) = text.find("](") {
        let end = text[middle..]
            .find(')')
            .map_or(text.len(), |i| middle + i + 1);
        text.replace_range(middle..end, "");
    }
    text.to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}
