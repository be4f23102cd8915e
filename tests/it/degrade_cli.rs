//! `paragon degrade`: sheets, files, draws as text and JSON, presets, and errors that say what to
//! do.

use crate::cli_common;

use cli_common::run;
use serde_json::Value as Json;
use std::fs;
use std::path::Path;

fn pictures(folder: &Path) -> String {
    let pictures = folder.join("pictures").to_str().unwrap().to_string();
    run(&["synth", &pictures, "--count", "5", "--size", "100x70"]).ok();
    pictures
}

#[test]
fn a_folder_gets_lq_images_and_a_sheet_and_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(folder.path());
    let out = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let command = |place: &str| {
        let flags = [
            "--recipe", "web", "--scale", "4", "--count", "2", "--images", "3", "--json",
        ];
        let mut all = vec!["degrade", &pictures, place];
        all.extend(flags);
        let ran = run(&all).ok();
        serde_json::from_str::<Json>(&ran.stdout).unwrap()
    };
    let (first, second) = (out("a"), out("b"));
    let json = command(&first);
    command(&second);
    assert_eq!(json["images"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&json["recipe"], &json["scale"]),
        (&"web".into(), &4.into())
    );
    let variant = &json["images"][0]["variants"][1];
    // 70 HR rows are 17 LQ rows
    assert_eq!(
        (&variant["width"], &variant["height"]),
        (&25.into(), &17.into())
    );
    let steps = variant["steps"].as_array().unwrap();
    assert!(
        steps.iter().all(|step| step["step"].is_string()),
        "{steps:?}"
    );
    let mut files: Vec<_> = fs::read_dir(&first)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files.len(), 3 * 3 + 1, "{files:?}");
    for file in files {
        let bytes = |place: &str| fs::read(Path::new(place).join(&file)).unwrap();
        assert!(bytes(&first) == bytes(&second), "{file:?}");
    }
}

#[test]
fn draws_are_printed_as_text_and_differ_by_seed() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(folder.path());
    let explain = |seed: &str| {
        let flags = [
            "--recipe",
            "real-esrgan",
            "--explain",
            "--images",
            "1",
            "--seed",
            seed,
        ];
        let mut all = vec!["degrade", &pictures];
        all.extend(flags);
        run(&all).ok().stdout
    };
    let text = explain("1");
    assert_eq!(text.matches("variant").count(), 4, "{text}");
    assert!(
        text.matches("  blur ").count() >= 4 && text.contains("sigma"),
        "{text}"
    );
    assert_ne!(text, explain("2"));
}

#[test]
fn presets_and_steps_are_listed_and_a_preset_is_a_recipe_file() {
    let folder = tempfile::tempdir().unwrap();
    let list = run(&["degrade", "--list"]).ok().stdout;
    for name in ["real-esrgan", "real-esrgan-light", "jpeg", "denoise", "web"] {
        assert!(list.contains(name));
        let text = run(&["degrade", "--show", name]).ok().stdout;
        let file = folder.path().join("recipe.yml");
        fs::write(&file, text).unwrap();
        let canonical = |recipe: &str| run(&["degrade", "--show", recipe, "--json"]).ok().stdout;
        assert_eq!(canonical(name), canonical(file.to_str().unwrap()));
    }
    let steps = run(&["degrade", "--steps"]).ok().stdout;
    assert!(steps.contains("beta_plateau") && steps.contains("jpeg:"));
}

#[test]
fn errors_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(folder.path());
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (sheet, wrong, empty) = (place("sheet.png"), place("wrong.yml"), place("empty"));
    fs::write(&wrong, "steps:\n- jpeg:\n    qualty: 30\n").unwrap();
    fs::create_dir(&empty).unwrap();
    for (flags, words) in [
        (
            vec!["degrade", &pictures, &sheet, "--recipe", "real-esrgann"],
            vec!["did you mean real-esrgan?", "--list"],
        ),
        (
            vec!["degrade", &pictures, &sheet, "--recipe", &wrong],
            vec!["wrong.yml", "line 3", "did you mean quality?"],
        ),
        (vec!["degrade", &empty, &sheet], vec!["no images"]),
        (
            vec!["degrade", "/nowhere", &sheet],
            vec!["/nowhere does not exist"],
        ),
        (
            vec!["degrade", &pictures, &sheet, "--recipe", &pictures],
            vec!["expected a YAML file", "folder"],
        ),
        (
            vec!["degrade", &pictures, &sheet, "--host-memory", "1M"],
            vec!["--size"],
        ),
    ] {
        run(&flags).refused(1, &words);
        assert!(!Path::new(&sheet).exists());
    }
    run(&["degrade", &pictures]).refused(2, &["OUT"]);
    run(&["degrade", &pictures, &sheet, "--scale", "9"]).refused(2, &["--scale"]);
}
