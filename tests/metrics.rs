//! PSNR, SSIM and the bicubic enlargement against figures computed with Pillow and NumPy on Set5.
//!
//! The reference file's luma columns were computed with red and blue exchanged: its "Y" of the first picture is 37.088 dB,
//! while BT.601 on RGB gives 37.078 (also in NumPy), which is what papers report (37.07). Our `Channels::Y` is the right
//! one, so here the pictures are handed over with red and blue exchanged to compare the same numbers.

use image::RgbImage;
use paragon::dataset::decode::{Limits, decode};
use paragon::dataset::degrade::upscale_bicubic;
use paragon::metrics::{Channels, psnr, ssim};
use std::path::{Path, PathBuf};

/// The folder with reference data, or nothing with a word on why the test is skipped.
fn shared(test: &str) -> Option<PathBuf> {
    let given = std::env::var_os("PARAGON_SHARED").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    if folder.join("golden").is_dir() && folder.join("datasets/set5").is_dir() {
        return Some(folder);
    }
    println!("SKIP {test}: no reference data in {}", folder.display());
    None
}

/// Red and blue exchanged.
fn swapped(image: &RgbImage) -> RgbImage {
    let mut image = image.clone();
    image.pixels_mut().for_each(|p| p.0.reverse());
    image
}

#[test]
fn bicubic_on_set5_scores_as_with_pillow() {
    let Some(shared) = shared("bicubic_on_set5_scores_as_with_pillow") else { return };
    let text = std::fs::read_to_string(shared.join("golden/metrics_set5_bicubic_x2.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let read = |folder: &str, name: &str| decode(&shared.join("datasets/set5").join(folder).join(name), &Limits::default()).unwrap().image;
    let mut compared = 0;
    for (name, figures) in golden.as_object().unwrap().iter().filter(|(name, _)| name.ends_with(".png")) {
        let (lq, hr) = (read("lr_x2", name), read("hr", name));
        let up = upscale_bicubic(&lq, 2).unwrap();
        let hr = image::imageops::crop_imm(&hr, 0, 0, up.width(), up.height()).to_image();
        for crop in [2, 4] {
            for (channels, suffix) in [(Channels::Rgb, ""), (Channels::Y, "_y")] {
                let wanted = |metric: &str| figures[format!("{metric}_crop{crop}{suffix}")].as_f64().unwrap();
                let (x, y) = if channels == Channels::Y { (swapped(&up), swapped(&hr)) } else { (up.clone(), hr.clone()) };
                let p = psnr(&x, &y, crop, channels).unwrap();
                let s = ssim(&x, &y, crop, channels).unwrap();
                println!("{name} crop {crop} {channels:?}: {:+.5} dB, {:+.7}", p - wanted("psnr"), s - wanted("ssim"));
                assert!((p - wanted("psnr")).abs() < 0.01, "{name}: PSNR {p}, expected {}", wanted("psnr"));
                assert!((s - wanted("ssim")).abs() < 1e-4, "{name}: SSIM {s}, expected {}", wanted("ssim"));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 20);
}

/// Published PSNR-Y of bicubic x2 on Set5 (MATLAB): baby 37.07, bird 36.81, butterfly 27.43, head 34.86, woman 32.14.
#[test]
fn luma_psnr_agrees_with_the_literature() {
    let Some(shared) = shared("luma_psnr_agrees_with_the_literature") else { return };
    let published = [37.07, 36.81, 27.43, 34.86, 32.14];
    for (i, published) in published.into_iter().enumerate() {
        let read =
            |folder: &str| decode(&shared.join(format!("datasets/set5/{folder}/img_00{}.png", i + 1)), &Limits::default()).unwrap().image;
        let up = upscale_bicubic(&read("lr_x2"), 2).unwrap();
        let hr = image::imageops::crop_imm(&read("hr"), 0, 0, up.width(), up.height()).to_image();
        let found = psnr(&up, &hr, 2, Channels::Y).unwrap();
        println!("picture {}: {found:.2} dB, published {published}", i + 1);
        assert!((found - published).abs() < 0.06, "picture {}: {found}", i + 1);
    }
}
