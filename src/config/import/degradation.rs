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
        if chain.taken.iter().any(|taken| taken == name) {
            out.taken.push(path.clone());
        } else if name == "high_order_degradation" {
            out.taken.push(path.clone());
        } else if let Some((_, off, reason)) = NOT_IN_A_RECIPE.iter().find(|(key, ..)| *key == name)
        {
            if super::effect::is_same(value, off) || value.parse() == Ok(0.0) {
                out.without_effect.push((path.clone(), value.clone()));
            } else {
                let reason = (*reason).to_string();
                out.missing.push((path.clone(), value.clone(), reason));
            }
        } else if WITHOUT_EFFECT.contains(&name) || name.contains("debug") {
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
        let usual: Vec<f64> = match self.node(list) {
            None => otherwise.iter().map(|(_, share)| *share).collect(),
            Some(_) if words.len() == otherwise.len() => {
                otherwise.iter().map(|(_, share)| *share).collect()
            }
            Some(_) => vec![1.0; words.len()],
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
            steps.push(json!({"sharpen": {"size": odd(&radius)}}));
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
        Ok(odd(&self.pair(key, usual)?))
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
        let shares = self.numbers(&format!("resize_prob{stage}"), &shares)?;
        let &[up, down, keep] = shares.as_slice() else {
            bail!(
                "resize_prob{stage}: expected three numbers (up, down, keep), found {}",
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
        Ok(vec![
            json!({"one_of": {"choices": [{"steps": first}, {"steps": last}]}}),
        ])
    }
}

/// A range of odd sizes: even ends are those of the next odd size, as the trainers take them.
fn odd(range: &Json) -> Json {
    let size = |end: &Json| (end.as_f64().unwrap_or(1.0).round() as i64).max(1) | 1;
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
mod tests {
    use super::super::tests::{LEAST, read, reason, value};
    use super::super::{Imported, Value};
    use super::*;
    use crate::config::{IMPORTED, Settings};

    fn steps(imported: &Imported) -> Vec<Json> {
        let text = imported.recipe.as_ref().unwrap().text.clone().unwrap();
        let recipe = Recipe::parse(&text, "test").unwrap();
        let canonical: Json = serde_json::from_str(recipe.canonical()).unwrap();
        canonical["steps"].as_array().unwrap().clone()
    }

    fn names(steps: &[Json]) -> Vec<String> {
        let name = |step: &Json| step.as_object().unwrap().keys().next().unwrap().clone();
        steps.iter().map(name).collect()
    }

    /// The published options of RealESRGAN_x4plus, as far as they are about the degradation.
    const REAL_ESRGAN: &str = "\
model_type: RealESRGANModel
scale: 4
l1_gt_usm: True
percep_gt_usm: True
gan_gt_usm: False
resize_prob: [0.2, 0.7, 0.1]
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]
second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]
queue_size: 180
datasets:
  train:
    blur_kernel_size: 21
    kernel_list: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob: 0.1
    blur_sigma: [0.2, 3]
    betag_range: [0.5, 4]
    betap_range: [1, 2]
    blur_kernel_size2: 21
    kernel_list2: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob2: 0.1
    blur_sigma2: [0.2, 1.5]
    betag_range2: [0.5, 4]
    betap_range2: [1, 2]
    final_sinc_prob: 0.8
train: {total_iter: 10, losses: [{type: l1loss}]}
";

    #[test]
    fn the_options_of_real_esrgan_are_its_second_order_chain() {
        let imported = read(REAL_ESRGAN).unwrap();
        let found = steps(&imported);
        let order = [
            "sharpen", "blur", "resize", "one_of", "jpeg", "blur", "resize", "one_of", "one_of",
        ];
        assert_eq!(names(&found), order);
        let preset = Recipe::load("real-esrgan").unwrap();
        let preset: Json = serde_json::from_str(preset.canonical()).unwrap();
        assert_eq!(Json::from(found.clone()), preset["steps"]);
        let first = &found[1]["blur"];
        assert_eq!(first["probability"], 1.0);
        assert_eq!(first["size"], json!([7.0, 21.0]));
        let share = |shape: &str| first["kernels"][shape].as_f64().unwrap();
        assert!((share("isotropic") - 0.405).abs() < 1e-9, "{first}");
        assert!((share("sinc") - 0.1).abs() < 1e-9, "{first}");
        assert_eq!(found[5]["blur"]["probability"], 0.8);
        assert_eq!(found[4]["jpeg"]["quality"], json!([30.0, 95.0]));
        let end = &found[8]["one_of"]["choices"];
        let order = |choice: usize| names(end[choice]["steps"].as_array().unwrap());
        assert_eq!(order(0), ["to_lq", "blur", "jpeg"]);
        assert_eq!(order(1), ["jpeg", "to_lq", "blur"]);
        // the same file without its values has the same defaults
        let bare = "model_type: RealESRGANModel\nscale: 4\ntrain: {total_iter: 10, losses: [{type: l1loss}]}\n";
        assert_eq!(steps(&read(bare).unwrap()), found);
        assert!(reason(&imported, "l1_gt_usm").contains("as it is"));
        assert_eq!(reason(&imported, "gan_gt_usm"), "");
        assert_eq!(reason(&imported, "queue_size"), "");
        let of_degrade = imported
            .honoured
            .iter()
            .filter(|(_, o)| *o == "data.degrade");
        assert_eq!(of_degrade.count(), 29);
    }

    #[test]
    fn trainner_redux_has_other_defaults_and_switches() {
        let found = |more: &str| {
            let text = format!("{LEAST}high_order_degradation: true\n{more}\n");
            read(&text).unwrap()
        };
        let bare = steps(&found(""));
        assert_eq!(names(&bare), ["resize", "jpeg", "resize", "one_of"]);
        assert_eq!(bare[0]["resize"]["range"], json!([0.4, 1.5]));
        assert_eq!(bare[0]["resize"]["antialias"], json!(true));
        assert_eq!(bare[2]["resize"]["keep_as_it_is"], json!(true));
        assert_eq!(bare[1]["jpeg"]["quality"], json!([75.0, 95.0]));
        let full = found(
            "blur_prob: 0.5\nblur_prob2: 1\nnoise_range: [0, 9]\ngaussian_noise_prob: 1\njpeg_prob2: 0\nlq_usm: true\n\
             thicklines_prob: 0.2\ndatasets: {train: {kernel_range: [6, 11], final_sinc_prob: 0.3, type: realesrgandataset}}",
        );
        let list = steps(&full);
        let order = [
            "sharpen", "blur", "resize", "one_of", "jpeg", "blur", "resize", "to_lq", "blur",
        ];
        assert_eq!(names(&list), order);
        assert_eq!(list[1]["blur"]["size"], json!([7.0, 11.0]));
        assert!(reason(&full, "thicklines_prob").contains("thickens"));
    }

    #[test]
    fn the_recipe_is_used_unless_another_one_is_named() {
        let mut settings = Settings::default();
        let imported = settings.take(REAL_ESRGAN.as_bytes()).unwrap().unwrap();
        let text = Some(Value::Text(IMPORTED.into()));
        assert_eq!(value(&imported, "data.degrade"), text);
        let recipe = settings.degrade().unwrap().unwrap();
        assert_eq!(recipe.name(), "imported");
        settings.put("data.degrade", Value::Text("jpeg".into()));
        assert_eq!(settings.degrade().unwrap().unwrap().name(), "jpeg");
        settings.put("data.degrade", Value::Text("none".into()));
        assert!(settings.degrade().unwrap().is_none());
    }

    #[test]
    fn values_that_no_recipe_can_hold_are_named_with_their_line() {
        for (more, words) in [
            ("noise_range: 3", "line 4: noise_range: expected a list"),
            (
                "noise_range: [1]",
                "line 4: noise_range: expected two numbers",
            ),
            ("blur_prob: often", "line 4: blur_prob: expected a number"),
            ("resize_mode_list: [area, mitchell]", "unknown 'mitchell'"),
            ("resize_mode_prob: [1, 2]", "expected 4 numbers"),
        ] {
            let text = format!("{LEAST}high_order_degradation: true\n{more}\n");
            let error = format!("{:#}", read(&text).unwrap_err());
            assert!(error.contains(words), "{more}: {error}");
        }
        // a value beyond what a step accepts: no recipe, and every key says why
        let text = format!("{LEAST}high_order_degradation: true\njpeg_range: [0, 300]\n");
        let imported = read(&text).unwrap();
        assert!(imported.recipe.as_ref().unwrap().text.is_none());
        assert!(reason(&imported, "jpeg_range").contains("no recipe was made"));
        assert!(
            imported
                .report("x")
                .contains("no degradation recipe could be made")
        );
    }
}
