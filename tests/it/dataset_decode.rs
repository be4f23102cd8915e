//! Decoding: every kind of file that is read, and every kind of damage, which must give an error
//! and no panic. The test makes all files itself.

mod colour;
mod jpeg;
mod metadata;

use image::{
    DynamicImage, ImageBuffer, ImageEncoder, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba,
};
use paragon::dataset::decode::{Decoded, Limits, Note, decode, decode_with_alpha, probe};
use proptest::prelude::*;
use std::io::Cursor;
use std::path::PathBuf;
use tempfile::TempDir;

fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 9) as u8, (y * 11) as u8, (x * 3 + y * 5) as u8])
    })
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn decode(&self, name: &str, bytes: &[u8]) -> anyhow::Result<Decoded> {
        decode(&self.file(name, bytes), &Limits::default())
    }

    /// The text of the error, after a check that it names the file.
    fn error(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.file(name, bytes);
        let text = format!("{:#}", decode(&path, &Limits::default()).unwrap_err());
        assert!(text.contains(name), "{text}");
        text
    }
}

const LOSSLESS: [ImageFormat; 4] = [
    ImageFormat::Png,
    ImageFormat::WebP,
    ImageFormat::Tiff,
    ImageFormat::Bmp,
];

#[test]
fn every_format_is_told_by_its_content() {
    let folder = Folder::new();
    let image = pattern(21, 13);
    for format in LOSSLESS {
        let found = folder
            .decode(
                "misnamed.jpg",
                &encode(&DynamicImage::ImageRgb8(image.clone()), format),
            )
            .unwrap();
        assert!(
            found.image == image && found.notes.is_empty(),
            "{format:?}: {:?}",
            found.notes
        );
        assert_eq!(
            probe(&folder.0.path().join("misnamed.jpg"), &Limits::default()).unwrap(),
            (21, 13),
            "{format:?}"
        );
    }
    let smooth = RgbImage::from_fn(32, 24, |x, y| Rgb([100 + x as u8, 100 + y as u8, 128]));
    let path = folder.file(
        "photo.png",
        &encode(&DynamicImage::ImageRgb8(smooth.clone()), ImageFormat::Jpeg),
    );
    let found = decode(&path, &Limits::default()).unwrap();
    assert!(
        found
            .image
            .as_raw()
            .iter()
            .zip(smooth.as_raw())
            .all(|(a, b)| a.abs_diff(*b) < 12)
            && found.notes.is_empty()
    );
    assert_eq!(probe(&path, &Limits::default()).unwrap(), (32, 24));
}

#[test]
fn sixteen_bits_are_rounded() {
    let values = [0u16, 128, 129, 32767, 32768, 65406, 65407, 65535];
    let image = ImageBuffer::from_fn(8, 2, |x, y| {
        Rgb([
            values[x as usize],
            values[7 - x as usize],
            257 * (y as u16 + 3),
        ])
    });
    let folder = Folder::new();
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let found = folder
            .decode(
                "deep",
                &encode(&DynamicImage::ImageRgb16(image.clone()), format),
            )
            .unwrap();
        assert_eq!(found.notes, [Note::SixteenBit]);
        let reds: Vec<u8> = (0..8).map(|x| found.image.get_pixel(x, 0).0[0]).collect();
        assert_eq!(
            reds,
            values.map(|v| (f64::from(v) * 255.0 / 65535.0).round() as u8),
            "{format:?}"
        );
        assert_eq!(found.image.get_pixel(4, 1).0, [128, 127, 4]);
    }
}

#[test]
fn grey_is_repeated_and_alpha_dropped() {
    let folder = Folder::new();
    let grey = ImageBuffer::from_fn(5, 4, |x, y| Luma([(x * 40 + y) as u8]));
    let grey_alpha = ImageBuffer::from_fn(5, 4, |x, y| LumaA([(x * 40 + y) as u8, 7]));
    let alpha = ImageBuffer::from_fn(5, 4, |x, y| {
        Rgba([x as u8, y as u8, 200, if x > 2 { 0 } else { 99 }])
    });
    let deep = ImageBuffer::from_fn(5, 4, |x, _| LumaA([x as u16 * 257, 9]));
    let png = |image: DynamicImage| {
        folder
            .decode("a.png", &encode(&image, ImageFormat::Png))
            .unwrap()
    };
    let found = png(DynamicImage::ImageLuma8(grey));
    assert_eq!(
        (found.notes, found.image.get_pixel(3, 2).0),
        (vec![Note::Grey], [122; 3])
    );
    let found = png(DynamicImage::ImageLumaA8(grey_alpha));
    assert_eq!(
        (found.notes, found.image.get_pixel(3, 2).0),
        (vec![Note::Alpha, Note::Grey], [122; 3])
    );
    let found = png(DynamicImage::ImageRgba8(alpha));
    assert_eq!(
        (found.notes, found.image.get_pixel(4, 3).0),
        (vec![Note::Alpha], [4, 3, 200])
    );
    let found = png(DynamicImage::ImageLumaA16(deep));
    assert_eq!(
        (found.notes, found.image.get_pixel(4, 0).0),
        (vec![Note::Alpha, Note::Grey, Note::SixteenBit], [4; 3])
    );
}

#[test]
fn alpha_is_given_beside_the_image_where_it_is_asked_for() {
    let folder = Folder::new();
    let alpha = ImageBuffer::from_fn(5, 4, |x, y| {
        Rgba([x as u8, y as u8, 200, (x * 30 + y) as u8])
    });
    let deep = ImageBuffer::from_fn(5, 4, |x, y| {
        LumaA([x as u16 * 257, (x * 30 + y) as u16 * 257 + 100])
    });
    for image in [
        DynamicImage::ImageRgba8(alpha),
        DynamicImage::ImageLumaA16(deep),
    ] {
        let path = folder.file("alpha.png", &encode(&image, ImageFormat::Png));
        let (found, plane) = decode_with_alpha(&path, &Limits::default()).unwrap();
        assert!(
            found.image == decode(&path, &Limits::default()).unwrap().image
                && found.notes.contains(&Note::Alpha)
        );
        let plane = plane.unwrap();
        assert!(
            plane
                .enumerate_pixels()
                .all(|(x, y, p)| p.0 == [(x * 30 + y) as u8])
                && plane.dimensions() == (5, 4)
        );
    }
    let path = folder.file(
        "plain.png",
        &encode(&DynamicImage::ImageRgb8(pattern(5, 4)), ImageFormat::Png),
    );
    assert!(
        decode_with_alpha(&path, &Limits::default())
            .unwrap()
            .1
            .is_none()
    );
}

/// Inserts a segment after the first two bytes of a JPEG.
fn with_segment(jpeg: &[u8], marker: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xFF, marker], &length, payload, &jpeg[2..]].concat()
}

fn exif(orientation: u16) -> Vec<u8> {
    let mut tiff = b"Exif\0\0II\x2A\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    tiff.extend(orientation.to_le_bytes());
    tiff.extend([0; 6]);
    tiff
}

#[test]
fn exif_orientation_is_applied() {
    // The stored pixels have a bright corner at the top left.
    let stored = RgbImage::from_fn(48, 32, |x, y| {
        if x < 16 && y < 16 {
            Rgb([250; 3])
        } else {
            Rgb([20; 3])
        }
    });
    let jpeg = encode(&DynamicImage::ImageRgb8(stored), ImageFormat::Jpeg);
    let folder = Folder::new();
    // (x, y) of the bright corner in the upright image, as shares of its size.
    let corners = [
        (1, 0, 0),
        (2, 1, 0),
        (3, 1, 1),
        (4, 0, 1),
        (5, 0, 0),
        (6, 1, 0),
        (7, 1, 1),
        (8, 0, 1),
    ];
    for (orientation, right, bottom) in corners {
        let path = folder.file("turned.jpg", &with_segment(&jpeg, 0xE1, &exif(orientation)));
        let found = decode(&path, &Limits::default()).unwrap();
        let size = if orientation >= 5 { (32, 48) } else { (48, 32) };
        assert_eq!(found.image.dimensions(), size, "orientation {orientation}");
        assert_eq!(probe(&path, &Limits::default()).unwrap(), size);
        let pixel = found
            .image
            .get_pixel((size.0 - 9) * right + 4, (size.1 - 9) * bottom + 4);
        assert!(pixel.0[0] > 200, "orientation {orientation}: {pixel:?}");
        let note = (orientation > 1).then_some(Note::Orientation(orientation as u8));
        assert_eq!(found.notes, note.into_iter().collect::<Vec<_>>());
    }
    let found = folder
        .decode("odd.jpg", &with_segment(&jpeg, 0xE1, &exif(77)))
        .unwrap();
    assert!(
        found.notes.is_empty() && found.image.width() == 48,
        "an impossible orientation must be ignored"
    );
}

fn png_with_profile(
    image: &[u8],
    size: (u32, u32),
    colour: image::ExtendedColorType,
    profile: Vec<u8>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(profile).unwrap();
    encoder.write_image(image, size.0, size.1, colour).unwrap();
    bytes
}

fn srgb_decode(v: f64) -> f64 {
    if v <= 0.04045 {
        v / 12.92
    } else {
        ((v + 0.055) / 1.055).powf(2.4)
    }
}

fn srgb_encode(v: f64) -> f64 {
    let v = v.clamp(0.0, 1.0);
    255.0
        * if v <= 0.0031308 {
            12.92 * v
        } else {
            1.055 * v.powf(1.0 / 2.4) - 0.055
        }
}

/// Display P3 to sRGB, by the matrix between their primaries (both have the curve of sRGB and the
/// white of D65).
fn p3_to_srgb(p: [u8; 3]) -> [f64; 3] {
    const M: [[f64; 3]; 3] = [
        [1.224_940, -0.224_940, 0.0],
        [-0.042_057, 1.042_057, 0.0],
        [-0.019_638, -0.078_636, 1.098_274],
    ];
    let linear = p.map(|v| srgb_decode(f64::from(v) / 255.0));
    M.map(|row| srgb_encode(row[0] * linear[0] + row[1] * linear[1] + row[2] * linear[2]))
}

#[test]
fn a_wide_profile_is_converted_and_reported() {
    let profile = moxcms::ColorProfile::new_display_p3().encode().unwrap();
    let image = RgbImage::from_fn(16, 16, |x, y| Rgb([60 + x as u8 * 8, 50 + y as u8 * 8, 90]));
    let folder = Folder::new();
    let png = png_with_profile(
        image.as_raw(),
        (16, 16),
        image::ExtendedColorType::Rgb8,
        profile.clone(),
    );
    let plain = encode(&DynamicImage::ImageRgb8(image.clone()), ImageFormat::Jpeg);
    let compressed = folder.decode("plain.jpg", &plain).unwrap().image;
    let jpeg = with_segment(
        &plain,
        0xE2,
        &[b"ICC_PROFILE\0\x01\x01".as_slice(), &profile].concat(),
    );
    for (name, bytes, source) in [("p3.png", png, &image), ("p3.jpg", jpeg, &compressed)] {
        let found = folder.decode(name, &bytes).unwrap();
        assert!(
            matches!(&found.notes[..], [Note::Profile(p)] if p.contains("P3")),
            "{name}: {:?}",
            found.notes
        );
        for (pixel, source) in found.image.pixels().zip(source.pixels()) {
            for (a, b) in pixel.0.iter().zip(p3_to_srgb(source.0)) {
                assert!(
                    (f64::from(*a) - b).abs() < 1.6,
                    "{name}: {source:?} became {pixel:?}, not {b}"
                );
            }
        }
    }
    // 16-bit values are converted before they are rounded to 8 bits.
    let deep: Vec<u16> = image.as_raw().iter().map(|&v| u16::from(v) * 257).collect();
    let png = png_with_profile(
        bytemuck::cast_slice(&deep),
        (16, 16),
        image::ExtendedColorType::Rgb16,
        profile,
    );
    let found = folder.decode("deep.png", &png).unwrap();
    assert!(
        matches!(&found.notes[..], [Note::SixteenBit, Note::Profile(_)]),
        "{:?}",
        found.notes
    );
    for (pixel, source) in found.image.pixels().zip(image.pixels()) {
        for (a, b) in pixel.0.iter().zip(p3_to_srgb(source.0)) {
            assert!(
                (f64::from(*a) - b).abs() < 1.1,
                "{source:?} became {pixel:?}, not {b}"
            );
        }
    }
}

#[test]
fn an_srgb_profile_changes_nothing() {
    let profile = moxcms::ColorProfile::new_srgb().encode().unwrap();
    let image = pattern(24, 24);
    let png = png_with_profile(
        image.as_raw(),
        (24, 24),
        image::ExtendedColorType::Rgb8,
        profile,
    );
    let found = Folder::new().decode("srgb.png", &png).unwrap();
    assert!(
        found.image == image && found.notes.is_empty(),
        "{:?}",
        found.notes
    );
}

#[test]
fn a_grey_profile_is_converted() {
    let profile = moxcms::ColorProfile::new_gray_with_gamma(1.0)
        .encode()
        .unwrap();
    let grey: Vec<u8> = (0..=255).collect();
    let png = png_with_profile(
        &grey,
        (16, 16),
        image::ExtendedColorType::L8,
        profile.clone(),
    );
    let found = Folder::new().decode("linear.png", &png).unwrap();
    assert!(
        matches!(&found.notes[..], [Note::Grey, Note::Profile(_)]),
        "{:?}",
        found.notes
    );
    for (i, pixel) in found.image.pixels().enumerate() {
        let wanted = srgb_encode(i as f64 / 255.0);
        assert!(
            pixel.0.iter().all(|v| (f64::from(*v) - wanted).abs() < 1.6),
            "{i}: {pixel:?}, not {wanted}"
        );
    }
    // A grey profile in a colour image must be a mistake.
    let image = pattern(8, 8);
    let png = png_with_profile(
        image.as_raw(),
        (8, 8),
        image::ExtendedColorType::Rgb8,
        profile,
    );
    let found = Folder::new().decode("odd.png", &png).unwrap();
    assert!(
        found.image == image && matches!(&found.notes[..], [Note::ProfileIgnored(_)]),
        "{:?}",
        found.notes
    );
}

#[test]
fn a_damaged_profile_is_reported_and_left() {
    let image = pattern(8, 8);
    let png = png_with_profile(
        image.as_raw(),
        (8, 8),
        image::ExtendedColorType::Rgb8,
        b"no profile at all".to_vec(),
    );
    let found = Folder::new().decode("odd.png", &png).unwrap();
    assert!(
        found.image == image && matches!(&found.notes[..], [Note::ProfileIgnored(_)]),
        "{:?}",
        found.notes
    );
}

#[test]
fn rejects_what_is_no_image() {
    let folder = Folder::new();
    assert!(folder.error("empty.png", b"").contains("empty"));
    let text = folder.error("note.png", b"Dear diary, today I trained a network.");
    assert!(
        text.contains("not a PNG") && text.contains("Dear diary"),
        "{text}"
    );
    assert!(
        folder
            .error("moving.png", b"GIF89a\x01\0\x01\0\0\0\0")
            .contains("Gif")
    );
    assert!(folder.error("zeros.bmp", &[0; 500]).contains("not a PNG"));
    let missing = format!(
        "{:#}",
        decode(&folder.0.path().join("missing.png"), &Limits::default()).unwrap_err()
    );
    assert!(
        missing.contains("missing.png") && missing.contains("No such file"),
        "{missing}"
    );
    assert!(
        decode(folder.0.path(), &Limits::default()).is_err(),
        "a folder"
    );
}

#[test]
fn rejects_cmyk_and_floating_point() {
    let folder = Folder::new();
    // Start of image, a frame of 8x8 with four components, a scan
    let mut jpeg = b"\xFF\xD8\xFF\xC0\0\x14\x08\0\x08\0\x08\x04".to_vec();
    jpeg.extend((1..=4).flat_map(|c| [c, 0x11, 0]));
    jpeg.extend(b"\xFF\xDA\0\x0E\x04\x01\0\x02\0\x03\0\x04\0\0\x3F\0\xFF\xD9");
    assert!(folder.error("print.jpg", &jpeg).contains("CMYK"));
    let float = DynamicImage::ImageRgb32F(ImageBuffer::from_pixel(4, 4, Rgb([0.5f32; 3])));
    assert!(
        folder
            .error("float.tif", &encode(&float, ImageFormat::Tiff))
            .contains("floating-point")
    );
}

/// A chunk of a PNG file.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind.as_slice(), data].concat();
    [
        (data.len() as u32).to_be_bytes().as_slice(),
        &body,
        &crc32fast::hash(&body).to_be_bytes(),
    ]
    .concat()
}

/// Files of a few bytes whose headers promise 60,000 x 60,000 pixels.
fn giants() -> Vec<(&'static str, Vec<u8>)> {
    const SIDE: u32 = 60_000;
    let small = DynamicImage::ImageRgb8(pattern(16, 16));
    let be = SIDE.to_be_bytes();
    let header = [be.as_slice(), &be, &[8, 2, 0, 0, 0]].concat();
    let png = [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &[0x78, 0x9C]),
        chunk(b"IEND", &[]),
    ]
    .concat();
    let mut jpeg = encode(&small, ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xEA, 0x60, 0xEA, 0x60]);
    let mut bmp = encode(&small, ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&SIDE.to_le_bytes());
    bmp[22..26].copy_from_slice(&SIDE.to_le_bytes());
    let mut tiff = encode(&small, ImageFormat::Tiff);
    let ifd = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize;
    for entry in 0..usize::from(u16::from_le_bytes([tiff[ifd], tiff[ifd + 1]])) {
        let at = ifd + 2 + entry * 12;
        if matches!(
            u16::from_le_bytes([tiff[at], tiff[at + 1]]),
            256..=257 | 278
        ) {
            tiff[at + 8..at + 12].copy_from_slice(&SIDE.to_le_bytes());
        }
    }
    vec![
        ("giant.png", png),
        ("giant.jpg", jpeg),
        ("giant.bmp", bmp),
        ("giant.tif", tiff),
    ]
}

#[test]
fn rejects_giant_headers_before_allocating() {
    let folder = Folder::new();
    for (name, bytes) in giants() {
        let text = folder.error(name, &bytes);
        assert!(
            text.contains("60000x60000") && text.contains("limit"),
            "{text}"
        );
        let probed = probe(&folder.0.path().join(name), &Limits::default()).unwrap_err();
        assert!(format!("{probed:#}").contains("60000x60000"));
    }
    let path = folder.file(
        "small.png",
        &encode(&DynamicImage::ImageRgb8(pattern(20, 20)), ImageFormat::Png),
    );
    assert!(decode(&path, &Limits { max_pixels: 399 }).is_err());
    assert!(decode(&path, &Limits { max_pixels: 400 }).is_ok());
}

#[test]
fn every_truncation_is_an_error_or_the_whole_image() {
    let folder = Folder::new();
    let image = pattern(19, 17);
    let dynamic = DynamicImage::ImageRgb8(image.clone());
    let whole_jpeg = folder
        .decode("whole.jpg", &encode(&dynamic, ImageFormat::Jpeg))
        .unwrap()
        .image;
    for format in LOSSLESS.into_iter().chain([ImageFormat::Jpeg]) {
        let bytes = encode(&dynamic, format);
        let wanted = if format == ImageFormat::Jpeg {
            &whole_jpeg
        } else {
            &image
        };
        for length in 0..bytes.len() {
            match folder.decode("cut.png", &bytes[..length]) {
                Ok(found) => assert!(
                    found.image == *wanted,
                    "{format:?} cut to {length} of {} bytes gave a different image",
                    bytes.len()
                ),
                Err(error) => assert!(format!("{error:#}").contains("cut.png")),
            }
            let _ = probe(&folder.0.path().join("cut.png"), &Limits::default());
        }
    }
    let png = encode(&dynamic, ImageFormat::Png);
    let text = folder.error("half.png", &png[..png.len() / 2]);
    assert!(text.contains("cut short"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_bytes_never_panic(format in 0usize..5, hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Tiff, ImageFormat::Bmp];
        let mut bytes = encode(&DynamicImage::ImageRgb8(pattern(16, 12)), formats[format]);
        for (place, value) in hits {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        let folder = Folder::new();
        let path = folder.file("damaged", &bytes);
        let limits = Limits { max_pixels: 1_000_000 };
        let probed = probe(&path, &limits);
        if let Ok(found) = decode(&path, &limits) {
            prop_assert_eq!(probed.unwrap(), found.image.dimensions());
        }
    }
}
