//! Writes the keys of steps: the canonical text, and the tables of the documentation.

use super::reader::expectation;
use super::{Keys, Numbers, Range, WordWeights};
use crate::degrade::step::{Choice, Step};
use serde_json::{Map, Value as Json, json};

/// Writes the keys of one mapping as JSON, which is also YAML.
#[derive(Default)]
pub(crate) struct Writer(pub Map<String, Json>);

impl Keys for Writer {
    fn range(
        &mut self,
        key: &'static str,
        range: &mut Range,
        _numbers: Numbers,
        _bounds: (f64, f64),
        _about: &'static str,
    ) {
        self.0.insert(key.into(), range.json());
    }

    fn number(
        &mut self,
        key: &'static str,
        number: &mut f64,
        _bounds: (f64, f64),
        _about: &'static str,
    ) {
        self.0.insert(key.into(), json!(number));
    }

    fn flag(&mut self, key: &'static str, flag: &mut bool, _about: &'static str) {
        self.0.insert(key.into(), json!(flag));
    }

    fn words(&mut self, key: &'static str, words: WordWeights, _about: &'static str) {
        let pairs = words.words.iter().zip(words.weights.iter());
        let named = pairs
            .filter(|(_, weight)| **weight > 0.0)
            .map(|(word, weight)| (word.to_string(), json!(weight)));
        self.0.insert(key.into(), Json::Object(named.collect()));
    }

    fn steps(&mut self, key: &'static str, steps: &mut Vec<Step>, _about: &'static str) {
        let list = steps.iter().map(Step::json).collect();
        self.0.insert(key.into(), Json::Array(list));
    }

    fn choices(&mut self, key: &'static str, choices: &mut Vec<Choice>, _about: &'static str) {
        let write = |choice: &Choice| {
            let mut writer = Writer::default();
            choice.clone().visit(&mut writer);
            Json::Object(writer.0)
        };
        let list = choices.iter().map(write).collect();
        self.0.insert(key.into(), Json::Array(list));
    }
}

/// Lists the keys of a step: name, default, what is accepted, and what it means.
#[derive(Default)]
pub(crate) struct Lister(pub Vec<[String; 4]>);

impl Lister {
    fn add(&mut self, key: &str, default: Json, accepted: String, about: &str) {
        let default = match default {
            Json::String(text) => text,
            other => other.to_string().replace('"', "").replace(',', ", "),
        };
        self.0.push([key.into(), default, accepted, about.into()]);
    }
}

impl Keys for Lister {
    fn range(
        &mut self,
        key: &'static str,
        range: &mut Range,
        numbers: Numbers,
        bounds: (f64, f64),
        about: &'static str,
    ) {
        self.add(key, range.json(), expectation(numbers, bounds), about);
    }

    fn number(
        &mut self,
        key: &'static str,
        number: &mut f64,
        bounds: (f64, f64),
        about: &'static str,
    ) {
        let accepted = format!("a number from {} to {}", bounds.0, bounds.1);
        self.add(key, json!(number), accepted, about);
    }

    fn flag(&mut self, key: &'static str, flag: &mut bool, about: &'static str) {
        self.add(key, json!(flag), "true or false".into(), about);
    }

    fn words(&mut self, key: &'static str, words: WordWeights, about: &'static str) {
        let accepted = format!("words or weights of {}", words.words.join(", "));
        let named: Vec<String> = words
            .words
            .iter()
            .zip(words.weights.iter())
            .filter(|(_, weight)| **weight > 0.0)
            .map(|(word, weight)| format!("{word}: {weight}"))
            .collect();
        self.add(key, json!(named.join(", ")), accepted, about);
    }

    fn steps(&mut self, key: &'static str, _steps: &mut Vec<Step>, about: &'static str) {
        self.add(key, json!("none"), "a list of steps".into(), about);
    }

    fn choices(&mut self, key: &'static str, _choices: &mut Vec<Choice>, about: &'static str) {
        let accepted = "a list of {weight, steps}".into();
        self.add(key, json!("none"), accepted, about);
    }
}
