//! The command `paragon upscale`: memory that is computed before the start and not exceeded, what
//! is refused before the start, which images of a folder are upscaled and how their results are
//! named, alpha channels, and outputs that are no regular files.
#![cfg(unix)]

use crate::{cli_common, shard_common};

use cli_common::{Ran, limit_files, model, paragon, run, run_watched, text};
use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, LumaA, Rgb, RgbImage, Rgba, RgbaImage,
};
use paragon::dataset::degrade::Resampler;
use serde_json::Value;
use shard_common::picture;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A PNG of one colour, written row by row.
fn level_png(path: &Path, width: u32, height: u32) {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path).unwrap()), width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let row = vec![120; 3 * width as usize];
    (0..height).for_each(|_| stream.write_all(&row).unwrap());
    stream.finish().unwrap();
}

/// A BMP of any size that takes no space on the disk, because it is a sparse file.
fn sparse_bmp(path: &Path, width: u32, height: u32) {
    let bytes = (u64::from(width) * 3).next_multiple_of(4) * u64::from(height) + 54;
    let mut header = b"BM".to_vec();
    for number in [
        bytes as u32,
        0,
        54,
        40,
        width,
        height,
        1 | 24 << 16,
        0,
        0,
        0,
        0,
        0,
        0,
    ] {
        header.extend(number.to_le_bytes());
    }
    fs::write(path, header).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

/// Limits the address space of a command to `bytes`, as `ulimit -v` does.
fn limit_addresses(command: &mut Command, bytes: u64) -> &mut Command {
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: a system call that is allowed between fork and exec
        if unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: see above
    unsafe { command.pre_exec(limit) }
}

struct Place {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let model = model(dir.path());
        Place { dir, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, from: &Path, to: &Path, more: &[&str]) -> Command {
        paragon(
            &[
                &[
                    "upscale",
                    text(from),
                    text(to),
                    "--model",
                    text(&self.model),
                    "--threads",
                    "2",
                ],
                more,
            ]
            .concat(),
        )
    }

    fn upscale(&self, from: &Path, to: &Path, more: &[&str]) -> Ran {
        self.command(from, to, more).output().unwrap().into()
    }

    fn json(&self, from: &Path, to: &Path, more: &[&str]) -> (Ran, Value) {
        let ran = self.upscale(from, to, &[&["--json"], more].concat());
        let json = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        (ran, json)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(
                names(&entry.path())
                    .into_iter()
                    .map(|inner| format!("{name}/{inner}")),
            );
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

/// 196 megapixels in a small file: the other rows need no more memory than the first ones.
#[test]
fn a_huge_png_takes_the_memory_of_a_row_of_tiles() {
    let place = Place::new();
    let (input, output) = (place.path("huge.png"), place.path("huge_x2.png"));
    level_png(&input, 14_000, 14_000);
    place
        .upscale(&input, &output, &["--host-memory", "40M"])
        .refused(1, &["huge.png", "--host-memory allows 40.0 MiB", "--tile"]);
    assert!(!output.exists());
    let mut child = place
        .command(&input, &output, &["--host-memory", "110M", "--tile", "96"])
        .spawn()
        .unwrap();
    let (started, mut peak) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none() {
        peak = peak.max(cli_common::anonymous(child.id()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let at_work = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    println!("peak {} MiB", peak / MIB);
    assert!(
        at_work && peak > 5 * MIB && peak <= 110 * MIB,
        "{} MiB",
        peak / MIB
    );
}

#[test]
fn memory_does_not_grow_with_the_height_and_stays_within_what_was_computed() {
    let place = Place::new();
    let mut planned = Vec::new();
    for height in [120, 480] {
        let (input, output) = (place.path("in.png"), place.path("out.png"));
        picture(160, height, 4).save(&input).unwrap();
        let (ran, peak) = run_watched(place.command(&input, &output, &["--tile", "48", "--json"]));
        let json: Value = serde_json::from_str(&ran.ok().stdout).unwrap();
        planned.push(json["memory_planned"].as_u64().unwrap());
        println!(
            "peak {} MiB of {}",
            peak / MIB,
            planned[planned.len() - 1] / MIB
        );
        assert!(peak > 0 && peak <= planned[planned.len() - 1]);
        assert_eq!(
            (
                json["pictures"][0]["width"].as_u64(),
                json["pictures"][0]["height"].as_u64()
            ),
            (Some(320), Some(2 * u64::from(height)))
        );
    }
    assert_eq!(planned[0], planned[1]);
}

#[test]
fn what_takes_too_much_memory_is_refused_before_the_work() {
    let place = Place::new();
    let (bmp, png, out) = (
        place.path("large.bmp"),
        place.path("large.png"),
        place.path("out.png"),
    );
    sparse_bmp(&bmp, 12_000, 12_000);
    level_png(&png, 8_000, 2_500);
    place
        .upscale(&bmp, &out, &["--host-memory", "500M"])
        .refused(1, &["large.bmp", "allows 500.0 MiB", "convert it to a PNG"]);
    // WebP needs the whole result of 16,000 x 5,000 pixels in memory.
    let webp = place.path("out.webp");
    place
        .upscale(&png, &webp, &["--host-memory", "500M"])
        .refused(1, &["large.png", "write it as png"]);
    // The limit on the address space is below the free memory of the machine.
    for (from, to) in [(&bmp, &out), (&png, &webp)] {
        let ran: Ran = limit_addresses(
            &mut place.command(from, to, &["--host-memory", "100G"]),
            700 * MIB,
        )
        .output()
        .unwrap()
        .into();
        ran.refused(1, &["large.", "memory"]);
    }
    let data = place.path("data");
    fs::create_dir(&data).unwrap();
    fs::rename(&png, data.join("large.png")).unwrap();
    let eval = [
        "eval",
        text(&data),
        "--model",
        text(&place.model),
        "--threads",
        "2",
    ];
    run(&[&eval[..], &["--host-memory", "150M"]].concat())
        .refused(1, &["large.png", "allows 150.0 MiB", "cut it into parts"]);
    let ran: Ran = limit_addresses(
        &mut paragon(&[&eval[..], &["--host-memory", "100G"]].concat()),
        200 * MIB,
    )
    .output()
    .unwrap()
    .into();
    ran.refused(1, &["large.png", "of memory", "cut it into parts"]);
    assert!(!out.exists() && !webp.exists());
}

#[test]
fn a_folder_goes_on_after_pictures_that_cannot_be_upscaled_and_names_them() {
    let place = Place::new();
    let (data, out) = (place.path("data"), place.path("out"));
    fs::create_dir(&data).unwrap();
    picture(30, 20, 1).save(data.join("a.png")).unwrap();
    picture(30, 20, 2).save(data.join("z.png")).unwrap();
    sparse_bmp(&data.join("large.bmp"), 12_000, 12_000);
    fs::write(data.join("text.jpg"), "no image").unwrap();
    let whole = fs::read(data.join("a.png")).unwrap();
    fs::write(data.join("cut.png"), &whole[..whole.len() - 40]).unwrap();
    fs::write(data.join("._a.png"), "what a Mac leaves").unwrap();
    fs::write(data.join("notes.txt"), "").unwrap();
    fs::create_dir_all(data.join("@eaDir")).unwrap();
    symlink("nowhere.png", data.join("lost.png")).unwrap();
    let (ran, json) = place.json(&data, &out, &["--host-memory", "500M"]);
    let ran = ran.refused(
        1,
        &[
            "4 of 6",
            "large.bmp",
            "text.jpg",
            "cut.png",
            "lost.png",
            "1 image left out: hidden",
            "@eaDir",
            "1 file left out",
        ],
    );
    assert_eq!(ran.stderr.matches("error: ").count(), 5, "{}", ran.stderr);
    assert_eq!(names(&out), ["a.png", "z.png"]);
    assert_eq!(
        (
            json["pictures"].as_array().unwrap().len(),
            json["failed"].as_array().unwrap().len()
        ),
        (2, 4)
    );
    assert_eq!(json["left_out"].as_array().unwrap().len(), 3);
    assert!(
        json["memory_planned"].as_u64().unwrap() > 20 * MIB
            && json["memory_limit"].as_u64() == Some(500 * MIB)
    );
}

#[test]
fn folders_within_a_folder_are_mirrored() {
    let place = Place::new();
    let data = place.path("data");
    fs::create_dir_all(data.join("deep/er")).unwrap();
    picture(20, 20, 1).save(data.join("a.png")).unwrap();
    picture(20, 20, 2).save(data.join("deep/a.png")).unwrap();
    picture(20, 20, 3).save(data.join("deep/er/b.bmp")).unwrap();
    let ran = place.upscale(&data, &place.path("tree"), &[]).ok();
    assert_eq!(
        names(&place.path("tree")),
        ["a.png", "deep/a.png", "deep/er/b.png"]
    );
    let last = ran.stderr.lines().last().unwrap();
    assert!(
        last.starts_with("3 images, ") && last.contains("tree") && !last.contains("skipped"),
        "{}",
        ran.stderr
    );
    // Folders can be left out, which is reported.
    let out = place.path("flat");
    let ran = place.upscale(&data, &out, &["--no-recursive"]).ok();
    assert!(
        ran.stderr.contains("1 folder left out: within") && ran.stderr.contains("--no-recursive"),
        "{}",
        ran.stderr
    );
    assert_eq!(names(&out), ["a.png"]);
    // Results within the folder are not used as images by the next command. `--recursive` is still
    // accepted.
    let out = data.join("deep/results");
    for more in [&["--recursive"][..], &[]] {
        place.upscale(&data, &out, more).ok();
        assert_eq!(names(&out), ["a.png", "deep/a.png", "deep/er/b.png"]);
    }
    assert!(
        place
            .upscale(&data, &out, &[])
            .ok()
            .stderr
            .contains("where the results go")
    );
    let empty = place.path("empty");
    fs::create_dir_all(empty.join("inner")).unwrap();
    place
        .upscale(&empty, &place.path("none"), &[])
        .refused(1, &["no images"]);
}

#[test]
fn pictures_that_differ_in_their_endings_alone_have_results_of_their_own() {
    let place = Place::new();
    let (data, out) = (place.path("data"), place.path("out"));
    fs::create_dir(&data).unwrap();
    for (i, name) in ["a.png", "a.bmp", "b.tif", "b.webp"].iter().enumerate() {
        picture(20 + i as u32, 20, i as u64)
            .save(data.join(name))
            .unwrap();
    }
    let ran = place.upscale(&data, &out, &["--format", "png"]).ok();
    assert_eq!(names(&out), ["a.png", "a_bmp.png", "b.png", "b_webp.png"]);
    for said in [
        "a.bmp: its result is a_bmp.png",
        "b.webp: its result is b_webp.png",
    ] {
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
    assert_eq!(
        image::image_dimensions(out.join("a.png")).unwrap(),
        (40, 40)
    );
    assert_eq!(
        image::image_dimensions(out.join("a_bmp.png")).unwrap(),
        (42, 40)
    );
    place.upscale(&data, &out, &["--format", "webp"]).ok();
    assert!(out.join("b.webp").exists() && out.join("b_tif.webp").exists());
}

#[test]
fn alpha_is_enlarged_where_the_output_holds_it_and_other_changes_are_said() {
    let place = Place::new();
    let alpha_of = |x: u32, y: u32| (x * 5 + y * 3) as u8;
    let rgb = picture(70, 50, 3);
    let rgba = RgbaImage::from_fn(70, 50, |x, y| {
        let Rgb([r, g, b]) = *rgb.get_pixel(x, y);
        Rgba([r, g, b, alpha_of(x, y)])
    });
    let alpha = GrayImage::from_fn(70, 50, |x, y| image::Luma([alpha_of(x, y)]));
    let wanted = Resampler::new().upscale_plane(&alpha, 2).unwrap();
    let (plain, input) = (place.path("plain.png"), place.path("alpha.png"));
    rgb.save(&plain).unwrap();
    rgba.save(&input).unwrap();
    place
        .upscale(&plain, &place.path("plain_out.png"), &[])
        .ok();
    let colours = image::open(place.path("plain_out.png"))
        .unwrap()
        .into_rgb8();
    for (name, more) in [
        ("o.png", &["--tile", "33"][..]),
        ("o.png", &[]),
        ("o.webp", &["--tile", "40"]),
        ("o.tif", &[]),
    ] {
        let out = place.path(name);
        let ran = place.upscale(&input, &out, more).ok();
        assert!(!ran.stderr.contains("alpha channel"), "{}", ran.stderr);
        let DynamicImage::ImageRgba8(found) = image::open(&out).unwrap() else {
            panic!("{name} has no alpha")
        };
        let seen = RgbImage::from_fn(140, 100, |x, y| {
            Rgb([0, 1, 2].map(|c| found.get_pixel(x, y).0[c]))
        });
        assert!(seen == colours, "{name}");
        assert!(
            found
                .pixels()
                .zip(wanted.pixels())
                .all(|(p, a)| p.0[3] == a.0[0]),
            "{name}"
        );
    }
    for name in ["o.jpg", "o.bmp"] {
        let ran = place.upscale(&input, &place.path(name), &[]).ok();
        assert!(
            ran.stderr.contains("alpha.png: alpha channel dropped")
                && ran.stderr.contains("png, webp and tiff"),
            "{}",
            ran.stderr
        );
    }
    // 16-bit grey with alpha in another format; one line reports all other changes.
    let deep: GrayAlphaImage =
        GrayAlphaImage::from_fn(40, 30, |x, y| LumaA([(x * 6) as u8, (y * 8) as u8]));
    let deep: ImageBuffer<LumaA<u16>, Vec<u16>> =
        DynamicImage::ImageLumaA8(deep).into_luma_alpha16();
    let input = place.path("deep.png");
    deep.save(&input).unwrap();
    let out = place.path("deep_out.png");
    let ran = place.upscale(&input, &out, &[]).ok();
    assert!(
        ran.stderr.contains("deep.png: ")
            && !ran.stderr.contains("16 bits")
            && ran.stderr.contains("grey"),
        "{}",
        ran.stderr
    );
    let wanted = Resampler::new()
        .upscale_plane(
            &GrayImage::from_fn(40, 30, |_, y| image::Luma([(y * 8) as u8])),
            2,
        )
        .unwrap();
    let DynamicImage::ImageRgba16(found) = image::open(&out).unwrap() else {
        panic!("the result has other channels")
    };
    // the filter works on 16 bits here and on 8 there
    let far = |(p, a): (&Rgba<u16>, &image::Luma<u8>)| p.0[3].abs_diff(u16::from(a.0[0]) * 257);
    let far = found.pixels().zip(wanted.pixels()).map(far).max().unwrap();
    assert!(far <= 257, "{far}");
    let webp = place.path("in.webp");
    RgbaImage::from_pixel(24, 24, Rgba([9, 8, 7, 77]))
        .save(&webp)
        .unwrap();
    place.upscale(&webp, &out, &[]).ok();
    assert!(
        image::open(&out)
            .unwrap()
            .into_rgba8()
            .pixels()
            .all(|p| p.0[3] == 77)
    );
}

/// A gradient of 16 bits is finer after upscaling than 8 bits can be, in every tile size; rounded to
/// 8 bits it is the image that the same network makes of 8 bits.
#[test]
fn sixteen_bits_are_kept_where_the_output_holds_them() {
    let place = Place::new();
    let plain = picture(70, 50, 3);
    let plain_path = place.path("plain.png");
    plain.save(&plain_path).unwrap();
    let wanted = place.path("plain_out.png");
    place.upscale(&plain_path, &wanted, &[]).ok();
    let wanted = image::open(&wanted).unwrap().into_rgb8();
    let alpha_of = |x: u32, y: u32| (x * 700 + y * 310) as u16;
    let deep = ImageBuffer::from_fn(70, 50, |x, y| {
        let [r, g, b] = plain.get_pixel(x, y).0.map(|v| u16::from(v) * 257);
        Rgba([r, g, b, alpha_of(x, y)])
    });
    let input = place.path("deep.png");
    deep.save(&input).unwrap();
    let tiff = place.path("deep.tiff");
    deep.save(&tiff).unwrap();
    let mut first: Option<Vec<u16>> = None;
    for (input, name, more) in [
        (&input, "o.png", &["--tile", "33"][..]),
        (&input, "o.tiff", &["--tile", "40"]),
        (&tiff, "o.png", &["--tile", "36"]),
        (&input, "o.png", &[]),
    ] {
        let out = place.path(name);
        let (ran, json) = place.json(input, &out, more);
        assert!(!ran.stderr.contains("16 bits"), "{}", ran.stderr);
        assert_eq!(json["pictures"][0]["bits"].as_u64(), Some(16));
        let DynamicImage::ImageRgba16(found) = image::open(&out).unwrap() else {
            panic!("{name} has not 16 bits and alpha")
        };
        for (p, q) in found.pixels().zip(wanted.pixels()) {
            for c in 0..3 {
                let far = p.0[c].abs_diff(u16::from(q.0[c]) * 257);
                assert!(far <= 129, "{name}: {p:?} {q:?}");
            }
        }
        let fine = found.as_raw().iter().filter(|&&v| v % 257 != 0).count();
        assert!(fine > found.as_raw().len() / 2, "{name}: {fine} values");
        let raw = found.into_raw();
        assert!(*first.get_or_insert(raw.clone()) == raw, "{name} {more:?}");
    }
    // colours alone, and a format that cannot hold them
    let rgb = ImageBuffer::from_fn(70, 50, |x, y| {
        let [r, g, b, _] = deep.get_pixel(x, y).0;
        Rgb([r, g, b])
    });
    let input = place.path("rgb.png");
    rgb.save(&input).unwrap();
    let out = place.path("o.png");
    place.upscale(&input, &out, &[]).ok();
    assert!(matches!(
        image::open(&out).unwrap(),
        DynamicImage::ImageRgb16(_)
    ));
    let ran = place.upscale(&input, &place.path("o.webp"), &[]).ok();
    assert!(
        ran.stderr
            .contains("16 bits rounded to 8, since the output's format has no more"),
        "{}",
        ran.stderr
    );
}

#[test]
fn sizes_that_the_output_cannot_hold_are_refused_before_the_work() {
    let place = Place::new();
    for (name, size, to, words) in [
        ("wide.png", (8_192, 20), "out.webp", ["16384x40", "16383"]),
        ("high.png", (20, 33_000), "out.jpg", ["40x66000", "65535"]),
        ("area.png", (19_000, 10_000), "out.bmp", ["38000x20000", ""]),
    ] {
        let (input, out) = (place.path(name), place.path(to));
        level_png(&input, size.0, size.1);
        // The result of the last has 2.1 GiB, which BMP allows; the budget refuses it because of
        // the header.
        let (more, words) = if to == "out.bmp" {
            (&["--host-memory", "30M"][..], ["allows 30.0 MiB", "--tile"])
        } else {
            (&[][..], words)
        };
        place
            .upscale(&input, &out, more)
            .refused(1, &[&[name], &words[..]].concat());
        assert!(!out.exists());
    }
}

#[test]
fn outputs_may_be_devices_fifos_and_links_but_never_the_input() {
    let place = Place::new();
    let input = place.path("in.png");
    picture(24, 20, 1).save(&input).unwrap();
    let whole = fs::read(&input).unwrap();
    let out = place.path("out.png");
    place.upscale(&input, &out, &[]).ok();
    let expected = image::open(&out).unwrap().into_rgb8();
    // stdout is a pipe here, and cannot seek
    for format in ["png", "webp"] {
        let ran = place
            .command(&input, Path::new("/dev/stdout"), &["--format", format])
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        assert!(
            image::load_from_memory(&ran.stdout).unwrap().into_rgb8() == expected,
            "{format}"
        );
    }
    place
        .upscale(&input, Path::new("/dev/stdout"), &[])
        .refused(1, &["/dev/stdout", "--format"]);
    place
        .upscale(&input, Path::new("/dev/stdout"), &["--format", "tiff"])
        .refused(1, &["/dev/stdout", "no regular file", "png"]);
    place
        .upscale(
            &input,
            Path::new("/dev/stdout"),
            &["--format", "png", "--json"],
        )
        .refused(1, &["--json"]);
    place
        .upscale(&input, &out, &["--format", "jpg"])
        .refused(1, &["out.png", "--format"]);
    place
        .upscale(&input, Path::new("/dev/full"), &["--format", "png"])
        .refused(1, &["/dev/full", "No space", "free some room"]);
    let fifo = place.path("fifo.png");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    place.upscale(&input, &fifo, &[]).ok();
    assert!(
        image::load_from_memory(&reader.join().unwrap())
            .unwrap()
            .into_rgb8()
            == expected
    );
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    place
        .upscale(&fifo, &out, &[])
        .refused(1, &["fifo.png", "neither a file nor a folder"]);
    // Links: to a file that is replaced, to the input, to the folder of the input.
    let (link, target) = (place.path("link.png"), place.path("target.png"));
    fs::write(&target, "older").unwrap();
    symlink("target.png", &link).unwrap();
    place.upscale(&input, &link, &[]).ok();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(image::open(&target).unwrap().into_rgb8() == expected);
    let back = place.path("back.png");
    symlink("in.png", &back).unwrap();
    place
        .upscale(&input, &back, &[])
        .refused(1, &["in.png", "overwritten"]);
    let (data, results) = (place.path("data"), place.path("results"));
    fs::create_dir(&data).unwrap();
    fs::create_dir(&results).unwrap();
    fs::copy(&input, data.join("a.png")).unwrap();
    fs::copy(&input, data.join("b.png")).unwrap();
    symlink("../data/b.png", results.join("a.png")).unwrap();
    place
        .upscale(&data, &results, &[])
        .refused(1, &["1 of 2", "a.png", "would overwrite"]);
    assert!(fs::read(data.join("b.png")).unwrap() == whole && fs::read(&input).unwrap() == whole);
    symlink("data", place.path("data_link")).unwrap();
    place
        .upscale(&data, &place.path("data_link"), &[])
        .refused(1, &["would overwrite"]);
}

#[test]
fn errors_of_the_system_end_the_work_and_say_what_to_try() {
    let place = Place::new();
    let (data, out) = (place.path("data"), place.path("out"));
    fs::create_dir(&data).unwrap();
    for i in 0..3 {
        picture(60, 60, i)
            .save(data.join(format!("p{i}.png")))
            .unwrap();
    }
    let ran: Ran = limit_files(&mut place.command(&data, &out, &[]), 2000)
        .output()
        .unwrap()
        .into();
    ran.refused(
        1,
        &[
            "cannot write",
            "p0.png",
            "free some room",
            "0 of 3",
            "2 were not tried",
        ],
    );
    assert!(names(&out).is_empty());
    // One image without read permission does not stop the others; root may read everything.
    fs::set_permissions(data.join("p1.png"), fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(data.join("p1.png")).is_err() {
        place
            .upscale(&data, &out, &[])
            .refused(1, &["1 of 3", "p1.png", "Permission denied"]);
        assert_eq!(names(&out), ["p0.png", "p2.png"]);
    }
    place
        .upscale(&data.join("p0.png"), &place.path("no/where.png"), &[])
        .refused(1, &["no/where.png", "create it"]);
}
