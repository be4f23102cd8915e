//! `upscale`, `eval` and `bench upscale` on the stand-in driver: every network against the CPU, the
//! same bits for several tiles, memory limits, a device that fails, and machines without one.

use crate::{cli_common, kernels_common, shard_common};

use cli_common::{Ran, model, paragon, text};
use image::{ImageBuffer, Rgb, RgbImage};
use kernels_common::driver;
use paragon::model::{Network, Setting, write_model};
use serde_json::Value;
use shard_common::picture;
use std::path::{Path, PathBuf};

/// Runs the program with the stand-in driver; `None` without a C++ compiler. The variables describe
/// the card.
fn with_driver(args: &[&str], card: &[(&str, &str)]) -> Option<Ran> {
    let mut command = paragon(args);
    command.env("LD_LIBRARY_PATH", driver()?);
    command.envs(card.iter().copied());
    Some(command.output().unwrap().into())
}

/// 200 KB more than the 64 MiB that are in use on the stand-in before an arena is made.
const LITTLE: &str = "67308864";

const CUDA: &[&str] = &["--device", "cuda"];
const CPU: &[&str] = &["--device", "cpu"];

/// A network to test: its name, settings, the sizes of an image along which it is cut into tiles,
/// and sides of tiles: one that holds the image, then smaller ones.
struct Case {
    name: &'static str,
    settings: &'static [(&'static str, f32)],
    size: (u32, u32),
    tiles: &'static [&'static str],
}

/// Every network, as small as its settings allow. Images are long and low, because kernels on fibers
/// are slow and a tile must be longer than what a pixel sees.
const CASES: [Case; 6] = [
    Case {
        name: "nano",
        settings: &[("layer_scale", 0.5), ("detail_gain", 1.0)],
        size: (75, 37),
        tiles: &["128", "34", "29"],
    },
    Case {
        name: "stream",
        settings: &[("layer_scale", 0.5), ("detail_gain", 1.0)],
        size: (110, 9),
        tiles: &["128", "88", "77"],
    },
    Case {
        name: "compact",
        settings: &[("num_feat", 20.0), ("num_conv", 1.0)],
        size: (75, 10),
        tiles: &["128", "48", "36"],
    },
    Case {
        name: "span",
        settings: &[("feature_channels", 12.0)],
        size: (210, 6),
        tiles: &["256", "184", "196"],
    },
    Case {
        name: "photo",
        settings: &[
            ("window_size", 2.0),
            ("layer_scale", 0.3),
            ("detail_gain", 1.0),
        ],
        size: (71, 7),
        tiles: &["128", "48", "60"],
    },
    // looks at the whole image
    Case {
        name: "pro",
        settings: &[
            ("window_size", 4.0),
            ("layer_scale", 0.3),
            ("detail_gain", 1.0),
        ],
        size: (19, 14),
        tiles: &[],
    },
];

impl Case {
    fn network(&self) -> Network {
        let mut net = Network::new(self.name, 2).unwrap();
        for &(name, value) in self.settings {
            let whole = value.fract() == 0.0 && net.whole(name) > 0;
            match whole {
                true => net.set(name, Setting::Whole(value as usize)).unwrap(),
                false => net.set(name, value).unwrap(),
            }
        }
        net
    }

    /// Writes the network to a file.
    fn write(&self, dir: &Path) -> PathBuf {
        let (net, path) = (
            self.network(),
            dir.join(format!("{}.safetensors", self.name)),
        );
        write_model(&path, &net, &net.params().start_values(3), None).unwrap();
        path
    }
}

/// An image with 16 bits a channel.
fn deep_picture((w, h): (u32, u32)) -> ImageBuffer<Rgb<u16>, Vec<u16>> {
    let low = picture(w, h, 6);
    ImageBuffer::from_fn(w, h, |x, y| {
        let pixel = low.get_pixel(x, y).0;
        Rgb(pixel.map(|v| u16::from(v) * 251 + (x * 37 + y * 11) as u16 % 199))
    })
}

/// `|a - b| / |b|` in the L2 norm, of the values without their mean.
fn relative(a: &[u16], b: &[u16]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|&v| f64::from(v)).sum::<f64>() / b.len() as f64;
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let pairs = &mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b));
    let difference = squares(pairs);
    (difference / squares(&mut b.iter().map(|&v| f64::from(v) - mean))).sqrt()
}

/// Folder, network and images of a test.
struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new(write: impl Fn(&Path) -> PathBuf) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let model = write(dir.path());
        Place { dir, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `upscale FROM TO` with further words.
    fn upscale(
        &self,
        (from, to): (&str, &str),
        words: &[&[&str]],
        card: &[(&str, &str)],
    ) -> Option<Ran> {
        let (from, to) = (self.path(from), self.path(to));
        let base = ["upscale", text(&from), text(&to), "-m", text(&self.model)];
        with_driver(&[&base[..], &words.concat()].concat(), card)
    }

    fn result(&self, name: &str) -> RgbImage {
        image::open(self.path(name)).unwrap().into_rgb8()
    }

    fn deep_result(&self, name: &str) -> Vec<u16> {
        image::open(self.path(name))
            .unwrap()
            .into_rgb16()
            .into_raw()
    }
}

/// The tolerance is that of the selftest for values behind many operations.
fn follows_the_cpu(case: &Case) {
    let place = Place::new(|dir| case.write(dir));
    let (w, h) = (case.size.0 / 3, case.size.1);
    picture(w, h, 5).save(place.path("in.png")).unwrap();
    deep_picture((w, h)).save(place.path("deep.png")).unwrap();
    for input in ["in.png", "deep.png"] {
        let Some(ran) = place.upscale((input, "cuda.png"), &[CUDA], &[]) else {
            return;
        };
        let said = ran.ok().stderr;
        assert!(
            said.contains("fiber GPU (sm_86), f32: tiles of at most"),
            "{said}"
        );
        place.upscale((input, "cpu.png"), &[CPU], &[]).unwrap().ok();
        let (cuda, cpu) = (place.deep_result("cuda.png"), place.deep_result("cpu.png"));
        let error = relative(&cuda, &cpu);
        // 8 bits: a value on the border between two levels may become either
        let most = if input == "in.png" { 2e-3 } else { 2e-5 };
        assert!(error < most, "{} {input}: {error:.1e}", case.name);
        let far = cuda.iter().zip(&cpu).map(|(a, b)| a.abs_diff(*b)).max();
        println!("{} {input}: {error:.1e}, {far:?} levels", case.name);
    }
}

fn has_the_same_bits_in_tiles(case: &Case, flags: &[&str]) {
    let place = Place::new(|dir| case.write(dir));
    let (w, h) = case.size;
    picture(w, h, 7).save(place.path("in.png")).unwrap();
    let mut whole: Option<RgbImage> = None;
    for tile in case.tiles {
        let words = [CUDA, flags, &["--tile", tile]];
        let Some(ran) = place.upscale(("in.png", "out.png"), &words, &[]) else {
            return;
        };
        ran.ok();
        let result = place.result("out.png");
        let whole = whole.get_or_insert_with(|| result.clone());
        let different = whole.iter().zip(result.iter()).filter(|(a, b)| a != b);
        let count = different.count();
        assert!(
            count == 0,
            "{}: tile {tile} differs in {count} values",
            case.name
        );
    }
}

#[test]
fn nano_upscales_on_the_device_as_on_the_cpu() {
    follows_the_cpu(&CASES[0]);
    has_the_same_bits_in_tiles(&CASES[0], &[]);
}

#[test]
fn stream_upscales_on_the_device_as_on_the_cpu() {
    follows_the_cpu(&CASES[1]);
    has_the_same_bits_in_tiles(&CASES[1], &[]);
}

#[test]
fn compact_upscales_on_the_device_as_on_the_cpu() {
    follows_the_cpu(&CASES[2]);
    has_the_same_bits_in_tiles(&CASES[2], &[]);
}

#[test]
fn span_upscales_on_the_device_as_on_the_cpu() {
    follows_the_cpu(&CASES[3]);
    has_the_same_bits_in_tiles(&CASES[3], &[]);
}

#[test]
fn photo_upscales_on_the_device_as_on_the_cpu() {
    follows_the_cpu(&CASES[4]);
    has_the_same_bits_in_tiles(&CASES[4], &[]);
}

#[test]
fn pro_upscales_on_the_device_as_on_the_cpu_as_a_whole() {
    let case = &CASES[5];
    follows_the_cpu(case);
    let place = Place::new(|dir| case.write(dir));
    picture(50, 32, 5).save(place.path("in.png")).unwrap();
    let words: [&[&str]; 2] = [CUDA, &["--tile", "24"]];
    let Some(ran) = place.upscale(("in.png", "out.png"), &words, &[]) else {
        return;
    };
    ran.refused(1, &["in stages", "run on the CPU only", "--device cpu"]);
    // the image does not fit on the device: a named one refuses it, and auto takes the CPU
    let small = [("FAKE_CUDA_MEMORY", "345000000")];
    let refused = place
        .upscale(("in.png", "out.png"), &[CUDA], &small)
        .unwrap();
    refused.refused(
        1,
        &["looks at the whole image", "--device cpu", "fiber GPU"],
    );
    let ran = place.upscale(("in.png", "out.png"), &[], &small).unwrap();
    let said = ran.ok().stderr;
    assert!(said.contains("computing on the CPU, because"), "{said}");
    place
        .upscale(("in.png", "cpu.png"), &[CPU], &[])
        .unwrap()
        .ok();
    assert!(place.result("out.png") == place.result("cpu.png"));
    // not more than the image of a folder that is too large
    std::fs::create_dir(place.path("folder")).unwrap();
    picture(50, 32, 5)
        .save(place.path("folder/large.png"))
        .unwrap();
    picture(8, 8, 5)
        .save(place.path("folder/small.png"))
        .unwrap();
    let ran = place
        .upscale(("folder", "results"), &[CUDA], &small)
        .unwrap();
    ran.refused(1, &["large.png", "1 of 2 images could not be upscaled"]);
    assert!(place.path("results/small.png").exists());
}

#[test]
fn nano_in_halves_is_near_f32_and_does_not_depend_on_tiles() {
    for (precision, most) in [("bf16", 1.6e-2), ("fp16", 2e-3)] {
        let flags = ["--precision", precision];
        has_the_same_bits_in_tiles(&CASES[0], &flags);
        let place = Place::new(|dir| CASES[0].write(dir));
        deep_picture((20, 17)).save(place.path("in.png")).unwrap();
        let Some(ran) = place.upscale(("in.png", "cuda.png"), &[CUDA, &flags], &[]) else {
            return;
        };
        let said = ran.ok().stderr;
        assert!(said.contains(&format!("(sm_86), {precision}: ")), "{said}");
        place
            .upscale(("in.png", "cpu.png"), &[CPU], &[])
            .unwrap()
            .ok();
        let error = relative(
            &place.deep_result("cuda.png"),
            &place.deep_result("cpu.png"),
        );
        assert!(error < most && error > 0.0, "{precision}: {error:.1e}");
    }
}

/// Words of the command line, variables that describe the card, and words of the answer.
type Refusal<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn types_and_limits_that_cannot_be_are_refused() {
    let place = Place::new(model);
    picture(9, 8, 1).save(place.path("in.png")).unwrap();
    let none = [("FAKE_CUDA_DEVICES", "0")];
    let cases: [Refusal; 7] = [
        (CUDA, &none, &["finds no device", "--device cpu"]),
        (&["--device", "cuda:2"], &[], &["cuda:2", "finds 1"]),
        (
            &["--precision", "bf16"],
            &none,
            &["--precision bf16", "f32 only"],
        ),
        (
            &["--device", "cpu", "--precision", "fp16"],
            &[],
            &["--precision fp16", "f32 only"],
        ),
        (
            &["--device", "cpu", "--vram", "4G"],
            &[],
            &["--vram", "--host-memory"],
        ),
        (
            &["--device", "cuda", "--precision", "bf16"],
            &[("FAKE_CUDA_CAPABILITY", "75")],
            &["has no bf16"],
        ),
        (
            &["--device", "cuda", "--vram", "10M"],
            &[],
            &["--vram allows 10.0 MiB", "64.0 MiB"],
        ),
    ];
    for (words, card, expected) in cases {
        let Some(ran) = place.upscale(("in.png", "out.png"), &[words], card) else {
            return;
        };
        ran.refused(1, expected);
        assert!(!place.path("out.png").exists(), "{words:?}");
    }
    picture(80, 70, 2).save(place.path("large.png")).unwrap();
    let little = &["--device", "cuda", "--vram", "64.5M"];
    let ran = place.upscale(("large.png", "out.png"), &[little], &[]);
    ran.unwrap().refused(
        1,
        &[
            "a tile of 64 x 64 pixels",
            "fiber GPU",
            "512.0 KiB may be used",
        ],
    );
    let pro = Place::new(|dir| CASES[5].write(dir));
    picture(9, 8, 1).save(pro.path("in.png")).unwrap();
    let halves = &["--device", "cuda", "--precision", "fp16"];
    let ran = pro.upscale(("in.png", "out.png"), &[halves], &[]).unwrap();
    ran.refused(1, &["token attention", "fp16", "--precision"]);
    // `auto` without a card, and with one that is too small, is the CPU
    place
        .upscale(("in.png", "cpu.png"), &[CPU], &[])
        .unwrap()
        .ok();
    let ran = place.upscale(("in.png", "out.png"), &[], &none).unwrap();
    assert!(!ran.ok().stderr.contains("because"));
    assert!(place.result("out.png") == place.result("cpu.png"));
    let ran = place.upscale(("in.png", "out.png"), &[&["--vram", LITTLE]], &[]);
    let said = ran.unwrap().ok().stderr;
    assert!(
        said.contains("computing on the CPU, because a tile of 64 x 64"),
        "{said}"
    );
}

#[test]
fn tiles_fit_the_memory_that_is_allowed() {
    let place = Place::new(model);
    picture(200, 70, 1).save(place.path("in.png")).unwrap();
    let run = |vram: &str, out: &str| -> Option<(Vec<u64>, u64)> {
        let words: [&[&str]; 2] = [CUDA, &["--json", "--vram", vram]];
        let json = place.upscale(("in.png", out), &words, &[])?.ok().stdout;
        let json: Value = serde_json::from_str(&json).unwrap();
        let device = &json["device"];
        assert_eq!(device["precision"], "f32", "{json}");
        let tile = device["tile"].as_array().unwrap();
        let tile = tile.iter().map(|side| side.as_u64().unwrap()).collect();
        Some((tile, device["memory"].as_u64().unwrap()))
    };
    let Some((whole, bytes)) = run("1G", "whole.png") else {
        return;
    };
    assert_eq!(whole, [200, 70]);
    // 64 MiB are in use before the arena is made
    let allowed = (64 << 20) + bytes * 6 / 10;
    let (tile, less) = run(&allowed.to_string(), "tiles.png").unwrap();
    assert!(
        tile[0] < 150 && less <= bytes * 6 / 10,
        "{tile:?}, {less} of {bytes}"
    );
    assert!(place.result("whole.png") == place.result("tiles.png"));
}

/// A folder, with several threads: names and results are those of one thread.
#[test]
fn a_folder_has_the_same_results_for_any_number_of_threads() {
    let place = Place::new(model);
    std::fs::create_dir(place.path("folder")).unwrap();
    for i in 0..7 {
        let name = place.path(&format!("folder/p{i}.png"));
        picture(9 + i % 3, 8 + i % 2, u64::from(i))
            .save(name)
            .unwrap();
    }
    deep_picture((12, 7))
        .save(place.path("folder/deep.png"))
        .unwrap();
    std::fs::write(place.path("folder/p3.png"), b"no image").unwrap();
    let run = |out: &str, threads: &str| -> Option<Value> {
        let words: [&[&str]; 2] = [CUDA, &["--json", "--threads", threads]];
        let ran = place.upscale(("folder", out), &words, &[])?;
        let json = serde_json::from_str(&ran.stdout).unwrap();
        ran.refused(1, &["p3.png", "1 of 8 images could not be upscaled"]);
        Some(json)
    };
    let Some(one) = run("one", "1") else { return };
    let many = run("many", "4").unwrap();
    assert_eq!(one["device"]["threads"], 1);
    assert_eq!(many["device"]["threads"], 4);
    assert!(many["memory_planned"].as_u64() > one["memory_planned"].as_u64());
    let inputs = |json: &Value| -> Vec<String> {
        let pictures = json["pictures"].as_array().unwrap().iter();
        pictures.map(|p| p["input"].to_string()).collect()
    };
    assert!(
        inputs(&one) == inputs(&many) && inputs(&one).len() == 7,
        "{many}"
    );
    for name in ["p0", "p1", "p2", "p4", "p5", "p6", "deep"] {
        let read = |out: &str| std::fs::read(place.path(&format!("{out}/{name}.png"))).unwrap();
        assert!(read("one") == read("many"), "{name}");
    }
    let eight = place.result("one/p0.png");
    place
        .upscale(("folder/p0.png", "cpu.png"), &[CPU], &[])
        .unwrap()
        .ok();
    let cpu = place.result("cpu.png");
    assert!(
        eight
            .iter()
            .zip(cpu.iter())
            .all(|(a, b)| a.abs_diff(*b) <= 1)
    );
    // memory for one image at a time
    let limit = one["memory_planned"].as_u64().unwrap() + 1000;
    let words: [&[&str]; 2] = [CUDA, &["--json", "--threads", "4", "--host-memory"]];
    let limit = limit.to_string();
    let ran = place.upscale(("folder", "few"), &[&words.concat(), &[&limit]], &[]);
    let json: Value = serde_json::from_str(&ran.unwrap().stdout).unwrap();
    assert_eq!(json["device"]["threads"], 1, "{json}");
}

#[test]
fn a_lost_device_ends_the_work_and_leaves_whole_results() {
    let place = Place::new(model);
    std::fs::create_dir(place.path("folder")).unwrap();
    for i in 0..6 {
        let name = place.path(&format!("folder/p{i}.png"));
        picture(12, 9, i).save(name).unwrap();
    }
    let Some(ran) = place.upscale(("folder", "good"), &[CUDA], &[]) else {
        return;
    };
    ran.ok();
    for threads in ["1", "3"] {
        let words: [&[&str]; 2] = [CUDA, &["--threads", threads]];
        // an image has about eight kernels
        let lost = [("FAKE_CUDA_FAIL", "kernel:27:700")];
        let ran = place.upscale(("folder", "lost"), &words, &lost).unwrap();
        ran.refused(
            1,
            &[
                "the GPU is lost",
                "of 6 images",
                "were not tried",
                "--skip-existing",
            ],
        );
        let mut whole = 0;
        for entry in std::fs::read_dir(place.path("lost")).unwrap() {
            let path = entry.unwrap().path();
            let good = place.path("good").join(path.file_name().unwrap());
            // no file of an unfinished image is left either
            assert!(
                std::fs::read(&path).unwrap() == std::fs::read(good).unwrap(),
                "{path:?}"
            );
            whole += 1;
        }
        assert!((1..6).contains(&whole), "{whole} results");
        let words: [&[&str]; 2] = [CUDA, &["--skip-existing"]];
        let ran = place.upscale(("folder", "lost"), &words, &[]).unwrap();
        let said = ran.ok().stderr;
        assert!(said.contains(&format!("{} images", 6 - whole)), "{said}");
        std::fs::remove_dir_all(place.path("lost")).unwrap();
    }
    let good = place.path("good");
    let base = ["eval", text(&good), "-m", text(&place.model)];
    let base = [&base[..], CUDA].concat();
    let lost = [("FAKE_CUDA_FAIL", "kernel:12:719")];
    let ran = with_driver(&base, &lost).unwrap();
    ran.refused(1, &["the GPU is lost", "Xid"]);
}

#[test]
fn networks_are_measured_on_the_device_as_on_the_cpu() {
    let place = Place::new(model);
    let compact = CASES[2].write(place.dir.path());
    let pictures = place.path("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for i in 0..3 {
        let name = pictures.join(format!("p{i}.png"));
        picture(40, 34 + 2 * i, u64::from(i)).save(name).unwrap();
    }
    let measure = |more: &[&str]| -> Option<Value> {
        let base = ["eval", text(&pictures), "--json", "-m", text(&place.model)];
        let ran = with_driver(&[&base[..], &["-m", text(&compact)], more].concat(), &[])?;
        Some(serde_json::from_str(&ran.ok().stdout).unwrap())
    };
    let Some(cuda) = measure(&["--device", "cuda", "--threads", "2"]) else {
        return;
    };
    let cpu = measure(CPU).unwrap();
    assert_eq!(cuda["device"]["threads"], 2);
    assert!(cpu["device"].is_null());
    for model in 0..2 {
        for image in 0..3 {
            let score = |json: &Value| {
                let image = &json["models"][model]["images"][image];
                (
                    image["name"].clone(),
                    image["network"]["psnr"].as_f64().unwrap(),
                )
            };
            let ((a, on_cuda), (b, on_cpu)) = (score(&cuda), score(&cpu));
            assert_eq!(a, b);
            assert!((on_cuda - on_cpu).abs() < 1e-2, "{on_cuda} dB, {on_cpu} dB");
        }
    }
}

#[test]
fn upscaling_is_timed_on_the_device() {
    let base = [
        "bench",
        "upscale",
        "--size",
        "16",
        "--pictures",
        "2",
        "--device",
    ];
    let Some(ran) = with_driver(&[&base[..], &["cuda", "--json"]].concat(), &[]) else {
        return;
    };
    let report: Value = serde_json::from_str(&ran.ok().stdout).unwrap();
    let number = |name: &str| report[name].as_f64().unwrap();
    let seconds = number("seconds");
    assert!(
        (number("pictures_per_second") * seconds - 1.0).abs() < 1e-9,
        "{report}"
    );
    assert!(
        (number("megapixels_per_second") * seconds - 1024e-6).abs() < 1e-9,
        "{report}"
    );
    assert!(
        report["fma_peak"].is_null() && report["device"]["tile"][0] == 16,
        "{report}"
    );
    let halves = ["cuda", "--precision", "bf16"];
    let said = with_driver(&[&base[..], &halves].concat(), &[]).unwrap();
    let said = said.ok().stdout;
    assert!(
        said.contains("bf16: tiles of at most 16 x 16") && said.contains("images/s"),
        "{said}"
    );
    let said = with_driver(&[&base[..], &["cpu"]].concat(), &[]).unwrap();
    assert!(said.ok().stdout.contains("GFLOP/s"));
}
