//! Colour descriptions of files: which are converted, which are refused, and which are only
//! reported.

use super::{Folder, chunk, encode, p3_to_srgb, pattern, srgb_encode, with_segment};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use paragon::dataset::decode::{Decoded, Note};

fn p3() -> Vec<u8> {
    moxcms::ColorProfile::new_display_p3().encode().unwrap()
}

fn ramp() -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| Rgb([60 + x as u8 * 2, 50 + y as u8 * 2, 90]))
}

/// A PNG with additional chunks before its pixels.
fn png(image: &DynamicImage, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let bytes = encode(image, ImageFormat::Png);
    let extra: Vec<u8> = chunks
        .iter()
        .flat_map(|(kind, data)| chunk(kind, data))
        .collect();
    [&bytes[..33], &extra, &bytes[33..]].concat()
}

fn iccp(profile: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    image::ImageEncoder::set_icc_profile(&mut encoder, profile.to_vec()).unwrap();
    image::ImageEncoder::write_image(encoder, &[0; 3], 1, 1, image::ExtendedColorType::Rgb8)
        .unwrap();
    let at = bytes.windows(4).position(|w| w == b"iCCP").unwrap();
    let length = u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize;
    bytes[at + 4..at + 4 + length].to_vec()
}

fn assert_p3(found: &Decoded, source: &RgbImage, what: &str) {
    assert!(
        found.notes.iter().any(|n| matches!(n, Note::Profile(_))),
        "{what}: {:?}",
        found.notes
    );
    for (pixel, source) in found.image.pixels().zip(source.pixels()) {
        for (a, b) in pixel.0.iter().zip(p3_to_srgb(source.0)) {
            assert!(
                (f64::from(*a) - b).abs() < 1.6,
                "{what}: {source:?} became {pixel:?}, not {b}"
            );
        }
    }
}

/// A page of an uncompressed RGB TIFF: pixels, tags beyond the usual ones (tag, type, value), and a
/// profile.
struct Page<'a> {
    image: &'a RgbImage,
    tags: &'a [(u16, u16, u32)],
    profile: &'a [u8],
}

/// A little-endian TIFF with these pages.
fn tiff(pages: &[Page]) -> Vec<u8> {
    let mut out = b"II\x2A\0\0\0\0\0".to_vec();
    let mut link = 4;
    for page in pages {
        let pixels = out.len() as u32;
        out.extend(page.image.as_raw());
        let bits = out.len() as u32;
        out.extend([8, 0, 8, 0, 8, 0]);
        let profile = out.len() as u32;
        out.extend(page.profile);
        out.resize(out.len().next_multiple_of(2), 0);
        let (w, h) = page.image.dimensions();
        let mut tags = vec![
            (256, 4, 1, w),
            (257, 4, 1, h),
            (258, 3, 3, bits),
            (259, 3, 1, 1),
            (262, 3, 1, 2),
            (273, 4, 1, pixels),
        ];
        tags.extend([(277, 3, 1, 3), (278, 4, 1, h), (279, 4, 1, w * h * 3)]);
        tags.extend(
            page.tags
                .iter()
                .map(|&(tag, kind, value)| (tag, kind, 1, value)),
        );
        if !page.profile.is_empty() {
            tags.push((34675, 7, page.profile.len() as u32, profile));
        }
        tags.sort();
        let at = (out.len() as u32).to_le_bytes();
        out[link..link + 4].copy_from_slice(&at);
        out.extend((tags.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in tags {
            out.extend([tag, kind].iter().flat_map(|v: &u16| v.to_le_bytes()));
            out.extend([count, value].iter().flat_map(|v: &u32| v.to_le_bytes()));
        }
        link = out.len();
        out.extend([0; 4]);
    }
    out
}

#[test]
fn a_profile_in_a_tiff_is_used_however_large_the_picture() {
    let folder = Folder::new();
    let (small, large) = (p3(), [p3(), vec![0; 300_000]].concat());
    for (side, profile) in [(64, &small), (8, &small), (64, &large)] {
        let image = image::imageops::crop_imm(&ramp(), 0, 0, side, side).to_image();
        let file = tiff(&[Page {
            image: &image,
            tags: &[],
            profile,
        }]);
        assert_p3(&folder.decode("p3.tif", &file).unwrap(), &image, "TIFF");
    }
}

#[test]
fn a_profile_that_cannot_be_read_is_named_in_every_format() {
    let folder = Folder::new();
    let image = pattern(16, 16);
    let dynamic = DynamicImage::ImageRgb8(image.clone());
    let jpeg = encode(&dynamic, ImageFormat::Jpeg);
    let stored = folder.decode("plain.jpg", &jpeg).unwrap().image;
    let mut cut = tiff(&[Page {
        image: &image,
        tags: &[],
        profile: b"profile",
    }]);
    let tag = cut
        .windows(4)
        .position(|w| w == [0x73, 0x87, 7, 0])
        .unwrap();
    cut[tag + 4..tag + 8].copy_from_slice(&900u32.to_le_bytes());
    let mut checksum = png(&dynamic, &[(b"iCCP", &iccp(&p3()))]);
    let at = checksum.windows(4).position(|w| w == b"iCCP").unwrap();
    checksum[at + 40] ^= 1;
    let mut webp = encode(&dynamic, ImageFormat::WebP);
    let extended = [
        b"VP8X\x0A\0\0\0\x20\0\0\0\x0F\0\0\x0F\0\0".as_slice(),
        b"ICCP\x04\0\0\0oddx",
    ]
    .concat();
    webp.splice(12..12, extended);
    let length = (webp.len() as u32 - 8).to_le_bytes();
    webp[4..8].copy_from_slice(&length);
    let files = [
        (
            "part.jpg",
            with_segment(
                &jpeg,
                0xE2,
                &[b"ICC_PROFILE\0\x01\x02".as_slice(), &p3()].concat(),
            ),
            &stored,
        ),
        ("cut.tif", cut, &image),
        ("checksum.png", checksum, &image),
        (
            "packed.png",
            png(&dynamic, &[(b"iCCP", b"name\0\0not zlib")]),
            &image,
        ),
        ("odd.webp", webp, &image),
    ];
    for (name, bytes, wanted) in files {
        let found = folder.decode(name, &bytes).unwrap();
        assert!(
            found.image == *wanted && matches!(&found.notes[..], [Note::ProfileIgnored(_)]),
            "{name}: {:?}",
            found.notes
        );
    }
}

#[test]
fn a_profile_in_a_bmp_is_used() {
    let image = ramp();
    let profile = p3();
    let mut header = Vec::new();
    header.extend([124u32, 64, 64].iter().flat_map(|v| v.to_le_bytes()));
    header.extend([1, 0, 24, 0]);
    header.extend(
        [0u32, 64 * 64 * 3, 0, 0, 0, 0]
            .iter()
            .flat_map(|v| v.to_le_bytes()),
    );
    header.resize(56, 0);
    header.extend(0x4D42_4544u32.to_le_bytes()); // MBED
    header.resize(112, 0);
    header.extend(
        [124u32 + 64 * 64 * 3, profile.len() as u32, 0]
            .iter()
            .flat_map(|v| v.to_le_bytes()),
    );
    let pixels: Vec<u8> = image
        .rows()
        .rev()
        .flat_map(|row| {
            row.flat_map(|p| [p.0[2], p.0[1], p.0[0]])
                .collect::<Vec<_>>()
        })
        .collect();
    let length = (14 + 124 + pixels.len() + profile.len()) as u32;
    let file = [
        b"BM".as_slice(),
        &length.to_le_bytes(),
        &[0; 4],
        &138u32.to_le_bytes(),
        &header,
        &pixels,
        &profile,
    ]
    .concat();
    assert_p3(
        &Folder::new().decode("p3.bmp", &file).unwrap(),
        &image,
        "BMP",
    );
}

#[test]
fn pictures_of_more_than_usual_brightness_are_refused() {
    let folder = Folder::new();
    let deep = DynamicImage::ImageRgb8(pattern(16, 16)).into_rgb16();
    let deep = DynamicImage::ImageRgb16(deep);
    for (data, curve) in [
        ([9, 16, 0, 1], "PQ"),
        ([9, 18, 0, 1], "HLG"),
        ([12, 16, 0, 1], "PQ"),
    ] {
        for image in [&deep, &DynamicImage::ImageRgb8(pattern(16, 16))] {
            let text = folder.error("hdr.png", &png(image, &[(b"cICP", &data)]));
            assert!(
                text.contains("HDR") && text.contains(curve) && text.contains("sRGB"),
                "{text}"
            );
        }
    }
    // A profile with the same meaning.
    let profile = moxcms::ColorProfile::new_bt2020_pq().encode().unwrap();
    let jpeg = encode(&DynamicImage::ImageRgb8(pattern(16, 16)), ImageFormat::Jpeg);
    let text = folder.error(
        "hdr.jpg",
        &with_segment(
            &jpeg,
            0xE2,
            &[b"ICC_PROFILE\0\x01\x01".as_slice(), &profile].concat(),
        ),
    );
    assert!(text.contains("HDR"), "{text}");
}

#[test]
fn cicp_goes_before_a_profile_and_is_converted() {
    let folder = Folder::new();
    let image = ramp();
    let dynamic = DynamicImage::ImageRgb8(image.clone());
    assert_p3(
        &folder
            .decode("p3.png", &png(&dynamic, &[(b"cICP", &[12, 13, 0, 1])]))
            .unwrap(),
        &image,
        "cICP",
    );
    let deep = DynamicImage::ImageRgb16(dynamic.to_rgb16());
    assert_p3(
        &folder
            .decode("deep.png", &png(&deep, &[(b"cICP", &[12, 13, 0, 1])]))
            .unwrap(),
        &image,
        "cICP, 16 bits",
    );
    let both = png(
        &dynamic,
        &[(b"cICP", &[1, 13, 0, 1]), (b"iCCP", &iccp(&p3()))],
    );
    let found = folder.decode("srgb.png", &both).unwrap();
    assert!(
        found.image == image && found.notes.is_empty(),
        "{:?}",
        found.notes
    );
    let wide = folder
        .decode("wide.png", &png(&dynamic, &[(b"cICP", &[9, 14, 0, 1])]))
        .unwrap();
    assert!(
        wide.image != image && matches!(&wide.notes[..], [Note::Profile(_)]),
        "BT.2020: {:?}",
        wide.notes
    );
    // The message names what cannot be converted.
    for data in [
        [2, 2, 0, 1],
        [1, 13, 1, 1],
        [1, 13, 0, 0],
        [77, 13, 0, 1],
        [1, 200, 0, 1],
    ] {
        let found = folder
            .decode("odd.png", &png(&dynamic, &[(b"cICP", &data)]))
            .unwrap();
        assert!(
            found.image == image && matches!(&found.notes[..], [Note::ProfileIgnored(_)]),
            "{data:?}: {:?}",
            found.notes
        );
    }
}

/// The eight numbers of a cHRM chunk for sRGB, times 100,000.
const SRGB: [u32; 8] = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000];

#[test]
fn the_gamma_of_a_png_is_converted_where_it_is_not_that_of_srgb() {
    let folder = Folder::new();
    let image = ramp();
    let dynamic = DynamicImage::ImageRgb8(image.clone());
    let (gamma, linear) = (45_455u32.to_be_bytes(), 100_000u32.to_be_bytes());
    let primaries: Vec<u8> = SRGB.iter().flat_map(|v| v.to_be_bytes()).collect();
    let wide: Vec<u8> = [31270u32, 32900, 68000, 32000, 26500, 69000, 15000, 6000]
        .iter()
        .flat_map(|v| v.to_be_bytes())
        .collect();
    let unchanged: [&[(&[u8; 4], &[u8])]; 4] = [
        &[(b"gAMA", &gamma)],
        &[(b"gAMA", &gamma), (b"cHRM", &primaries)],
        &[(b"sRGB", &[0]), (b"gAMA", &linear), (b"cHRM", &wide)],
        &[
            (
                b"iCCP",
                &iccp(&moxcms::ColorProfile::new_srgb().encode().unwrap()),
            ),
            (b"gAMA", &linear),
        ],
    ];
    for chunks in unchanged {
        let found = folder.decode("srgb.png", &png(&dynamic, chunks)).unwrap();
        assert!(
            found.image == image && found.notes.is_empty(),
            "{chunks:?}: {:?}",
            found.notes
        );
    }
    assert_p3(
        &folder
            .decode(
                "p3.png",
                &png(&dynamic, &[(b"gAMA", &gamma), (b"cHRM", &wide)]),
            )
            .unwrap(),
        &image,
        "cHRM",
    );
    let grey = DynamicImage::ImageLuma8(dynamic.to_luma8());
    for (source, chunks) in [
        (&dynamic, [(b"gAMA", linear.as_slice())]),
        (&grey, [(b"gAMA", linear.as_slice())]),
    ] {
        let found = folder.decode("linear.png", &png(source, &chunks)).unwrap();
        assert!(
            found
                .notes
                .iter()
                .any(|n| matches!(n, Note::Profile(name) if name.contains("1.0"))),
            "{:?}",
            found.notes
        );
        for (pixel, from) in found.image.pixels().zip(source.to_rgb8().pixels()) {
            for (a, b) in pixel.0.iter().zip(from.0) {
                assert!(
                    (f64::from(*a) - srgb_encode(f64::from(b) / 255.0)).abs() < 1.6,
                    "{from:?} became {pixel:?}"
                );
            }
        }
    }
    let none: [&[(&[u8; 4], &[u8])]; 2] = [
        &[(b"gAMA", &[0; 4])],
        &[(b"gAMA", &gamma), (b"cHRM", &[0; 32])],
    ];
    for chunks in none {
        let found = folder.decode("odd.png", &png(&dynamic, chunks)).unwrap();
        assert!(
            found.image == image && matches!(&found.notes[..], [Note::ProfileIgnored(_)]),
            "{:?}",
            found.notes
        );
    }
}

#[test]
fn a_thumbnail_before_the_picture_of_a_tiff_is_passed_over() {
    let folder = Folder::new();
    let (small, image) = (pattern(8, 8), pattern(24, 16));
    let thumbnail = |tags| Page {
        image: &small,
        tags,
        profile: &[],
    };
    let whole = || Page {
        image: &image,
        tags: &[(274, 3, 3)],
        profile: &[],
    };
    // The current tag, the older one, and a mask.
    for tags in [&[(254u16, 4u16, 1u32)], &[(255, 3, 2)], &[(254, 4, 4)]] {
        let found = folder
            .decode("two.tif", &tiff(&[thumbnail(tags), whole()]))
            .unwrap();
        assert!(
            found.image == image::imageops::rotate180(&image)
                && found.notes == [Note::Orientation(3)],
            "{tags:?}"
        );
        let probed = paragon::dataset::decode::probe(
            &folder.0.path().join("two.tif"),
            &paragon::dataset::decode::Limits::default(),
        );
        assert_eq!(probed.unwrap(), (24, 16));
    }
    let found = folder
        .decode("one.tif", &tiff(&[thumbnail(&[(254, 4, 1)])]))
        .unwrap();
    assert!(
        found.image == small,
        "a mark on the only page must be ignored"
    );
    let text = folder.error(
        "none.tif",
        &tiff(&[thumbnail(&[(254, 4, 1)]), thumbnail(&[(254, 4, 1)])]),
    );
    assert!(text.contains("thumbnail"), "{text}");
    let found = folder
        .decode("pages.tif", &tiff(&[whole(), thumbnail(&[])]))
        .unwrap();
    assert_eq!(found.image.dimensions(), (24, 16));
}
