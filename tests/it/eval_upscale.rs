//! The commands `paragon eval` and `paragon upscale`: the figures agree with those computed with
//! Pillow and NumPy, results do not depend on tiles or threads, images of every kind and shape are
//! accepted, and memory stays within the computed amount. Set5 is reference data outside the
//! repository: without it those tests print SKIP.

use crate::{cli_common, common, shard_common};

use cli_common::{model, paragon, run, run_watched, text};
use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use paragon::backend::cpu::CpuOptions;
use paragon::dataset::decode::{Limits, decode};
use paragon::inference::upscale::{DEFAULT_TILE, Upscaler};
use paragon::model::Network;
use paragon::model::{ModelHints, read_model};
use serde_json::Value;
use shard_common::{config, make, picture, pictures};
use std::fs;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn eval_json(data: &Path, model: &Path, more: &[&str]) -> Value {
    let ran = run(&[
        &["eval", text(data), "--model", text(model), "--json"],
        more,
    ]
    .concat())
    .ok();
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Checks that every mean is the mean of its column.
fn check_means(report: &Value) {
    let images = report["images"].as_array().unwrap();
    for who in ["network", "bicubic"] {
        for figure in ["psnr", "ssim", "psnr_y", "ssim_y"] {
            let sum: f64 = images
                .iter()
                .map(|i| i[who][figure].as_f64().unwrap())
                .sum();
            let mean = report["mean"][who][figure].as_f64().unwrap();
            assert!(
                (mean - sum / images.len() as f64).abs() < 1e-9,
                "{who} {figure}: {mean}"
            );
        }
    }
}

#[test]
fn eval_of_set5_gives_the_reference_figures_for_bicubic() {
    let test = "eval_of_set5_gives_the_reference_figures_for_bicubic";
    let (Some(set5), Some(golden)) = (
        common::place::reference(test, "datasets/set5"),
        common::place::reference(test, "golden/metrics_set5_pillow_bicubic_x2.json"),
    ) else {
        return;
    };
    let golden: Value = serde_json::from_str(&fs::read_to_string(golden).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    for crop in [2, 4] {
        let report = eval_json(&set5, &model, &["--crop-border", &crop.to_string()]);
        assert_eq!(
            (report["scale"].as_u64(), report["crop_border"].as_u64()),
            (Some(2), Some(crop))
        );
        check_means(&report);
        let images = report["images"].as_array().unwrap();
        assert_eq!(images.len(), 5);
        let check = |name: &str, found: &Value, wanted: &Value| {
            let difference = |figure: &str| {
                found[figure].as_f64().unwrap()
                    - wanted[format!("{figure}_crop{crop}")].as_f64().unwrap()
            };
            let (psnr, ssim) = (difference("psnr"), difference("ssim"));
            println!("{name} crop {crop}: {psnr:+.5} dB, {ssim:+.7}");
            assert!(
                psnr.abs() < 0.01 && ssim.abs() < 1e-4,
                "{name} crop {crop}: {psnr} dB, {ssim}"
            );
        };
        for image in images {
            let name = image["name"].as_str().unwrap();
            let wanted = &golden[format!("{name}.png")];
            check(name, &image["bicubic"], wanted);
            // HR is cropped to a multiple of the scale.
            assert!(
                image["width"].as_u64() <= wanted["size_hr"][0].as_u64(),
                "{name}"
            );
        }
        check("mean", &report["mean"]["bicubic"], &golden["mean"]);
        let y = report["mean"]["bicubic"]["psnr_y"].as_f64().unwrap()
            - golden["mean"][format!("psnr_crop{crop}_y")]
                .as_f64()
                .unwrap();
        println!("mean crop {crop}: {y:+.5} dB PSNR-Y");
        assert!(y.abs() < 0.01, "mean PSNR-Y differs by {y}");
    }
    // The default crop border is the scale, and the table has the same numbers.
    let report = eval_json(&set5, &model, &[]);
    assert_eq!(report["crop_border"], 2);
    let table = run(&["eval", text(&set5), "--model", text(&model)])
        .ok()
        .stdout;
    let mean = table.lines().find(|l| l.starts_with("mean")).unwrap();
    for who in ["network", "bicubic"] {
        assert!(
            mean.contains(&format!(
                "{:.2}",
                report["mean"][who]["psnr_y"].as_f64().unwrap()
            )),
            "{table}"
        );
    }
}

#[test]
fn eval_makes_the_lq_and_saves_what_it_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model, saved) = (
        dir.path().join("data"),
        model(dir.path()),
        dir.path().join("saved"),
    );
    fs::create_dir_all(data.join("deep")).unwrap();
    picture(61, 47, 1).save(data.join("odd.png")).unwrap();
    picture(40, 64, 2).save(data.join("deep/b.png")).unwrap();
    let report = eval_json(&data, &model, &["--save", text(&saved)]);
    check_means(&report);
    let odd = report["images"]
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["name"] == "odd")
        .unwrap();
    assert_eq!(
        (odd["width"].as_u64(), odd["height"].as_u64()),
        (Some(60), Some(46))
    );
    let whole = image::open(saved.join("odd.png")).unwrap().into_rgb8();
    let hr = image::imageops::crop_imm(&picture(61, 47, 1), 0, 0, 60, 46).to_image();
    let psnr = paragon::inference::metrics::psnr(
        &whole,
        &hr,
        2,
        paragon::inference::metrics::Channels::Rgb,
    )
    .unwrap();
    assert!((psnr - odd["network"]["psnr"].as_f64().unwrap()).abs() < 1e-9);
    assert!(saved.join("deep/b.png").exists());
}

#[cfg(unix)]
#[test]
fn saved_pictures_keep_their_folders_and_never_meet() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model, saved) = (
        dir.path().join("data"),
        model(dir.path()),
        dir.path().join("saved"),
    );
    for (i, name) in ["a/1.png", "a_1.png", "a/b/1.png", "a/b_1.png", "a_b/1.png"]
        .iter()
        .enumerate()
    {
        fs::create_dir_all(data.join(name).parent().unwrap()).unwrap();
        picture(30 + 2 * i as u32, 30, i as u64)
            .save(data.join(name))
            .unwrap();
    }
    let report = eval_json(&data, &model, &["--save", text(&saved)]);
    for image in report["images"].as_array().unwrap() {
        let path = saved.join(format!("{}.png", image["name"].as_str().unwrap()));
        assert_eq!(
            Some(u64::from(image::image_dimensions(path).unwrap().0)),
            image["width"].as_u64()
        );
    }
    // A measured image is never overwritten, not even through a link.
    let before = fs::read(data.join("a/1.png")).unwrap();
    let eval = |saved: &Path| {
        run(&[
            "eval",
            text(&data),
            "--model",
            text(&model),
            "--save",
            text(saved),
        ])
    };
    std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
    for folder in [data.clone(), dir.path().join("link")] {
        eval(&folder).refused(1, &["--save", "overwrite"]);
    }
    assert!(fs::read(data.join("a/1.png")).unwrap() == before);
}

#[test]
fn a_level_picture_leaves_every_figure_finite() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model) = (dir.path().join("data"), model(dir.path()));
    fs::create_dir_all(data.join("hr")).unwrap();
    fs::create_dir_all(data.join("lq")).unwrap();
    picture(40, 40, 1).save(data.join("hr/a.png")).unwrap();
    picture(20, 20, 1).save(data.join("lq/a.png")).unwrap();
    RgbImage::from_pixel(40, 40, Rgb([128; 3]))
        .save(data.join("hr/grey.png"))
        .unwrap();
    RgbImage::from_pixel(20, 20, Rgb([128; 3]))
        .save(data.join("lq/grey.png"))
        .unwrap();
    // The image does not have one colour, and yet its LQ restores it exactly, because the crop
    // border removes the white frame.
    let black = RgbImage::from_fn(40, 40, |x, y| {
        Rgb(if x.min(y) == 0 { [255; 3] } else { [0; 3] })
    });
    black.save(data.join("hr/frame.png")).unwrap();
    RgbImage::new(20, 20)
        .save(data.join("lq/frame.png"))
        .unwrap();
    let report = eval_json(&data, &model, &[]);
    check_means(&report);
    let image = |name: &str| {
        report["images"]
            .as_array()
            .unwrap()
            .iter()
            .find(|i| i["name"] == name)
            .unwrap()
            .clone()
    };
    for name in ["grey", "frame"] {
        assert_eq!(
            (
                image(name)["bicubic"]["psnr"].as_f64(),
                image(name)["bicubic"]["psnr_y"].as_f64()
            ),
            (Some(100.0), Some(100.0))
        );
    }
    let table = run(&["eval", text(&data), "--model", text(&model)])
        .ok()
        .stdout;
    assert!(
        table.contains(">=100") && !table.contains("inf") && !table.contains("NaN"),
        "{table}"
    );
}

#[test]
fn a_picture_that_cannot_be_measured_is_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model) = (dir.path().join("data"), model(dir.path()));
    fs::create_dir(&data).unwrap();
    picture(40, 36, 1).save(data.join("a.png")).unwrap();
    picture(44, 40, 2).save(data.join("z.png")).unwrap();
    let alone = eval_json(&data, &model, &[]);
    picture(9, 9, 3).save(data.join("icon.png")).unwrap();
    let whole = fs::read(data.join("a.png")).unwrap();
    fs::write(data.join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let eval = ["eval", text(&data), "--model", text(&model)];
    let ran = run(&[&eval[..], &["--json"]].concat())
        .refused(1, &["icon.png", "11x11", "cut.png", "cut short", "2 of 4"]);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["mean"], alone["mean"]);
    let names: Vec<_> = report["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["cut", "icon"]);
    assert!(
        run(&eval)
            .refused(1, &["left out of the mean"])
            .stdout
            .contains("mean")
    );
}

/// `eval` and `shard` accept the same pairs: HR may be up to scale - 1 pixels larger at the right
/// and at the bottom.
#[test]
fn an_hr_that_was_not_cropped_is_cut_by_eval_and_shard_alike() {
    for (hr, fits) in [
        ((129, 131), true),
        ((128, 130), true),
        ((130, 130), false),
        ((127, 130), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (data, set, model) = (
            dir.path().join("data"),
            dir.path().join("set"),
            model(dir.path()),
        );
        fs::create_dir_all(data.join("hr")).unwrap();
        fs::create_dir_all(data.join("lq")).unwrap();
        picture(hr.0, hr.1, 1).save(data.join("hr/a.png")).unwrap();
        picture(64, 65, 1).save(data.join("lq/a.png")).unwrap();
        let made = make(&config(&data, &set)).is_ok_and(|report| report.pairs > 0);
        let measured = run(&["eval", text(&data), "--model", text(&model)]);
        assert_eq!(
            (made, measured.code),
            (fits, Some(if fits { 0 } else { 1 })),
            "{hr:?}: {measured:?}"
        );
    }
}

#[test]
fn tiles_and_threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (input, model) = (dir.path().join("in.png"), model(dir.path()));
    picture(150, 90, 4).save(&input).unwrap();
    let mut expected: Option<Vec<u8>> = None;
    for (number, more) in [
        &["--tile", "256"][..],
        &["--tile", "33"],
        &["--tile", "64", "--threads", "1"],
        &["--tile", "100", "--threads", "5"],
        &[],
    ]
    .iter()
    .enumerate()
    {
        let out = dir.path().join(format!("out{number}.png"));
        run(&[
            &["upscale", text(&input), text(&out), "--model", text(&model)],
            *more,
        ]
        .concat())
        .ok();
        let bytes = fs::read(&out).unwrap();
        assert!(*expected.get_or_insert(bytes.clone()) == bytes, "{more:?}");
    }
    // A folder gives the same bytes as its files one by one. If the output is a folder, a result
    // has the name of its image.
    let (folder, all) = (dir.path().join("folder"), dir.path().join("all"));
    fs::create_dir(&folder).unwrap();
    fs::copy(&input, folder.join("in.png")).unwrap();
    picture(30, 20, 5)
        .save(folder.join("in.small.png"))
        .unwrap();
    fs::write(folder.join("notes.txt"), "not an image").unwrap();
    run(&[
        "upscale",
        text(&folder),
        text(&all),
        "--model",
        text(&model),
    ])
    .ok();
    let names: Vec<String> = shard_common::files(&all).into_keys().collect();
    assert_eq!(names, ["in.png", "in.small.png"]);
    assert!(Some(fs::read(all.join("in.png")).unwrap()) == expected);
    run(&[
        "upscale",
        text(&folder.join("in.small.png")),
        text(dir.path()),
        "--model",
        text(&model),
    ])
    .ok();
    assert!(
        fs::read(dir.path().join("in.small.png")).unwrap()
            == fs::read(all.join("in.small.png")).unwrap()
    );
}

#[test]
fn pictures_of_every_shape_and_kind_are_upscaled() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let upscale = |name: &str, picture: &DynamicImage, out: &str| {
        let (input, out) = (dir.path().join(name), dir.path().join(out));
        picture.save(&input).unwrap();
        run(&["upscale", text(&input), text(&out), "--model", text(&model)]).ok();
        decode(&out, &Limits::default()).unwrap().image
    };
    for (w, h) in [(1, 1), (3, 200), (200, 3), (1, 37), (300, 1), (17, 19)] {
        let image = upscale(
            "odd.png",
            &DynamicImage::ImageRgb8(picture(w, h, 7)),
            "odd_out.png",
        );
        assert_eq!(image.dimensions(), (2 * w, 2 * h));
    }
    // The same pixels in other formats give the same result.
    let plain = RgbImage::from_fn(24, 18, |x, y| Rgb([(x * 9 + y) as u8; 3]));
    let expected = upscale(
        "plain.png",
        &DynamicImage::ImageRgb8(plain.clone()),
        "plain_out.png",
    );
    let grey = GrayImage::from_fn(24, 18, |x, y| Luma([plain.get_pixel(x, y).0[0]]));
    let alpha = RgbaImage::from_fn(24, 18, |x, y| {
        Rgba([
            plain.get_pixel(x, y).0[0],
            plain.get_pixel(x, y).0[1],
            plain.get_pixel(x, y).0[2],
            9,
        ])
    });
    let deep = ImageBuffer::from_fn(24, 18, |x, y| {
        Rgb(plain.get_pixel(x, y).0.map(|v| u16::from(v) * 257))
    });
    assert!(
        upscale("grey.png", &DynamicImage::ImageLuma8(grey), "grey_out.png") == expected,
        "grey"
    );
    assert!(
        upscale(
            "alpha.png",
            &DynamicImage::ImageRgba8(alpha),
            "alpha_out.png"
        ) == expected,
        "alpha"
    );
    assert!(
        upscale("deep.png", &DynamicImage::ImageRgb16(deep), "deep_out.png") == expected,
        "16 bits"
    );
    assert!(
        upscale(
            "plain.tiff",
            &DynamicImage::ImageRgb8(plain.clone()),
            "tiff_out.png"
        ) == expected,
        "TIFF"
    );
    // The ending of the file name decides the format.
    for (out, start) in [
        ("o.jpg", &b"\xFF\xD8\xFF"[..]),
        ("o.JPEG", b"\xFF\xD8\xFF"),
        ("o.webp", b"RIFF"),
        ("o.bmp", b"BM"),
        ("o.tif", b"II"),
    ] {
        let image = upscale("plain.png", &DynamicImage::ImageRgb8(plain.clone()), out);
        assert!(
            fs::read(dir.path().join(out)).unwrap().starts_with(start),
            "{out}"
        );
        let far = image
            .as_raw()
            .iter()
            .zip(expected.as_raw())
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap();
        assert!(
            if start[0] == 0xFF { far < 12 } else { far == 0 },
            "{out} differs by {far}"
        );
    }
}

/// `upscale` needs memory for one tile, for the image and for its result, at any image size.
#[test]
fn upscale_takes_memory_for_a_tile_and_the_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output, model) = (
        dir.path().join("in.png"),
        dir.path().join("out.png"),
        model(dir.path()),
    );
    picture(1024, 1024, 4).save(&input).unwrap();
    let arena = |tile: usize| {
        let (net, params, _): (Network, Vec<f32>, _) =
            read_model(&model, &ModelHints::default()).unwrap();
        Upscaler::new(net, params, CpuOptions::new(2), tile)
            .unwrap()
            .bytes()
            .unwrap()
    };
    let (lq, hr) = (1024 * 1024 * 3, 4 * 1024 * 1024 * 3);
    // The tile's arena; LQ, decoded at up to three times its bytes; HR and its file in memory, in a
    // vector whose capacity may have doubled; 24 MiB for the program itself, as in `train`.
    let bound = arena(DEFAULT_TILE) + 3 * lq + hr + 2 * hr + 24 * MIB;
    let (ran, peak) = run_watched(paragon(&[
        "upscale",
        text(&input),
        text(&output),
        "--model",
        text(&model),
        "--threads",
        "2",
    ]));
    ran.ok();
    println!(
        "peak {} MiB, bound {} MiB, of that {} MiB for a tile",
        peak / MIB,
        bound / MIB,
        arena(DEFAULT_TILE) / MIB
    );
    assert!(peak > 0 && peak <= bound, "{peak} bytes, bound {bound}");
    assert!(
        bound < arena(1024) / 2,
        "the bound is too large to detect a whole image in memory ({} bytes)",
        arena(1024)
    );
}

#[test]
fn train_stays_within_what_it_computed_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set, val, out) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("val"),
        dir.path().join("run"),
    );
    pictures(&data, 3);
    make(&config(&data, &set)).unwrap();
    fs::create_dir(&val).unwrap();
    picture(1400, 1000, 3).save(val.join("large.png")).unwrap(); // memory for validation counts too
    for more in [
        &[][..],
        &["--val", text(&val), "--val-every", "4"],
        &["--accum-iter", "2", "--slots", "16"],
    ] {
        let run = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "8",
            "--batch-size",
            "192",
            "--threads",
            "2",
        ];
        let (ran, peak) = run_watched(paragon(
            &[
                &run[..],
                &["--json", "--restart", "--checkpoint-every", "3"],
                more,
            ]
            .concat(),
        ));
        let ran = ran.ok();
        let summary: Value = serde_json::from_str(&ran.stdout).unwrap();
        let planned = summary["planned"].as_u64().unwrap();
        println!(
            "{more:?}: peak {:.1} MiB of {:.1}",
            peak as f64 / MIB as f64,
            planned as f64 / MIB as f64
        );
        assert!(
            peak <= planned && summary["peak_anonymous"].as_u64().unwrap() <= planned,
            "{more:?}: {peak} bytes, computed {planned}"
        );
        // The computed figure is not too large either, because all of the arena is used.
        assert!(
            planned > 40 * MIB && peak > planned / 3,
            "{more:?}: {peak} of {planned}"
        );
        let last = fs::read_to_string(out.join("log.jsonl"))
            .unwrap()
            .lines()
            .last()
            .unwrap()
            .to_string();
        assert_eq!(last.contains("val_psnr_y"), more.contains(&"--val"));
    }
}

/// Validation uses the arena of the training step. It changes no bit of the run and gives the same
/// scores as `eval` in an arena of its own, even if a step needs less memory than a tile or an
/// image is smaller than a tile.
#[test]
fn validation_in_the_arena_of_the_step_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (data, set, val) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("val"),
    );
    pictures(&data, 3);
    make(&config(&data, &set)).unwrap();
    fs::create_dir(&val).unwrap();
    picture(310, 222, 3).save(val.join("large.png")).unwrap();
    picture(50, 180, 4).save(val.join("small.png")).unwrap();
    for sizes in [
        ["--lq-size", "8", "--batch-size", "1"],
        ["--lq-size", "16", "--batch-size", "20"],
    ] {
        let train = |name: &str, more: &[&str]| {
            let out = dir.path().join(name);
            let base = [
                "train",
                "--shards",
                text(&set),
                "--out",
                text(&out),
                "--iterations",
                "7",
                "--warmup",
                "0",
                "--lr",
                "1e-3",
                "--threads",
                "2",
            ];
            let all = [
                &base[..],
                &sizes[..],
                &[
                    "--restart",
                    "--checkpoint-every",
                    "7",
                    "--log-every",
                    "3",
                    "-v",
                ],
                more,
            ]
            .concat();
            let ran = run(&all).ok();
            (fs::read(out.join("model.safetensors")).unwrap(), ran.stderr)
        };
        let (without, plain) = train("without", &[]);
        let (with, said) = train("with", &["--val", text(&val), "--val-every", "2"]);
        assert!(without == with, "{sizes:?}: validation changed the network");
        assert!(
            said.contains("validation: images and a tile") && !plain.contains("validation"),
            "{said}"
        );
        let log = fs::read_to_string(dir.path().join("with/log.jsonl")).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let report = eval_json(&val, &dir.path().join("with/model.safetensors"), &[]);
        assert_eq!(
            last["val_psnr_y"], report["mean"]["network"]["psnr_y"],
            "{sizes:?}"
        );
        assert_eq!(
            last["val_ssim_y"], report["mean"]["network"]["ssim_y"],
            "{sizes:?}"
        );
    }
}

/// PyTorch loads what `train` writes with `strict=True`, and its image differs by at most 1 of 255.
/// Needs a Python with torch, named by `PARAGON_PYTHON`.
#[test]
fn pytorch_loads_a_trained_network_and_agrees() {
    let Some(python) = std::env::var_os("PARAGON_PYTHON") else {
        println!(
            "SKIP pytorch_loads_a_trained_network_and_agrees: PARAGON_PYTHON names no Python with torch and safetensors"
        );
        return;
    };
    for scale in [2, 3, 4] {
        let dir = tempfile::tempdir().unwrap();
        let (data, set, out) = (
            dir.path().join("data"),
            dir.path().join("set"),
            dir.path().join("run"),
        );
        fs::create_dir(&data).unwrap();
        picture(100, 90, 1).save(data.join("a.png")).unwrap();
        make(&paragon::shard::plan::BuildConfig {
            scale,
            ..config(&data, &set)
        })
        .unwrap();
        let train = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "20",
            "--batch-size",
            "2",
            "--warmup",
            "0",
        ];
        run(&[
            &train[..],
            &[
                "--lr",
                "1e-3",
                "--layer-scale",
                "0.5",
                "--detail-gain",
                "0.5",
            ],
        ]
        .concat())
        .ok();
        let (model, input, up) = (
            out.join("model.safetensors"),
            dir.path().join("in.png"),
            dir.path().join("up.png"),
        );
        picture(61, 47, 3).save(&input).unwrap();
        run(&[
            "upscale",
            text(&input),
            text(&up),
            "--model",
            text(&model),
            "--tile",
            "40",
        ])
        .ok();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check_checkpoint.py");
        let mut check = std::process::Command::new(&python);
        check
            .arg(script)
            .arg(&model)
            .arg("--input")
            .arg(&input)
            .arg("--upscaled")
            .arg(&up);
        let found = check.output().unwrap();
        let said = String::from_utf8_lossy(&found.stdout);
        println!("{said}");
        assert!(
            found.status.success() && said.contains("strict=True"),
            "{said}{}",
            String::from_utf8_lossy(&found.stderr)
        );
    }
}
