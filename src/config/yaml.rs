//! YAML as a tree that remembers its lines. Scalars stay text: what they mean is decided by the key
//! they belong to, so `2e-4`, `!!float 2e-4` and a flag's `2e-4` go through the same reader. A tag
//! is a promise about the text, which is checked. Depends on the parser crate and on how values are
//! written. It promises an error, not a guess, for what an option file cannot mean, and a bound on
//! everything that a file can ask for: values, levels, bytes, and what anchors expand to.

use super::scalar::{boolean, whole};
use crate::support::text::brief;
use anyhow::{Result, bail, ensure};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::collections::HashMap;

/// Values a file may hold after its anchors are expanded: an option file has some hundred.
const MOST_NODES: usize = 10_000;
/// Bytes of text they may have together, after the same.
const MOST_BYTES: usize = 4 << 20;
/// Depth of nesting: an option file has five.
const MOST_LEVELS: usize = 64;
/// Bytes of a key: the longest has 40.
const MOST_KEY_BYTES: usize = 200;

/// A value and the line it begins in, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where.
    pub line: usize,
    /// What.
    pub data: Data,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// `~`, `null` or nothing.
    Null,
    /// Anything else that is one value, as it is written (without quotes).
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order of the file.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The value of a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Data::Map(entries) = &self.data else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
    }
}

/// Reads one document.
///
/// # Errors
/// Names the line and what is wrong there.
pub fn parse(text: &str) -> Result<Node> {
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: HashMap::new(),
        nodes: 0,
        bytes: 0,
    };
    let mut found = None;
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Nothing => {}
            event => {
                ensure!(
                    found.is_none(),
                    "line {}: a second document; an option file holds one",
                    span.start.line()
                );
                found = Some(reader.node(event, span, 0)?);
            }
        }
    }
    Ok(found.unwrap_or(Node {
        line: 1,
        data: Data::Null,
    }))
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    bytes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok(pair)) => Ok(Some(pair)),
            Some(Err(error)) => bail!("line {}: {}", error.marker().line(), brief(error.info())),
        }
    }

    fn inside(&mut self) -> Result<(Event<'a>, Span)> {
        self.next()?
            .ok_or_else(|| anyhow::anyhow!("the file ends inside a value"))
    }

    fn count(&mut self, (nodes, bytes): (usize, usize), line: usize) -> Result<()> {
        self.nodes += nodes;
        self.bytes += bytes;
        ensure!(
            self.nodes <= MOST_NODES,
            "line {line}: the file stands for more than {MOST_NODES} values; an option file has some hundred"
        );
        ensure!(
            self.bytes <= MOST_BYTES,
            "line {line}: the file stands for more than {MOST_BYTES} bytes of text"
        );
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: Span, level: usize) -> Result<Node> {
        let line = span.start.line();
        ensure!(
            level < MOST_LEVELS,
            "line {line}: nested more than {MOST_LEVELS} deep"
        );
        self.count((1, 0), line)?;
        let (data, anchor) = match event {
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    bail!("line {line}: an alias inside its own anchor")
                };
                self.count(size(&node), line)?;
                return Ok(Node { line, ..node });
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count((0, text.len()), line)?;
                let null = is_null(&text, style == ScalarStyle::Plain, tag.as_deref(), line)?;
                (
                    if null {
                        Data::Null
                    } else {
                        Data::Scalar(text.into_owned())
                    },
                    anchor,
                )
            }
            Event::SequenceStart(anchor, tag) => {
                // PyYAML writes a tuple, as of betas, with a tag of its own
                check_tag(tag.as_deref(), &["seq", "python/tuple"], line)?;
                (self.list(level)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), &["map"], line)?;
                (self.map(level)?, anchor)
            }
            _ => bail!("line {line}: a value is missing"),
        };
        let node = Node { line, data };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, level: usize) -> Result<Data> {
        let mut list = Vec::new();
        loop {
            match self.inside()? {
                (Event::SequenceEnd, _) => return Ok(Data::List(list)),
                (event, span) => list.push(self.node(event, span, level + 1)?),
            }
        }
    }

    fn map(&mut self, level: usize) -> Result<Data> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.inside()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let line = span.start.line();
            let Data::Scalar(key) = self.node(event, span, level + 1)?.data else {
                bail!("line {line}: a key must be a plain name")
            };
            ensure!(
                key.len() <= MOST_KEY_BYTES,
                "line {line}: '{}' is too long for a key",
                brief(&key)
            );
            let (event, span) = self.inside()?;
            let value = self.node(event, span, level + 1)?;
            if key == "<<" {
                merged.extend(merge(value)?);
            } else {
                ensure!(
                    entries.iter().all(|(other, _)| *other != key),
                    "line {line}: {} is there twice",
                    brief(&key)
                );
                entries.push((key, value));
            }
        }
        for (key, value) in merged {
            if entries.iter().all(|(other, _)| *other != key) {
                entries.push((key, value));
            }
        }
        Ok(Data::Map(entries))
    }
}

/// `<<: *anchor` and `<<: [*a, *b]`: keys that are taken where the mapping has none of its own.
fn merge(value: Node) -> Result<Vec<(String, Node)>> {
    match value.data {
        Data::Map(entries) => Ok(entries),
        Data::List(list) => Ok(list
            .into_iter()
            .map(merge)
            .collect::<Result<Vec<_>>>()?
            .concat()),
        _ => bail!(
            "line {}: `<<` takes a mapping or a list of them",
            value.line
        ),
    }
}

/// Values and bytes of text below a node, itself included.
fn size(node: &Node) -> (usize, usize) {
    let add = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
    match &node.data {
        Data::Null => (1, 0),
        Data::Scalar(text) => (1, text.len()),
        Data::List(list) => list.iter().map(size).fold((1, 0), add),
        Data::Map(entries) => entries
            .iter()
            .map(|(key, node)| add((1, key.len()), size(node)))
            .fold((1, 0), add),
    }
}

/// The name of a tag of YAML itself (`float` of `!!float` and of `!<tag:yaml.org,2002:float>`).
fn own_tag(tag: &Tag, line: usize) -> Result<&str> {
    let own = if tag.is_yaml_core_schema() {
        Some(tag.suffix.as_str())
    } else {
        tag.suffix.strip_prefix("tag:yaml.org,2002:")
    };
    match own {
        Some(name) => Ok(name),
        None => bail!(
            "line {line}: the tag {} has no meaning here",
            brief(format!("{}{}", tag.handle, tag.suffix))
        ),
    }
}

/// Refuses a tag of a list or mapping that is not one of these.
fn check_tag(tag: Option<&Tag>, known: &[&str], line: usize) -> Result<()> {
    let Some(tag) = tag else { return Ok(()) };
    let name = own_tag(tag, line)?;
    ensure!(
        known.contains(&name),
        "line {line}: the tag !!{} does not belong to a list or to keys with values",
        brief(name)
    );
    Ok(())
}

/// Whether a scalar is no value. Its tag must be true of its text; `!!str ~` is the text `~`.
fn is_null(text: &str, plain: bool, tag: Option<&Tag>, line: usize) -> Result<bool> {
    let empty = matches!(text, "" | "~" | "null" | "Null" | "NULL");
    let Some(tag) = tag else {
        return Ok(plain && empty);
    };
    let number = || {
        text.trim()
            .trim_start_matches(['+', '-'])
            .trim_start_matches('.')
            .replace('_', "")
            .parse::<f64>()
            .is_ok()
    };
    let (holds, what) = match own_tag(tag, line)? {
        "str" => (true, ""),
        "null" => (empty, "nothing"),
        "int" => (
            whole(text.strip_prefix('-').unwrap_or(text)).is_some(),
            "a whole number",
        ),
        "float" => (number(), "a number"),
        "bool" => (boolean(text).is_some(), "true or false"),
        other => bail!(
            "line {line}: the tag !!{} has no meaning here",
            brief(other)
        ),
    };
    ensure!(
        holds,
        "line {line}: the tag !!{} says {what}, found '{}'",
        own_tag(tag, line)?,
        brief(text)
    );
    Ok(own_tag(tag, line)? == "null")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(text: &str) -> Data {
        Data::Scalar(text.into())
    }

    #[test]
    fn what_option_files_use_is_read() {
        let text = "a: !!float 2e-4\nb: ~\nc: [1, 'x', \"~\"]\nd: &shared\n  e: 1\n  f: yes\ng: *shared\nh:\n  <<: *shared\n  e: 2\n";
        let node = parse(text).unwrap();
        assert_eq!(node.get("a").unwrap().data, scalar("2e-4"));
        assert_eq!(node.get("b").unwrap().data, Data::Null);
        let Data::List(list) = &node.get("c").unwrap().data else {
            panic!()
        };
        assert_eq!(
            list.iter().map(|n| n.data.clone()).collect::<Vec<_>>(),
            [scalar("1"), scalar("x"), scalar("~")]
        );
        assert_eq!(node.get("g").unwrap().get("f").unwrap().data, scalar("yes"));
        let merged = node.get("h").unwrap();
        assert_eq!(
            (
                &merged.get("e").unwrap().data,
                &merged.get("f").unwrap().data
            ),
            (&scalar("2"), &scalar("yes"))
        );
        assert_eq!(merged.get("e").unwrap().line, 10);
        assert_eq!(parse("").unwrap().data, Data::Null);
    }

    #[test]
    fn tags_are_honoured() {
        for (text, data) in [
            ("!!int 5", scalar("5")),
            ("!!int '-5'", scalar("-5")),
            ("!!int 5e3", scalar("5e3")),
            ("!!float 5e3", scalar("5e3")),
            ("!<tag:yaml.org,2002:float> 5e3", scalar("5e3")),
            ("!!float .inf", scalar(".inf")),
            ("!!str ~", scalar("~")),
            ("!!str 5", scalar("5")),
            ("!!bool 'Yes'", scalar("Yes")),
            ("!!null ~", Data::Null),
            ("!!seq []", Data::List(vec![])),
            ("!!python/tuple []", Data::List(vec![])),
            ("!!map {}", Data::Map(vec![])),
        ] {
            assert_eq!(parse(text).unwrap().data, data, "{text}");
        }
        for (text, words) in [
            (
                "a: 1\nb: !!int 5.5",
                ["line 2", "a whole number, found '5.5'"],
            ),
            ("!!int 1e400", ["line 1", "1e400"]),
            ("!!float fast", ["a number", "fast"]),
            ("!!bool 2", ["true or false", "'2'"]),
            ("!!null x", ["nothing", "'x'"]),
            ("!!binary aGk=", ["!!binary", "no meaning"]),
            ("!!set {a, b}", ["!!set", "keys"]),
            ("!mine 5", ["!mine", "no meaning"]),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                words.iter().all(|word| error.contains(word)),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn what_a_file_can_ask_for_is_bounded() {
        let aliases = format!("a: &a {}\nb: [{}]", "x".repeat(500_000), "*a, ".repeat(100));
        let keys = format!(
            "a: &a {{{}: 1}}\nb: [{}]",
            "k".repeat(190),
            "*a, ".repeat(5000)
        );
        for (text, word) in [
            (aliases, "bytes of text"),
            (keys, "more than 10000 values"),
            (format!("{}: 1", "k".repeat(201)), "too long for a key"),
            ("- 1\n".repeat(10_001), "more than 10000 values"),
            ("- ".repeat(200_000), "line 1"),
            ("[".repeat(200_000), "line 1"),
            ("{a: ".repeat(100_000), "line 1"),
            ("? ".repeat(200_000), "line 1"),
            ("a:\n".repeat(100_000), "twice"),
            (
                (0..100).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
                "deep",
            ),
            ("&a ".repeat(100_000), "line 1"),
            (format!("a: !{} x", "t".repeat(500_000)), "no meaning"),
        ] {
            let start = std::time::Instant::now();
            let error = parse(&text).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.len() < 500,
                "{text:.40}: {error}"
            );
            assert!(
                start.elapsed().as_secs() < 20,
                "{text:.40}: {:?}",
                start.elapsed()
            );
        }
    }

    #[test]
    fn what_they_cannot_mean_is_refused() {
        let bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e]\n";
        let deep = "[".repeat(1000);
        for (text, word) in [
            ("a: 1\na: 2", "twice"),
            ("a: !python/object x", "tag"),
            ("a: *b", "line 1"),
            ("a: [1", "line"),
            ("--- 1\n--- 2", "second"),
            ("? [a]\n: 1", "plain name"),
            (bomb, "more than"),
            (&deep, "line 1"),
            ("a: &a [*a]", "line 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:.40}: {error}");
        }
    }
}
