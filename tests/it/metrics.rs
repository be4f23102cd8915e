//! PSNR, SSIM and bicubic upscaling against figures computed with Pillow and NumPy on Set5. The
//! figures are in `tests/data`; the images are reference data outside the repository.

use crate::common::place;

use paragon::dataset::decode::{Limits, decode};
use paragon::dataset::degrade::upscale_bicubic;
use paragon::inference::metrics::{Channels, psnr, ssim};
use place::reference;

#[test]
fn bicubic_on_set5_scores_as_with_pillow() {
    let test = "bicubic_on_set5_scores_as_with_pillow";
    let figures = reference(test, "golden/metrics_set5_pillow_bicubic_x2.json")
        .expect("a file of tests/data");
    let Some(set5) = reference(test, "datasets/set5") else {
        return;
    };
    let text = std::fs::read_to_string(figures).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let read = |folder: &str, name: &str| {
        decode(&set5.join(folder).join(name), &Limits::default())
            .unwrap()
            .image
    };
    let mut compared = 0;
    for (name, figures) in golden
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| name.ends_with(".png"))
    {
        let (lq, hr) = (read("lr_x2", name), read("hr", name));
        let up = upscale_bicubic(&lq, 2).unwrap();
        let hr = image::imageops::crop_imm(&hr, 0, 0, up.width(), up.height()).to_image();
        for crop in [2, 4] {
            for (channels, suffix) in [(Channels::Rgb, ""), (Channels::Y, "_y")] {
                let wanted = |metric: &str| {
                    figures[format!("{metric}_crop{crop}{suffix}")]
                        .as_f64()
                        .unwrap()
                };
                let p = psnr(&up, &hr, crop, channels).unwrap();
                let s = ssim(&up, &hr, crop, channels).unwrap();
                println!(
                    "{name} crop {crop} {channels:?}: {:+.5} dB, {:+.7}",
                    p - wanted("psnr"),
                    s - wanted("ssim")
                );
                assert!(
                    (p - wanted("psnr")).abs() < 0.01,
                    "{name}: PSNR {p}, expected {}",
                    wanted("psnr")
                );
                assert!(
                    (s - wanted("ssim")).abs() < 1e-4,
                    "{name}: SSIM {s}, expected {}",
                    wanted("ssim")
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 20);
}

/// Published PSNR-Y of bicubic x2 on Set5 (MATLAB): baby 37.07, bird 36.81, butterfly 27.43, head
/// 34.86, woman 32.14.
#[test]
fn luma_psnr_agrees_with_the_literature() {
    let Some(set5) = reference("luma_psnr_agrees_with_the_literature", "datasets/set5") else {
        return;
    };
    let published = [37.07, 36.81, 27.43, 34.86, 32.14];
    for (i, published) in published.into_iter().enumerate() {
        let read = |folder: &str| {
            decode(
                &set5.join(format!("{folder}/img_00{}.png", i + 1)),
                &Limits::default(),
            )
            .unwrap()
            .image
        };
        let up = upscale_bicubic(&read("lr_x2"), 2).unwrap();
        let hr = image::imageops::crop_imm(&read("hr"), 0, 0, up.width(), up.height()).to_image();
        let found = psnr(&up, &hr, 2, Channels::Y).unwrap();
        println!("image {}: {found:.2} dB, published {published}", i + 1);
        assert!((found - published).abs() < 0.06, "image {}: {found}", i + 1);
    }
}
