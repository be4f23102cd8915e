//! PSNR, SSIM and the bicubic enlargement against figures computed with Pillow and NumPy on Set5.

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
                let p = psnr(&up, &hr, crop, channels).unwrap();
                let s = ssim(&up, &hr, crop, channels).unwrap();
                println!("{name} crop {crop} {channels:?}: {:+.5} dB, {:+.7}", p - wanted("psnr"), s - wanted("ssim"));
                assert!((p - wanted("psnr")).abs() < 0.01, "{name}: PSNR {p}, expected {}", wanted("psnr"));
                assert!((s - wanted("ssim")).abs() < 1e-4, "{name}: SSIM {s}, expected {}", wanted("ssim"));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 20);
}
