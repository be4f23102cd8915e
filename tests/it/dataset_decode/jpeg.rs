//! JPEGs with missing data, and complete JPEGs that look as if data were missing. The images in
//! `tests/images` were made with cjpeg: progressive, with restart markers, and with a scan for each
//! colour plane.

use super::{Folder, encode, with_segment};
use image::{DynamicImage, ImageFormat, Luma, Rgb, RgbImage};

const PROGRESSIVE: &[u8] = include_bytes!("../../images/progressive.jpg");
const RESTART: &[u8] = include_bytes!("../../images/restart.jpg");
const BOTH: &[u8] = include_bytes!("../../images/progressive_restart.jpg");
const SEPARATE: &[u8] = include_bytes!("../../images/separate.jpg");

/// One file for each way to code blocks and to separate them (restart markers, scans).
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let drawn = RgbImage::from_fn(70, 50, |x, y| {
        let wave = 128.0 + 100.0 * (f64::from(x) * 0.4).sin() * (f64::from(y) * 0.3).cos();
        Rgb([
            wave as u8,
            if (x / 9 + y / 7) % 2 == 1 {
                (x * 3 + y * 2) as u8
            } else {
                90
            },
            (x + y) as u8,
        ])
    });
    let grey = image::ImageBuffer::from_fn(33, 40, |x, y| Luma([(x * 5 + y * y / 9) as u8]));
    vec![
        (
            "baseline",
            encode(&DynamicImage::ImageRgb8(drawn), ImageFormat::Jpeg),
        ),
        (
            "grey",
            encode(&DynamicImage::ImageLuma8(grey), ImageFormat::Jpeg),
        ),
        ("progressive", PROGRESSIVE.to_vec()),
        ("restart", RESTART.to_vec()),
        ("both", BOTH.to_vec()),
        ("separate", SEPARATE.to_vec()),
    ]
}

/// Offset of the data of the first scan.
fn data(jpeg: &[u8]) -> usize {
    let scan = jpeg.windows(2).position(|w| w == [0xFF, 0xDA]).unwrap();
    scan + 2 + usize::from(u16::from_be_bytes([jpeg[scan + 2], jpeg[scan + 3]]))
}

#[test]
fn a_jpeg_that_is_cut_is_refused_though_it_has_an_end_marker() {
    let folder = Folder::new();
    for (name, jpeg) in files() {
        let whole = folder.decode("whole.jpg", &jpeg).unwrap().image;
        let mut refused = 0;
        for length in data(&jpeg)..jpeg.len() - 2 {
            let cut = [&jpeg[..length], &[0xFF, 0xD9]].concat();
            match folder.decode("cut.jpg", &cut) {
                Ok(found) => {
                    // Without the last byte or two a block may still be whole: they may contain
                    // only padding.
                    assert!(
                        found.image == whole && length + 4 > jpeg.len() - 2,
                        "{name} cut to {length} of {} bytes",
                        jpeg.len()
                    );
                }
                Err(e) => {
                    let text = format!("{e:#}");
                    assert!(
                        text.contains("cut.jpg") && text.contains("the JPEG data are damaged"),
                        "{name}: {text}"
                    );
                    refused += 1;
                }
            }
        }
        assert!(refused + 4 > jpeg.len() - 2 - data(&jpeg), "{name}");
    }
}

#[test]
fn a_jpeg_that_lacks_bytes_in_the_middle_is_refused() {
    let folder = Folder::new();
    for (name, jpeg) in files() {
        let whole = folder.decode("whole.jpg", &jpeg).unwrap().image;
        let end = jpeg.len() - 2;
        // Half of the following data is lost. If less were lost, the rest could by chance decode to
        // the original number of blocks.
        for at in (data(&jpeg)..end - 200).step_by(7) {
            let lost = (end - at) / 2;
            let removed = [&jpeg[..at], &jpeg[at + lost..]].concat();
            let mut zeroed = jpeg.clone();
            zeroed[at..at + lost].fill(0);
            for (what, damaged) in [("removed", removed), ("zeroed", zeroed)] {
                let found = folder.decode("damaged.jpg", &damaged);
                assert!(
                    found.is_err() || found.is_ok_and(|found| found.image == whole),
                    "{name}: {lost} bytes {what} at {at}"
                );
            }
        }
    }
}

#[test]
fn a_missing_restart_marker_is_refused() {
    let folder = Folder::new();
    for jpeg in [RESTART, BOTH] {
        let places: Vec<usize> = (data(jpeg)..jpeg.len() - 1)
            .filter(|&i| jpeg[i] == 0xFF && matches!(jpeg[i + 1], 0xD0..=0xD7))
            .collect();
        assert!(places.len() > 3);
        for at in places {
            let without = [&jpeg[..at], &jpeg[at + 2..]].concat();
            let text = folder.error("gap.jpg", &without);
            assert!(text.contains("the JPEG data are damaged"), "{text}");
            let mut other = jpeg.to_vec();
            other[at + 1] = 0xD0 + (other[at + 1] + 1) % 8;
            assert!(
                folder
                    .error("order.jpg", &other)
                    .contains("the restart marker")
            );
        }
    }
}

#[test]
fn a_progressive_jpeg_without_its_last_scans_is_refused() {
    let folder = Folder::new();
    for jpeg in [PROGRESSIVE, BOTH, SEPARATE] {
        let scans: Vec<usize> = jpeg
            .windows(2)
            .enumerate()
            .filter(|(_, w)| *w == [0xFF, 0xDA])
            .map(|(i, _)| i)
            .collect();
        assert!(scans.len() >= 3);
        for &at in &scans[1..] {
            let text = folder.error("few.jpg", &[&jpeg[..at], &[0xFF, 0xD9]].concat());
            assert!(
                text.contains("the JPEG data are damaged") && text.contains("colour plane"),
                "{text}"
            );
        }
    }
}

#[test]
fn what_does_no_harm_in_a_jpeg_is_accepted() {
    let folder = Folder::new();
    for (name, jpeg) in files() {
        let whole = folder.decode("whole.jpg", &jpeg).unwrap().image;
        let end = jpeg.len() - 2;
        let tables = jpeg.windows(2).position(|w| w == [0xFF, 0xDB]).unwrap();
        let thumbnail = [b"Exif\0\0".as_slice(), &SEPARATE[..800]].concat();
        let harmless = [
            ("no end marker", jpeg[..end].to_vec()),
            ("half an end marker", jpeg[..=end].to_vec()),
            (
                "trailing bytes",
                [&jpeg, b"trailing bytes".as_slice()].concat(),
            ),
            ("a second image", [&jpeg, PROGRESSIVE].concat()),
            ("half a second image", [&jpeg, &PROGRESSIVE[..900]].concat()),
            (
                "fill bytes",
                [&jpeg[..end], &[0xFF; 9], &jpeg[end..]].concat(),
            ),
            ("zeros", [&jpeg[..end], &[0; 40], &jpeg[end..]].concat()),
            (
                "stray bytes in the header",
                [&jpeg[..tables], &[7, 9], &jpeg[tables..]].concat(),
            ),
            ("a thumbnail", with_segment(&jpeg, 0xE1, &thumbnail)),
        ];
        for (what, bytes) in harmless {
            let found = folder.decode("odd.jpg", &bytes);
            assert!(found.is_ok_and(|f| f.image == whole), "{name}: {what}");
        }
    }
}
