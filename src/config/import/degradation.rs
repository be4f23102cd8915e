//! The degradation on the fly of another trainer's file as a degradation recipe: the second-order
//! chain of Real-ESRGAN with the keys and defaults of Real-ESRGAN or of traiNNer-redux. Depends on
//! `degrade` and the YAML tree. Promises that every key of the degradation is either in the recipe,
//! without effect, or listed with the reason.

use super::super::scalar::{boolean, whole};
use super::super::yaml::{Data, Node};
use super::report::shown;
use crate::degrade::Recipe;
use anyhow::{Result, bail};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

/// Kernel shapes by the other trainers' names and the recipe's.
const SHAPES: [(&str, &str); 6] = [
    ("iso", "isotropic"),
    ("aniso", "anisotropic"),
    ("generalized_iso", "generalised_isotropic"),
    ("generalized_aniso", "generalised_anisotropic"),
    ("plateau_iso", "plateau_isotropic"),
    ("plateau_aniso", "plateau_anisotropic"),
];
/// The shares of these shapes where a file gives none, in both trainers.
const SHAPE_SHARES: [f64; 6] = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03];
/// Filters by the other trainers' names and the recipe's.
const FILTERS: [(&str, &str); 6] = [
    ("area", "area"),
    ("bilinear", "bilinear"),
    ("bicubic", "bicubic"),
    ("nearest-exact", "nearest_exact"),
    ("lanczos", "lanczos"),
    ("box", "box"),
];
/// The HR that a network is trained towards is the image itself.
const HR_AS_IT_IS: &str = "the LQ is made from the sharpened HR as there, but the network is trained towards the HR as it is; sharpen the \
                           images beforehand for sharpened targets";
/// Keys that a recipe cannot hold, with the value that asks for nothing and the reason.
const NOT_IN_A_RECIPE: [(&str, &str, &str); 6] = [
    ("gt_usm", "false", HR_AS_IT_IS),
    ("l1_gt_usm", "false", HR_AS_IT_IS),
    ("percep_gt_usm", "false", HR_AS_IT_IS),
    ("gan_gt_usm", "false", HR_AS_IT_IS),
    (
        "thicklines_prob",
        "0",
        "there is no step that thickens lines",
    ),
    (
        "dataroot_lq_prob",
        "0",
        "a set has stored LQ or makes it; mix two sets by --weights for a share of each",
    ),
];
/// Keys that have no effect on what is drawn: a sample has draws of its own, so no pool has to mix
/// them, and kernels need no common size.
const WITHOUT_EFFECT: [&str; 2] = ["queue_size", "blur_kernel_size"];

/// A recipe that was made of another trainer's file.
#[derive(Clone, Debug, Default)]
pub struct ImportedRecipe {
    /// The text of the recipe; `None` if none could be made.
    pub text: Option<String>,
    /// Their keys that the recipe holds.
    pub taken: Vec<String>,
    /// Their keys that it does not hold: key, value, reason.
    pub missing: Vec<(String, String, String)>,
    /// Their keys without an effect: key and value.
    pub without_effect: Vec<(String, String)>,
}

/// Makes the recipe of a file that degrades on the fly. `keys` are the paths of all of its keys of a
/// degradation.
///
/// # Errors
/// A value that the key cannot hold, with its line.
pub(super) fn recipe(root: &Node, keys: &[(String, String)]) -> Result<ImportedRecipe> {
    let mut chain = Chain {
        root,
        redux: is_redux(root),
        taken: Vec::new(),
    };
    let steps = chain.steps()?;
    let mut out = ImportedRecipe::default();
    for (path, value) in keys {
        let name = path.rsplit('.').next().unwrap_or(path);
        let stage = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let taken = chain.taken.iter().any(|taken| taken == name);
        if taken || name == "high_order_degradation" {
            out.taken.push(path.clone());
        } else if let Some((_, off, reason)) = NOT_IN_A_RECIPE.iter().find(|(key, ..)| *key == name)
        {
            if super::effect::is_same(value, off) || value.parse() == Ok(0.0) {
                out.without_effect.push((path.clone(), value.clone()));
            } else {
                let reason = (*reason).to_string();
                out.missing.push((path.clone(), value.clone(), reason));
            }
        } else if WITHOUT_EFFECT.contains(&stage) || name.contains("debug") {
            out.without_effect.push((path.clone(), value.clone()));
        } else {
            let reason = "no step of a recipe has this key".to_string();
            out.missing.push((path.clone(), value.clone(), reason));
        }
    }
    let text = text_of(root, &steps);
    match Recipe::parse(&text, "the recipe of this file") {
        Ok(_) => out.text = Some(text),
        Err(error) => {
            let reason = format!("no recipe was made: {error:#}");
            let every = std::mem::take(&mut out.taken);
            for path in every {
                let value = keys.iter().find(|(key, _)| *key == path);
                let value = value.map_or_else(String::new, |(_, value)| value.clone());
                out.missing.push((path, value, reason.clone()));
            }
        }
    }
    Ok(out)
}

/// Whether the file's defaults are those of traiNNer-redux, and not those of Real-ESRGAN.
fn is_redux(root: &Node) -> bool {
    let model = root.get("model_type").map(shown).unwrap_or_default();
    root.get("high_order_degradation").is_some() || !super::makes_lq(&model)
}

/// The YAML of a recipe, one line for each step.
fn text_of(root: &Node, steps: &[Json]) -> String {
    let name = root.get("name").map(shown).unwrap_or_default();
    let letters = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '-',
    };
    let name: String = name.chars().map(letters).collect();
    let name = match name.trim_matches('-') {
        "" => "imported",
        name => name,
    };
    let mut out = format!("name: {name}\nsteps:\n");
    for step in steps {
        let _ = writeln!(out, "  - {step}");
    }
    out
}

/// Reads the keys of a file into the steps of a recipe.
struct Chain<'a> {
    root: &'a Node,
    /// Whether the defaults are those of traiNNer-redux.
    redux: bool,
    /// The keys that were read, whether they are in the file or not.
    taken: Vec<String>,
}

impl<'a> Chain<'a> {
    /// The value of a key, at the top of the file or in the data set.
    fn node(&mut self, key: &str) -> Option<&'a Node> {
        self.taken.push(key.to_string());
        let root = self.root;
        let train = root.get("datasets").and_then(|d| d.get("train"));
        let found = root.get(key).or_else(|| train.and_then(|t| t.get(key)));
        found.filter(|node| node.data != Data::Null)
    }

    fn number(&mut self, key: &str, otherwise: f64) -> Result<f64> {
        match self.node(key) {
            Some(node) => number(node, key),
            None => Ok(otherwise),
        }
    }

    fn numbers(&mut self, key: &str, otherwise: &[f64]) -> Result<Vec<f64>> {
        let Some(node) = self.node(key) else {
            return Ok(otherwise.to_vec());
        };
        let Data::List(list) = &node.data else {
            bail!(
                "line {}: {key}: expected a list of numbers, found '{}'",
                node.line,
                shown(node)
            )
        };
        list.iter().map(|one| number(one, key)).collect()
    }

    fn pair(&mut self, key: &str, otherwise: [f64; 2]) -> Result<Json> {
        let numbers = self.numbers(key, &otherwise)?;
        let line = self.node(key).map_or(0, |node| node.line);
        match numbers.as_slice() {
            &[low, high] => Ok(json!([low, high])),
            other => bail!(
                "line {line}: {key}: expected two numbers, found {}",
                other.len()
            ),
        }
    }

    /// Words with weights; `known` translates the words.
    fn weights(
        &mut self,
        (list, shares): (&str, &str),
        known: &[(&str, &str)],
        otherwise: &[(&str, f64)],
    ) -> Result<Map<String, Json>> {
        let words: Vec<(usize, String)> = match self.node(list) {
            Some(node) => match &node.data {
                Data::List(words) => words.iter().map(|w| (w.line, shown(w))).collect(),
                _ => bail!("line {}: {list}: expected a list of words", node.line),
            },
            None => otherwise.iter().map(|(w, _)| (0, w.to_string())).collect(),
        };
        let usual: Vec<f64> = match words.len() == otherwise.len() {
            true => otherwise.iter().map(|(_, share)| *share).collect(),
            false => vec![1.0; words.len()],
        };
        let given = self.numbers(shares, &usual)?;
        if given.len() != words.len() {
            let line = self.node(shares).map_or(0, |node| node.line);
            bail!(
                "line {line}: {shares}: expected {} numbers, one for each of {list}, found {}",
                words.len(),
                given.len()
            );
        }
        let mut out = Map::new();
        for ((line, word), share) in words.iter().zip(given) {
            let Some((_, ours)) = known.iter().find(|(theirs, _)| theirs == word) else {
                let all: Vec<&str> = known.iter().map(|(theirs, _)| *theirs).collect();
                bail!(
                    "line {line}: {list}: unknown '{word}'; known are {}",
                    all.join(", ")
                )
            };
            if share > 0.0 {
                out.insert((*ours).to_string(), json!(share));
            }
        }
        Ok(out)
    }

    /// All steps in their order.
    fn steps(&mut self) -> Result<Vec<Json>> {
        let mut steps = Vec::new();
        if self.sharpens_hr() {
            steps.push(json!({"sharpen": {"size": 51, "amount": 0.5, "threshold": 10}}));
        }
        let sharpens = self.node("lq_usm").map(shown);
        let radius = self.pair("lq_usm_radius_range", [1.0, 25.0])?;
        if sharpens.is_some_and(|text| boolean(&text) == Some(true)) {
            // a kernel of one value, which the range allows, sharpens nothing
            steps.push(json!({"sharpen": {"size": odd(&radius, 3)}}));
        }
        for stage in ["", "2"] {
            steps.extend(self.blur(stage)?);
            steps.push(self.resize(stage)?);
            steps.extend(self.noise(stage)?);
            if stage.is_empty() {
                steps.extend(self.jpeg(stage)?);
            }
        }
        steps.extend(self.end()?);
        Ok(steps)
    }

    /// Whether the LQ is made from a sharpened HR: always in Real-ESRGAN's model with a
    /// discriminator, and by a switch in the one without.
    fn sharpens_hr(&self) -> bool {
        let text = |key: &str| self.root.get(key).map(shown).unwrap_or_default();
        let model = text("model_type").to_ascii_lowercase();
        !self.redux && (model.contains("realesrgan") || boolean(&text("gt_usm")) == Some(true))
    }

    /// Odd sides of kernels: traiNNer-redux draws them from a range, Real-ESRGAN from 7 to 21.
    fn sizes(&mut self, key: &str) -> Result<Json> {
        let usual = if self.redux { [5.0, 17.0] } else { [7.0, 21.0] };
        Ok(odd(&self.pair(key, usual)?, 1))
    }

    fn blur(&mut self, stage: &str) -> Result<Option<Json>> {
        let second = !stage.is_empty();
        let probability = if self.redux {
            self.number(&format!("blur_prob{stage}"), 0.0)?
        } else if second {
            self.number("second_blur_prob", 0.8)?
        } else {
            1.0
        };
        let usual: Vec<(&str, f64)> = SHAPES.iter().map(|(w, _)| *w).zip(SHAPE_SHARES).collect();
        let keys = [format!("kernel_list{stage}"), format!("kernel_prob{stage}")];
        let mut shapes = self.weights((&keys[0], &keys[1]), &SHAPES, &usual)?;
        let sinc = self.number(
            &format!("sinc_prob{stage}"),
            if self.redux { 0.0 } else { 0.1 },
        )?;
        let all: f64 = shapes.values().filter_map(Json::as_f64).sum();
        for share in shapes.values_mut() {
            let part = share.as_f64().unwrap_or(0.0) / all * (1.0 - sinc);
            *share = json!((part * 1e6).round() / 1e6);
        }
        if sinc > 0.0 {
            shapes.insert("sinc".into(), json!(sinc));
        }
        let sigma = match (self.redux, second) {
            (false, false) => [0.2, 3.0],
            (false, true) => [0.2, 1.5],
            (true, false) => [0.2, 2.0],
            (true, true) => [0.2, 1.0],
        };
        let step = json!({"blur": {
            "probability": probability,
            "kernels": shapes,
            "size": self.sizes(&format!("kernel_range{stage}"))?,
            "sigma": self.pair(&format!("blur_sigma{stage}"), sigma)?,
            "beta_generalised": self.pair(&format!("betag_range{stage}"), [0.5, 4.0])?,
            "beta_plateau": self.pair(&format!("betap_range{stage}"), [1.0, 2.0])?,
            "wide_cutoff": true,
        }});
        Ok((probability > 0.0).then_some(step))
    }

    /// The filters of a resize.
    fn filters(&mut self, stage: &str) -> Result<Map<String, Json>> {
        let usual: &[(&str, f64)] = if self.redux {
            &[
                ("bilinear", 0.25),
                ("bicubic", 0.25),
                ("nearest-exact", 0.25),
                ("lanczos", 0.25),
            ]
        } else {
            &[("area", 1.0), ("bilinear", 1.0), ("bicubic", 1.0)]
        };
        let keys = [
            format!("resize_mode_list{stage}"),
            format!("resize_mode_prob{stage}"),
        ];
        self.weights((&keys[0], &keys[1]), &FILTERS, usual)
    }

    fn resize(&mut self, stage: &str) -> Result<Json> {
        let second = !stage.is_empty();
        let shares = if second {
            [0.3, 0.4, 0.3]
        } else {
            [0.2, 0.7, 0.1]
        };
        let key = format!("resize_prob{stage}");
        let shares = self.numbers(&key, &shares)?;
        let &[up, down, keep] = shares.as_slice() else {
            let line = self.node(&key).map_or(0, |node| node.line);
            bail!(
                "line {line}: {key}: expected three numbers (up, down, keep), found {}",
                shares.len()
            )
        };
        let range = match (self.redux, second) {
            (false, false) => [0.15, 1.5],
            (false, true) => [0.3, 1.2],
            (true, false) => [0.4, 1.5],
            (true, true) => [0.6, 1.2],
        };
        Ok(json!({"resize": {
            "directions": {"up": up, "down": down, "keep": keep},
            "range": self.pair(&format!("resize_range{stage}"), range)?,
            "relative_to": if second { "lq" } else { "current" },
            "keep_as_it_is": self.redux,
            "filters": self.filters(stage)?,
            "antialias": self.redux,
            "clamp": self.redux,
        }}))
    }

    /// Gaussian noise with a probability, otherwise Poisson noise.
    fn noise(&mut self, stage: &str) -> Result<Option<Json>> {
        let second = !stage.is_empty();
        let (share, sigma, scale, grey) = match (self.redux, second) {
            (true, _) => (0.0, [0.0, 0.0], [0.0, 0.0], 0.0),
            (false, false) => (0.5, [1.0, 30.0], [0.05, 3.0], 0.4),
            (false, true) => (0.5, [1.0, 25.0], [0.05, 2.5], 0.4),
        };
        let gaussian = self.number(&format!("gaussian_noise_prob{stage}"), share)?;
        let sigma = self.pair(&format!("noise_range{stage}"), sigma)?;
        let scale = self.pair(&format!("poisson_scale_range{stage}"), scale)?;
        let grey = self.number(&format!("gray_noise_prob{stage}"), grey)?;
        let none = json!([0.0, 0.0]);
        let list = |used: bool, step: Json| if used { vec![step] } else { Vec::new() };
        let normal = list(
            sigma != none,
            json!({"gaussian_noise": {"sigma": sigma, "grey": grey}}),
        );
        let shot = list(
            scale != none,
            json!({"poisson_noise": {"scale": scale, "grey": grey}}),
        );
        if (gaussian <= 0.0 || normal.is_empty()) && (gaussian >= 1.0 || shot.is_empty()) {
            return Ok(None);
        }
        Ok(Some(json!({"one_of": {"choices": [
            {"weight": gaussian, "steps": normal},
            {"weight": 1.0 - gaussian, "steps": shot},
        ]}})))
    }

    fn jpeg(&mut self, stage: &str) -> Result<Option<Json>> {
        let probability = if self.redux {
            self.number(&format!("jpeg_prob{stage}"), 1.0)?
        } else {
            1.0
        };
        let usual = if self.redux {
            [75.0, 95.0]
        } else {
            [30.0, 95.0]
        };
        let quality = self.numbers(&format!("jpeg_range{stage}"), &usual)?;
        let quality: Vec<i64> = quality.iter().map(|q| q.round() as i64).collect();
        let step = json!({"jpeg": {
            "probability": probability, "quality": quality, "sampling": 420,
        }});
        Ok((probability > 0.0).then_some(step))
    }

    /// The size of the LQ with the last sinc filter, before or after the second compression.
    fn end(&mut self) -> Result<Vec<Json>> {
        let to_lq = if self.redux {
            json!({"to_lq": {"filters": self.filters("3")?, "antialias": true, "clamp": true}})
        } else {
            json!({"to_lq": {"filters": self.filters("3")?, "antialias": false, "clamp": false}})
        };
        let share = self.number("final_sinc_prob", if self.redux { 0.0 } else { 0.8 })?;
        let size = self.sizes("final_kernel_range")?;
        let mut resized = vec![to_lq];
        if share > 0.0 {
            resized.push(json!({"blur": {
                "probability": share, "kernels": "sinc", "size": size, "wide_cutoff": false,
            }}));
        }
        let Some(jpeg) = self.jpeg("2")? else {
            return Ok(resized);
        };
        let first: Vec<Json> = resized.iter().cloned().chain([jpeg.clone()]).collect();
        let last: Vec<Json> = [jpeg].into_iter().chain(resized).collect();
        Ok(vec![json!({"one_of": {"choices": [
            {"weight": 0.5, "steps": first}, {"weight": 0.5, "steps": last},
        ]}})])
    }
}

/// A range of odd sizes of at least `least`: even ends are those of the next odd size, as the trainers
/// take them.
fn odd(range: &Json, least: i64) -> Json {
    let size = |end: &Json| (end.as_f64().unwrap_or(1.0).round() as i64).max(least) | 1;
    match range.as_array().map(Vec::as_slice) {
        Some([low, high]) => json!([size(low), size(high)]),
        _ => range.clone(),
    }
}

fn number(node: &Node, key: &str) -> Result<f64> {
    let read = match &node.data {
        Data::Scalar(text) => text
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite())
            .or_else(|| whole(text).map(|number| number as f64)),
        _ => None,
    };
    match read {
        Some(number) => Ok(number),
        None => bail!(
            "line {}: {key}: expected a number, found '{}'",
            node.line,
            shown(node)
        ),
    }
}

#[cfg(test)]
mod tests;
