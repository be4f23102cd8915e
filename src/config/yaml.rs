//! YAML as a tree that remembers its lines. Scalars stay text: what they mean is decided by the key they belong to, so `2e-4`,
//! `!!float 2e-4` and a flag's `2e-4` go through the same reader. Depends on the parser crate alone. It promises an error, not a
//! guess, for what an option file cannot mean, and a bound on what anchors expand to.

use anyhow::{Result, bail, ensure};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::collections::HashMap;

/// Values a file may hold after its anchors are expanded: an option file has some hundred.
const MOST_NODES: usize = 100_000;
/// Depth of nesting: an option file has five.
const MOST_LEVELS: usize = 64;

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
        let Data::Map(entries) = &self.data else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }
}

/// Reads one document.
///
/// # Errors
/// Names the line and what is wrong there.
pub fn parse(text: &str) -> Result<Node> {
    let mut reader = Reader { events: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let mut found = None;
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event => {
                ensure!(found.is_none(), "line {}: a second document; an option file holds one", span.start.line());
                found = Some(reader.node(event, span, 0)?);
            }
        }
    }
    Ok(found.unwrap_or(Node { line: 1, data: Data::Null }))
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok(pair)) => Ok(Some(pair)),
            Some(Err(error)) => bail!("line {}: {}", error.marker().line(), error.info()),
        }
    }

    fn inside(&mut self) -> Result<(Event<'a>, Span)> {
        self.next()?.ok_or_else(|| anyhow::anyhow!("the file ends inside a value"))
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<()> {
        self.nodes += nodes;
        ensure!(self.nodes <= MOST_NODES, "line {line}: the file stands for more than {MOST_NODES} values");
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: Span, level: usize) -> Result<Node> {
        let line = span.start.line();
        ensure!(level < MOST_LEVELS, "line {line}: nested more than {MOST_LEVELS} deep");
        self.count(1, line)?;
        let (data, anchor) = match event {
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else { bail!("line {line}: an alias inside its own anchor") };
                self.count(size(&node), line)?;
                return Ok(Node { line, ..node });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let null = check_tag(tag.as_deref(), line)?
                    || (style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL"));
                (if null { Data::Null } else { Data::Scalar(text.into_owned()) }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), line)?;
                (self.list(level)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), line)?;
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
            let Data::Scalar(key) = self.node(event, span, level + 1)?.data else { bail!("line {line}: a key must be a plain name") };
            let (event, span) = self.inside()?;
            let value = self.node(event, span, level + 1)?;
            if key == "<<" {
                merged.extend(merge(value)?);
            } else {
                ensure!(entries.iter().all(|(other, _)| *other != key), "line {line}: {key} is there twice");
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
        Data::List(list) => Ok(list.into_iter().map(merge).collect::<Result<Vec<_>>>()?.concat()),
        _ => bail!("line {}: `<<` takes a mapping or a list of them", value.line),
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.data {
        Data::Null | Data::Scalar(_) => 0,
        Data::List(list) => list.iter().map(size).sum(),
        Data::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
    }
}

/// Whether the tag says null. Tags of the core schema add nothing, since keys know their types; others have no meaning here.
fn check_tag(tag: Option<&Tag>, line: usize) -> Result<bool> {
    let Some(tag) = tag else { return Ok(false) };
    let name = format!("{}{}", tag.handle, tag.suffix);
    ensure!(tag.is_yaml_core_schema(), "line {line}: the tag {name} has no meaning here");
    Ok(tag.suffix == "null")
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
        let Data::List(list) = &node.get("c").unwrap().data else { panic!() };
        assert_eq!(list.iter().map(|n| n.data.clone()).collect::<Vec<_>>(), [scalar("1"), scalar("x"), scalar("~")]);
        assert_eq!(node.get("g").unwrap().get("f").unwrap().data, scalar("yes"));
        let merged = node.get("h").unwrap();
        assert_eq!((&merged.get("e").unwrap().data, &merged.get("f").unwrap().data), (&scalar("2"), &scalar("yes")));
        assert_eq!(merged.get("e").unwrap().line, 10);
        assert_eq!(parse("").unwrap().data, Data::Null);
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
