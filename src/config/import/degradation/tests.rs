use super::super::tests::{LEAST, read, reason, value};
use super::super::{Imported, Value};
use super::*;
use crate::config::{IMPORTED, Settings};

fn steps(imported: &Imported) -> Vec<Json> {
    let text = imported.recipe.as_ref().unwrap().text.clone();
    let text = text.unwrap_or_else(|| panic!("{}", imported.report("x.yml")));
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
    assert_eq!(of_degrade.count(), 28);
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
