//! A recipe as short lines for people: its steps without the keys that have their defaults. Depends
//! on the recipe's canonical text alone.

use super::Recipe;
use serde_json::{Map, Value as Json};

impl Recipe {
    /// The steps, one line each, as a recipe file could have them: keys with default values are left
    /// out.
    ///
    /// `jpeg: {quality: [10, 95], sampling: {420: 2, 422: 1, 444: 1}}`
    pub fn step_lines(&self) -> Vec<String> {
        let json: Json = serde_json::from_str(self.canonical()).unwrap_or_default();
        steps_of(&json).iter().map(step_line).collect()
    }
}

fn steps_of(recipe: &Json) -> &[Json] {
    recipe["steps"].as_array().map_or(&[], Vec::as_slice)
}

/// A step `{"kind": {keys}}` without braces and defaults.
fn step_line(step: &Json) -> String {
    let text = flow(&without_defaults(step));
    text[1..text.len() - 1].to_string()
}

/// Leaves out the keys of a step, and of the steps within it, that have their defaults.
fn without_defaults(step: &Json) -> Json {
    let Some((kind, Json::Object(keys))) = step.as_object().and_then(|step| step.iter().next())
    else {
        return step.clone();
    };
    let defaults = defaults_of(kind);
    let kept = keys
        .iter()
        .filter(|(key, value)| defaults.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), with_short_steps(key, value)));
    Json::Object(Map::from_iter([(
        kind.clone(),
        Json::Object(kept.collect()),
    )]))
}

/// A value whose lists `steps`, at any depth, have short steps.
fn with_short_steps(key: &str, value: &Json) -> Json {
    match value {
        Json::Array(steps) if key == "steps" => {
            Json::Array(steps.iter().map(without_defaults).collect())
        }
        Json::Array(items) => items
            .iter()
            .map(|item| with_short_steps("", item))
            .collect(),
        Json::Object(keys) => {
            let short =
                |(key, value): (&String, &Json)| (key.clone(), with_short_steps(key, value));
            Json::Object(keys.iter().map(short).collect())
        }
        other => other.clone(),
    }
}

/// The keys of a step for which none was given; nothing where some key must be given.
fn defaults_of(kind: &str) -> Map<String, Json> {
    let text = format!("{{\"name\": \"default\", \"steps\": [{{\"{kind}\": {{}}}}]}}");
    let recipe = Recipe::parse(&text, "a step of defaults").ok();
    let json: Option<Json> = recipe.and_then(|r| serde_json::from_str(r.canonical()).ok());
    match json {
        Some(json) => steps_of(&json)
            .first()
            .and_then(|step| step[kind].as_object().cloned())
            .unwrap_or_default(),
        None => Map::new(),
    }
}

/// A value in YAML's flow style, whole numbers without a fraction.
fn flow(value: &Json) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Json::Object(keys) => {
            let keys = keys.iter().map(|(key, v)| format!("{key}: {}", flow(v)));
            format!("{{{}}}", list(keys.collect()))
        }
        Json::Array(items) => format!("[{}]", list(items.iter().map(flow).collect())),
        Json::String(text) => text.clone(),
        Json::Number(number) => number
            .as_f64()
            .map_or(number.to_string(), |n| n.to_string()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Result;

    #[test]
    fn short_lines_mean_the_same_recipe() -> Result<()> {
        for name in Recipe::presets() {
            let recipe = Recipe::load(name)?;
            let lines = recipe.step_lines();
            let steps: Vec<String> = lines.iter().map(|line| format!("  - {line}\n")).collect();
            let text = format!("name: {name}\nsteps:\n{}", steps.concat());
            let again = Recipe::parse(&text, name)?;
            // what `final_resize` says is no step
            let steps = |r: &Recipe| -> Result<Json> {
                Ok(serde_json::from_str::<Json>(r.canonical())?["steps"].clone())
            };
            assert_eq!(steps(&again)?, steps(&recipe)?, "{text}");
        }
        Ok(())
    }

    #[test]
    fn defaults_are_left_out() -> Result<()> {
        let text = "name: a\nsteps:\n  - jpeg: {probability: 1, quality: [10, 95]}\n";
        let lines = Recipe::parse(text, "a")?.step_lines();
        assert_eq!(lines, ["jpeg: {quality: [10, 95]}"]);
        let text =
            "name: a\nsteps:\n  - one_of: {choices: [{steps: [{jpeg: {probability: 1}}]}]}\n";
        let lines = Recipe::parse(text, "a")?.step_lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("steps: [{jpeg: {}}]"), "{lines:?}");
        Ok(())
    }
}
