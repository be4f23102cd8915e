//! The command `paragon upscale` with networks of window attention: Photo is exact in tiles, and Pro
//! in stages, unless approximate tiles are asked for by name.

use crate::{cli_common, shard_common};

use cli_common::{Ran, run, text};
use paragon::model::{Network, write_model};
use shard_common::picture;
use std::path::{Path, PathBuf};

/// A network with small windows, so that tiles are small too, written to a file.
fn small_windows(dir: &Path, name: &str) -> PathBuf {
    let mut net = Network::new(name, 2).unwrap();
    net.set("window_size", 2).unwrap();
    net.set("layer_scale", 0.1).unwrap();
    net.set("detail_gain", 1.0).unwrap();
    let path = dir.join(format!("{name}.safetensors"));
    write_model(&path, &net, &net.params().start_values(3), None).unwrap();
    path
}

#[test]
fn a_network_that_looks_at_the_whole_image_is_cut_into_tiles_by_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let (small, large, out) = (
        dir.path().join("small.png"),
        dir.path().join("large.png"),
        dir.path().join("out.png"),
    );
    picture(24, 27, 1).save(&small).unwrap();
    picture(1500, 1500, 2).save(&large).unwrap();
    let pro = small_windows(dir.path(), "pro");
    let upscale = |input: &Path, more: &[&str]| -> Ran {
        let base = ["upscale", text(input), text(&out), "--model", text(&pro)];
        run(&[&base[..], more].concat())
    };

    upscale(&large, &["--host-memory", "30M"]).refused(
        1,
        &["--host-memory allows 30.0 MiB", "give a smaller --tile"],
    );
    assert!(!out.exists());
    let result = |ran: Ran| (ran.ok().stderr, image::open(&out).unwrap().into_rgb8());
    let (said, whole) = result(upscale(&small, &[]));
    assert!(!said.contains("approximate"), "{said}");
    let (said, tiles) = result(upscale(&small, &["--approximate-tiles", "--tile", "22"]));
    assert!(
        said.contains("the result differs from that of the whole image"),
        "{said}"
    );
    assert_eq!(tiles.dimensions(), (48, 54));
    assert!(tiles != whole);
    // not far from it
    let difference = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b));
    let sum: u64 = tiles.iter().zip(whole.iter()).map(difference).sum();
    assert!(sum < 8 * whole.len() as u64, "{sum}");
}

#[test]
fn approximate_tiles_have_no_effect_where_tiles_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in.png"), dir.path().join("out.png"));
    picture(9, 8, 1).save(&input).unwrap();
    let photo = small_windows(dir.path(), "photo");
    let base = ["upscale", text(&input), text(&out), "--model", text(&photo)];
    let said = run(&[&base[..], &["--approximate-tiles"]].concat())
        .ok()
        .stderr;
    assert!(said.contains("--approximate-tiles has no effect"), "{said}");
    run(&[&base[..], &["--tile", "42"]].concat()).refused(1, &["smaller than 43", "--tile"]);
}

#[test]
fn a_network_that_looks_at_the_whole_image_is_computed_in_stages_where_memory_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("in.png"), dir.path().join("out.png"));
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    picture(64, 48, 1).save(&input).unwrap();
    let pro = small_windows(dir.path(), "pro");
    let upscale = |more: &[&str]| -> Ran {
        let base = ["upscale", text(&input), text(&out), "--model", text(&pro)];
        run(&[&base[..], &["--scratch", text(&scratch)], more].concat())
    };
    let result = |ran: Ran| (ran.ok().stderr, image::open(&out).unwrap().into_rgb8());
    let (said, whole) = result(upscale(&[]));
    assert!(!said.contains("stages"), "{said}");
    let (_, stages) = result(upscale(&["--tile", "32"]));
    assert!(stages == whole);
    // a large one needs files, which must find a place
    let large = dir.path().join("large.png");
    picture(1500, 1500, 2).save(&large).unwrap();
    let elsewhere = ["--host-memory", "600M", "--scratch", "/proc"];
    let base = ["upscale", text(&large), text(&out), "--model", text(&pro)];
    if cfg!(target_os = "linux") {
        run(&[&base[..], &elsewhere].concat())
            .refused(1, &["computed in stages with the same result", "--scratch"]);
    }
    let left = std::fs::read_dir(&scratch).unwrap().count();
    assert_eq!(left, 0, "temporary files");
}
