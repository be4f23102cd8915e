//! Reads the keys of steps from YAML. Every error names the file, the line, the key, what was
//! expected and what was found.

use super::{DISTRIBUTIONS, Distribution, Keys, Numbers, Range, WordWeights};
use crate::config::yaml::{Data, Node};
use crate::degrade::step::{Choice, Step};
use crate::support::text::brief;
use anyhow::{Result, anyhow, bail};

/// The word that is most like a wrong one, as the end of a message.
pub(crate) fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str> + Clone) -> String {
    let alike = |w: &&str| strsim::jaro_winkler(&word.to_lowercase(), w);
    let best = words.clone().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match best.filter(|best| alike(best) > 0.7) {
        Some(best) => format!("did you mean {best}?"),
        None => format!("known are {}", words.collect::<Vec<_>>().join(", ")),
    }
}

/// Reads the keys of one mapping.
pub(crate) struct Reader<'a> {
    origin: &'a str,
    path: String,
    line: usize,
    entries: &'a [(String, Node)],
    known: Vec<&'static str>,
    error: Option<anyhow::Error>,
}

impl<'a> Reader<'a> {
    /// Reads a mapping; nothing (`blur:`) is a mapping without keys.
    pub fn new(origin: &'a str, path: String, node: &'a Node) -> Result<Reader<'a>> {
        let entries: &[(String, Node)] = match &node.data {
            Data::Map(entries) => entries,
            Data::Null => &[],
            _ => bail!(
                "{origin}, line {}: {path}: expected a mapping of keys, found {}",
                node.line,
                found(node)
            ),
        };
        Ok(Reader {
            origin,
            path,
            line: node.line,
            entries,
            known: Vec::new(),
            error: None,
        })
    }

    /// Ends with the first error; a key that was not visited is one.
    pub fn finish(self) -> Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for (key, node) in self.entries {
            if !self.known.contains(&key.as_str()) {
                bail!(
                    "{}, line {}: {}: unknown key {}; {}",
                    self.origin,
                    node.line,
                    self.path,
                    brief(key),
                    nearest(key, self.known.iter().copied())
                );
            }
        }
        Ok(())
    }

    /// An error of this mapping that belongs to no key.
    pub fn fail(&mut self, message: impl std::fmt::Display) {
        let error = anyhow!(
            "{}, line {}: {}: {message}",
            self.origin,
            self.line,
            self.path
        );
        self.error.get_or_insert(error);
    }

    /// The text of a key, if it is there.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let mut text = None;
        self.key(key, |node, at| match &node.data {
            Data::Scalar(value) => {
                text = Some(value.clone());
                Ok(())
            }
            _ => bail!("{at}: expected text, found {}", found(node)),
        });
        text
    }

    /// Visits the keys of a mapping below a key, if it is there.
    pub fn mapping(&mut self, key: &'static str, visit: impl FnOnce(&mut dyn Keys)) {
        let (origin, path) = (self.origin, self.path.clone());
        self.key(key, |node, _| {
            let dot = if path.is_empty() { "" } else { "." };
            let mut reader = Reader::new(origin, format!("{path}{dot}{key}"), node)?;
            visit(&mut reader);
            reader.finish()
        });
    }

    /// Calls `read` with the node of a key and the words that name its place, if the key is there.
    fn key(&mut self, key: &'static str, read: impl FnOnce(&'a Node, &str) -> Result<()>) {
        self.known.push(key);
        let entry = self.entries.iter().find(|(name, _)| name == key);
        if let (Some((_, node)), None) = (entry, &self.error) {
            let dot = if self.path.is_empty() { "" } else { "." };
            let at = format!(
                "{}, line {}: {}{dot}{key}",
                self.origin, node.line, self.path
            );
            self.error = read(node, &at).err();
        }
    }
}

/// What a node is, for a message.
pub(crate) fn found(node: &Node) -> String {
    match &node.data {
        Data::Null => "nothing".into(),
        Data::Scalar(text) => format!("'{}'", brief(text)),
        Data::List(list) => format!("a list of {}", list.len()),
        Data::Map(_) => "a mapping".into(),
    }
}

fn number_of(node: &Node, at: &str, expected: &str) -> Result<f64> {
    let value = match &node.data {
        Data::Scalar(text) => text.parse::<f64>().ok().filter(|v| v.is_finite()),
        _ => None,
    };
    value.ok_or_else(|| anyhow!("{at}: expected {expected}, found {}", found(node)))
}

fn pair_of(node: &Node, at: &str, expected: &str) -> Result<(f64, f64)> {
    match &node.data {
        Data::List(list) if list.len() == 2 => Ok((
            number_of(&list[0], at, expected)?,
            number_of(&list[1], at, expected)?,
        )),
        Data::Scalar(_) => {
            let number = number_of(node, at, expected)?;
            Ok((number, number))
        }
        _ => bail!("{at}: expected {expected}, found {}", found(node)),
    }
}

fn range_of(node: &Node, at: &str, expected: &str) -> Result<Range> {
    let Data::Map(entries) = &node.data else {
        let (low, high) = pair_of(node, at, expected)?;
        return Ok(Range::new(low, high));
    };
    let known = ["range", "distribution", "mean", "deviation"];
    if let Some((key, _)) = entries.iter().find(|(k, _)| !known.contains(&k.as_str())) {
        bail!(
            "{at}: unknown key {}; {}",
            brief(key),
            nearest(key, known.into_iter())
        );
    }
    let Some(range) = node.get("range") else {
        bail!("{at}: expected the key range with [low, high]")
    };
    let (low, high) = pair_of(range, at, expected)?;
    let name = match node.get("distribution").map(|n| &n.data) {
        None => "uniform",
        Some(Data::Scalar(name)) if DISTRIBUTIONS.contains(&name.as_str()) => name,
        Some(Data::Scalar(name)) => bail!(
            "{at}: unknown distribution '{}'; {}",
            brief(name),
            nearest(name, DISTRIBUTIONS.into_iter())
        ),
        Some(_) => bail!("{at}: distribution: expected one of uniform, log, normal"),
    };
    let distribution = match name {
        "log" if low > 0.0 => Distribution::Log,
        "log" => bail!("{at}: the distribution log needs a range above 0, found {low} to {high}"),
        "normal" => {
            let number = |key: &str, otherwise: f64| match node.get(key) {
                Some(node) => number_of(node, at, "a number"),
                None => Ok(otherwise),
            };
            let mean = number("mean", (low + high) / 2.0)?;
            let deviation = number("deviation", (high - low) / 4.0)?;
            if deviation < 0.0 {
                bail!("{at}: the deviation must not be negative, found {deviation}");
            }
            Distribution::Normal { mean, deviation }
        }
        _ => Distribution::Uniform,
    };
    if name != "normal" && (node.get("mean").or(node.get("deviation"))).is_some() {
        bail!("{at}: mean and deviation belong to the distribution normal, not to {name}");
    }
    Ok(Range {
        low,
        high,
        distribution,
    })
}

/// What a range accepts, in words.
pub(super) fn expectation(numbers: Numbers, (least, most): (f64, f64)) -> String {
    let what = match numbers {
        Numbers::Real => "a number",
        Numbers::Whole => "a whole number",
        Numbers::Odd => "an odd number",
    };
    format!("{what} or [low, high] within {least} to {most}")
}

impl Keys for Reader<'_> {
    fn range(
        &mut self,
        key: &'static str,
        range: &mut Range,
        numbers: Numbers,
        bounds: (f64, f64),
        _about: &'static str,
    ) {
        self.key(key, |node, at| {
            let expected = expectation(numbers, bounds);
            let read = range_of(node, at, &expected)?;
            let (low, high) = (read.low, read.high);
            let fits = |x: f64| match numbers {
                Numbers::Real => true,
                Numbers::Whole => x.fract() == 0.0,
                Numbers::Odd => x.fract() == 0.0 && x.rem_euclid(2.0) == 1.0,
            };
            if !(bounds.0 <= low && high <= bounds.1 && fits(low) && fits(high)) {
                bail!("{at}: expected {expected}, found {low} to {high}");
            }
            if low > high {
                bail!("{at}: the range begins above its end: {low} to {high}");
            }
            *range = read;
            Ok(())
        });
    }

    fn number(
        &mut self,
        key: &'static str,
        number: &mut f64,
        bounds: (f64, f64),
        _about: &'static str,
    ) {
        self.key(key, |node, at| {
            let expected = format!("a number from {} to {}", bounds.0, bounds.1);
            let read = number_of(node, at, &expected)?;
            if !(bounds.0..=bounds.1).contains(&read) {
                bail!("{at}: expected {expected}, found {read}");
            }
            *number = read;
            Ok(())
        });
    }

    fn flag(&mut self, key: &'static str, flag: &mut bool, _about: &'static str) {
        self.key(key, |node, at| {
            *flag = match &node.data {
                Data::Scalar(text) if text == "true" => true,
                Data::Scalar(text) if text == "false" => false,
                _ => bail!("{at}: expected true or false, found {}", found(node)),
            };
            Ok(())
        });
    }

    fn words(&mut self, key: &'static str, words: WordWeights, _about: &'static str) {
        self.key(key, |node, at| {
            let index = |word: &str| {
                let place = words.words.iter().position(|w| *w == word);
                place.ok_or_else(|| {
                    let near = nearest(word, words.words.iter().copied());
                    anyhow!("{at}: unknown word '{}'; {near}", brief(word))
                })
            };
            let mut weights = vec![0.0; words.words.len()];
            match &node.data {
                Data::Scalar(word) => weights[index(word)?] = 1.0,
                Data::List(list) => {
                    for item in list {
                        let Data::Scalar(word) = &item.data else {
                            bail!("{at}: expected a list of words, found {}", found(item))
                        };
                        weights[index(word)?] = 1.0;
                    }
                }
                Data::Map(entries) => {
                    for (word, weight) in entries {
                        let place = index(word)?;
                        weights[place] = number_of(weight, at, "a weight from 0")?;
                        if weights[place] < 0.0 {
                            bail!("{at}: the weight of {word} is negative: {}", weights[place]);
                        }
                    }
                }
                Data::Null => {}
            }
            if weights.iter().sum::<f64>() <= 0.0 {
                bail!(
                    "{at}: expected at least one word with a weight above 0, of {}",
                    words.words.join(", ")
                );
            }
            *words.weights = weights;
            Ok(())
        });
    }

    fn steps(&mut self, key: &'static str, steps: &mut Vec<Step>, _about: &'static str) {
        let (origin, path) = (self.origin, self.path.clone());
        self.key(key, |node, _| {
            let dot = if path.is_empty() { "" } else { "." };
            *steps = Step::read_list(origin, &format!("{path}{dot}{key}"), node)?;
            Ok(())
        });
    }

    fn choices(&mut self, key: &'static str, choices: &mut Vec<Choice>, _about: &'static str) {
        let (origin, path) = (self.origin, self.path.clone());
        self.key(key, |node, at| {
            let Data::List(list) = &node.data else {
                bail!("{at}: expected a list of choices, found {}", found(node))
            };
            for (i, item) in list.iter().enumerate() {
                let path = format!("{path}.{key}[{}]", i + 1);
                let mut reader = Reader::new(origin, path, item)?;
                let mut choice = Choice::default();
                choice.visit(&mut reader);
                reader.finish()?;
                choices.push(choice);
            }
            if choices.iter().map(|c| c.weight).sum::<f64>() <= 0.0 {
                bail!("{at}: expected at least one choice with a weight above 0");
            }
            Ok(())
        });
    }
}
