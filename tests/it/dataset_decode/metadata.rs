//! Data beside the pixels is limited and counted in the memory figures, and an error of the system
//! is not reported as an error of the image.

use super::{Folder, chunk, encode, pattern, with_segment};
use image::{DynamicImage, ImageFormat};
use paragon::dataset::decode::{Limits, Note, decode, load, read_header};
use paragon::support::failure::system_cause;

/// Zeros, packed by zlib.
fn packed(length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let image = image::GrayImage::new(1 << 10, (length >> 10) as u32);
    image::ImageEncoder::write_image(
        image::codecs::png::PngEncoder::new(&mut bytes),
        image.as_raw(),
        image.width(),
        image.height(),
        image::ExtendedColorType::L8,
    )
    .unwrap();
    let mut out = Vec::new();
    let mut at = 8;
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        if &bytes[at + 4..at + 8] == b"IDAT" {
            out.extend(&bytes[at + 8..at + 8 + length]);
        }
        at += 12 + length;
    }
    out
}

#[test]
fn metadata_that_unpack_to_much_are_bounded() {
    let folder = Folder::new();
    let image = pattern(16, 16);
    let png = encode(&DynamicImage::ImageRgb8(image.clone()), ImageFormat::Png);
    let bomb = packed(100 << 20);
    let chunks: [(&[u8; 4], Vec<u8>, usize); 4] = [
        (b"iCCP", [b"name\0\0".as_slice(), &bomb].concat(), 1),
        (b"zTXt", [b"name\0\0".as_slice(), &bomb].concat(), 0),
        (
            b"iTXt",
            [b"XML:com.adobe.xmp\0\x01\0\0\0".as_slice(), &bomb].concat(),
            0,
        ),
        (b"eXIf", vec![0; 30 << 20], 0),
    ];
    for (kind, data, notes) in chunks {
        let path = folder.file(
            "bomb.png",
            &[&png[..33], &chunk(kind, &data), &png[33..]].concat(),
        );
        let header = read_header(&path, &Limits::default()).unwrap();
        assert!(header.metadata_bytes < 2 << 20, "{}", header.metadata_bytes);
        let found = decode(&path, &Limits::default()).unwrap();
        assert!(
            found.image == image && found.notes.len() == notes,
            "{:?}",
            found.notes
        );
        assert!(
            found
                .notes
                .iter()
                .all(|n| matches!(n, Note::ProfileIgnored(why) if why.contains("larger")))
        );
    }
}

#[test]
fn metadata_are_counted() {
    let folder = Folder::new();
    let dynamic = DynamicImage::ImageRgb8(pattern(16, 16));
    let png = encode(&dynamic, ImageFormat::Png);
    let profile = chunk(
        b"iCCP",
        &[b"name\0\0".as_slice(), &packed(4 << 20)].concat(),
    );
    let path = folder.file("large.png", &[&png[..33], &profile, &png[33..]].concat());
    assert!(
        read_header(&path, &Limits::default())
            .unwrap()
            .metadata_bytes
            >= 4 << 20
    );
    let mut jpeg = encode(&dynamic, ImageFormat::Jpeg);
    for _ in 0..20 {
        jpeg = with_segment(
            &jpeg,
            0xE1,
            &[b"http://ns.adobe.com/xap/1.0/\0".as_slice(), &[0; 60_000]].concat(),
        );
    }
    let path = folder.file("large.jpg", &jpeg);
    assert!(
        read_header(&path, &Limits::default())
            .unwrap()
            .metadata_bytes
            >= 20 * 60_000
    );
}

#[test]
fn a_tiff_that_lists_more_strips_than_fit_into_memory_is_refused() {
    let folder = Folder::new();
    let mut tiff = encode(&DynamicImage::ImageRgb8(pattern(16, 16)), ImageFormat::Tiff);
    let ifd = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize;
    for entry in 0..usize::from(u16::from_le_bytes([tiff[ifd], tiff[ifd + 1]])) {
        let at = ifd + 2 + entry * 12;
        if matches!(u16::from_le_bytes([tiff[at], tiff[at + 1]]), 273 | 279) {
            tiff[at + 4..at + 8].copy_from_slice(&20_000_000u32.to_le_bytes());
            tiff[at + 8..at + 12].copy_from_slice(&8u32.to_le_bytes());
        }
    }
    tiff.resize(tiff.len() + (80 << 20), 0);
    assert!(folder.error("strips.tif", &tiff).contains("strips"));
}

#[test]
fn errors_of_the_system_stay_errors_of_the_system() {
    let folder = Folder::new();
    let missing = folder.0.path().join("missing.png");
    for error in [
        load(&missing, &Limits::default()).unwrap_err(),
        read_header(&missing, &Limits::default()).unwrap_err(),
    ] {
        assert!(
            system_cause(&error).is_some() && format!("{error:#}").contains("missing.png"),
            "{error:#}"
        );
    }
    let png = encode(&DynamicImage::ImageRgb8(pattern(16, 16)), ImageFormat::Png);
    let jpeg = encode(&DynamicImage::ImageRgb8(pattern(16, 16)), ImageFormat::Jpeg);
    for damaged in [
        &png[..60],
        &png[..20],
        &jpeg[..100],
        &jpeg[..jpeg.len() - 9],
        b"none",
        b"",
    ] {
        let path = folder.file("damaged", damaged);
        let error = decode(&path, &Limits::default()).unwrap_err();
        assert!(system_cause(&error).is_none(), "{error:#}");
    }
    assert!(
        system_cause(&decode(folder.0.path(), &Limits::default()).unwrap_err()).is_none(),
        "opening a folder is not an error of the disk"
    );
}
