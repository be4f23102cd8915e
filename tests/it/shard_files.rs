//! Sets on disk: they have the same bytes however they are made, and every kind of damage is found
//! before damaged data are used.

use crate::shard_common;

use paragon::shard::codec::Codec;
use paragon::shard::plan::BuildConfig;
use paragon::shard::reader::ShardSet;
use shard_common::{config, files, make, make_writable, picture, pictures, small_set};
use std::fs;
use std::path::{Path, PathBuf};

/// Every pixel and source of a set, or the first error.
fn read_all(folder: &Path) -> anyhow::Result<Vec<u8>> {
    let set = ShardSet::open(folder)?;
    let mut scratch = set.scratch()?;
    let g = set.geometry();
    let (mut lq, mut hr) = (vec![0; g.lq_bytes()], vec![0; g.hr_bytes()]);
    let mut all = Vec::new();
    for record in 0..set.len() {
        set.read(record, &mut scratch, &mut lq, &mut hr)?;
        let source = set.source(record)?;
        all.extend_from_slice(&lq);
        all.extend_from_slice(&hr);
        all.extend_from_slice(format!("{source:?}").as_bytes());
    }
    Ok(all)
}

fn rewrite(path: &Path, bytes: &[u8]) {
    make_writable(path);
    fs::write(path, bytes).unwrap();
}

fn message(folder: &Path) -> String {
    format!(
        "{:#}",
        read_all(folder).expect_err("the damage was not found")
    )
}

#[test]
fn pairs_are_the_pixels_of_the_images_with_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 3);
    for codec in [Codec::Raw, Codec::Predict] {
        let report = make(&BuildConfig {
            codec,
            overwrite: true,
            stride: 10,
            ..config(&data, &out)
        })
        .unwrap();
        let set = ShardSet::open(&out).unwrap();
        assert_eq!(
            (set.len(), report.used, report.images),
            (report.pairs, 3, 3)
        );
        let mut scratch = set.scratch().unwrap();
        let (mut lq, mut hr) = (vec![0; 16 * 16 * 3], vec![0; 32 * 32 * 3]);
        for record in 0..set.len() {
            set.read(record, &mut scratch, &mut lq, &mut hr).unwrap();
            let source = set.source(record).unwrap();
            let image = image::open(data.join(format!("{}.png", source.image)))
                .unwrap()
                .to_rgb8();
            let (w, h) = (image.width() & !1, image.height() & !1);
            let image = image::imageops::crop_imm(&image, 0, 0, w, h).to_image();
            let small = paragon::dataset::degrade::downscale(
                &image,
                2,
                paragon::dataset::degrade::Filter::Bicubic,
            )
            .unwrap();
            let cut = |image: &image::RgbImage, x, y, size| {
                image::imageops::crop_imm(image, x, y, size, size)
                    .to_image()
                    .into_raw()
            };
            assert!(
                lq == cut(&small, source.x, source.y, 16)
                    && hr == cut(&image, source.x * 2, source.y * 2, 32)
            );
        }
        let e = set
            .read(set.len(), &mut scratch, &mut lq, &mut hr)
            .unwrap_err();
        assert!(e.to_string().contains("is asked for"));
    }
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    pictures(&data, 30);
    // A rejected image in the middle changes nothing.
    fs::write(data.join("p003x.png"), "no image").unwrap();
    let sets: Vec<_> = [1, 2, 5]
        .iter()
        .map(|&threads| {
            let out = dir.path().join(format!("set{threads}"));
            let report = make(&BuildConfig {
                threads,
                ..config(&data, &out)
            })
            .unwrap();
            assert_eq!(
                (report.images, report.used, report.rejected.len()),
                (31, 30, 1)
            );
            assert!(report.shards > 2);
            files(&out)
        })
        .collect();
    assert!(sets[0] == sets[1] && sets[0] == sets[2]);
}

/// A shard of a few KB: four pairs of LQ 8 / HR 16 from two images.
fn tiny_set() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    fs::create_dir(&data).unwrap();
    for i in 0..2 {
        picture(20, 17, i)
            .save(data.join(format!("{i}.png")))
            .unwrap();
    }
    make(&BuildConfig {
        lq_size: 8,
        stride: 8,
        ..config(&data, &out)
    })
    .unwrap();
    (dir, out)
}

#[test]
fn rejects_every_truncation_of_a_shard() {
    let (_dir, folder) = tiny_set();
    let path = folder.join("shard-00000.psh");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        rewrite(&path, &whole[..length]);
        let text = format!(
            "{:#}",
            ShardSet::open(&folder)
                .err()
                .unwrap_or_else(|| panic!("{length} bytes were accepted"))
        );
        assert!(text.contains("shard-00000.psh"), "{text}");
    }
    rewrite(&path, &[&whole[..], &[0]].concat());
    assert!(message(&folder).contains("shard-00000.psh"));
}

/// Changes every bit of every byte, and tries every value for the bytes of header and footer, on
/// which everything else depends. Every change must be found: the magic numbers are compared, and a
/// CRC32 covers all other bytes, which finds any change within 32 neighbouring bits.
#[test]
fn rejects_every_flipped_byte_of_a_shard() {
    let (_dir, folder) = tiny_set();
    let path = folder.join("shard-00000.psh");
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    for at in 0..whole.len() {
        let structure = at < 64 || at >= whole.len() - 72;
        for mask in (1..=255u8).filter(|mask| structure || mask.is_power_of_two()) {
            damaged[at] = whole[at] ^ mask;
            rewrite(&path, &damaged);
            let text = format!(
                "{:#}",
                read_all(&folder)
                    .err()
                    .unwrap_or_else(|| panic!("byte {at} ^ {mask} was accepted"))
            );
            assert!(text.contains("shard-00000.psh"), "{text}");
        }
        damaged[at] = whole[at];
    }
}

/// The same for the manifest. Only its minor version (bytes 10 and 11) may change, because a reader
/// accepts any.
#[test]
fn rejects_every_truncation_and_flipped_bit_of_a_manifest() {
    let (_dir, folder) = tiny_set();
    let path = folder.join("manifest.psm");
    let whole = fs::read(&path).unwrap();
    let pixels = read_all(&folder).unwrap();
    for length in 0..whole.len() {
        rewrite(&path, &whole[..length]);
        assert!(
            message(&folder).contains("manifest"),
            "{length} bytes: {}",
            message(&folder)
        );
    }
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        rewrite(&path, &damaged);
        match read_all(&folder) {
            Ok(read) => assert!(
                (80..96).contains(&bit) && read == pixels,
                "bit {bit} was accepted"
            ),
            Err(_) => assert!(!(80..96).contains(&bit), "bit {bit}: {}", message(&folder)),
        }
    }
}

#[test]
fn rejects_a_missing_shard_by_name() {
    let (_dir, folder) = small_set(12, Codec::Raw);
    fs::remove_file(folder.join("shard-00001.psh")).unwrap();
    let text = message(&folder);
    assert!(
        text.contains("shard-00001.psh") && text.contains("missing"),
        "{text}"
    );
}

#[test]
fn rejects_shards_in_each_others_place_and_of_another_set() {
    let (_dir, folder) = small_set(12, Codec::Raw);
    let (a, b) = (
        folder.join("shard-00000.psh"),
        folder.join("shard-00001.psh"),
    );
    let (first, second) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
    rewrite(&a, &second);
    assert!(message(&folder).contains("another set or place"));
    rewrite(&a, &first);
    assert!(read_all(&folder).is_ok());
    let (_dir, other) = small_set(11, Codec::Raw);
    rewrite(&b, &fs::read(other.join("shard-00001.psh")).unwrap());
    assert!(message(&folder).contains("another set or place"));
}

#[test]
fn rejects_a_newer_shard_and_names_the_version() {
    let (_dir, folder) = small_set(1, Codec::Raw);
    let path = folder.join("shard-00000.psh");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    rewrite(&path, &bytes);
    let text = message(&folder);
    assert!(text.contains("2.0") && text.contains("newer"), "{text}");
}

#[test]
fn rejects_features_of_a_newer_paragon_and_names_the_version() {
    let (_dir, folder) = small_set(1, Codec::Predict);
    let path = folder.join("shard-00000.psh");
    let whole = fs::read(&path).unwrap();
    let sealed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[10] = 4; // version 1.4
        bytes[at] = byte;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        rewrite(&path, &bytes);
    };
    for at in 12..16 {
        sealed(at, 0x80);
        let text = message(&folder);
        assert!(
            text.contains("features") && text.contains("1.4") && text.contains("shard-00000.psh"),
            "{text}"
        );
    }
    sealed(16, 0xFF); // readers ignore compatible features that they do not know
    assert!(read_all(&folder).is_ok());
}

#[test]
fn shards_are_read_only_and_nothing_else_is_left() {
    let (_dir, folder) = small_set(12, Codec::Predict);
    for name in files(&folder).keys() {
        assert!(
            name.starts_with("shard-") || name == "manifest.psm",
            "{name}"
        );
        assert!(
            fs::metadata(folder.join(name))
                .unwrap()
                .permissions()
                .readonly()
        );
    }
}

/// Removes all but the first `keep` shards of a set, as a kill would have left it.
fn interrupted(folder: &Path, keep: usize) -> Vec<PathBuf> {
    fs::remove_file(folder.join("manifest.psm")).unwrap();
    let shards: Vec<_> = files(folder)
        .into_keys()
        .filter(|n| n.starts_with("shard-"))
        .collect();
    for name in &shards[keep..] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    fs::write(folder.join(".shard-00099.psh.1.partial"), b"half").unwrap();
    shards[..keep].iter().map(|n| folder.join(n)).collect()
}

#[test]
fn a_damaged_leftover_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 20);
    make(&config(&data, &out)).unwrap();
    let whole = files(&out);
    let kept = interrupted(&out, 2);
    let bytes = fs::read(&kept[1]).unwrap();
    rewrite(&kept[1], &bytes[..bytes.len() / 2]);
    make(&config(&data, &out)).unwrap();
    assert!(files(&out) == whole);
}

#[test]
fn an_image_changed_after_an_interruption_is_not_taken_from_the_old_shard() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, fresh) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("fresh"),
    );
    // In BMP, a different image of the same dimensions has the same file size, so only its content
    // differs.
    fs::create_dir_all(&data).unwrap();
    for i in 0..20 {
        picture(70, 64, i)
            .save(data.join(format!("p{i:02}.bmp")))
            .unwrap();
    }
    make(&config(&data, &out)).unwrap();
    interrupted(&out, 2);
    std::thread::sleep(std::time::Duration::from_millis(20));
    picture(70, 64, 99).save(data.join("p00.bmp")).unwrap();
    make(&config(&data, &out)).unwrap();
    make(&config(&data, &fresh)).unwrap();
    assert!(files(&out) == files(&fresh));
    // A change is noticed in a finished set as well.
    picture(70, 64, 98).save(data.join("p01.bmp")).unwrap();
    let text = format!("{:#}", make(&config(&data, &out)).unwrap_err());
    assert!(
        text.contains("p01.bmp") && text.contains("changed") && text.contains("--overwrite"),
        "{text}"
    );
}

#[test]
fn the_same_set_is_left_alone_and_another_is_not_touched_without_being_told() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 4);
    let wanted = config(&data, &out);
    let first = make(&wanted).unwrap();
    let whole = files(&out);
    let again = make(&wanted).unwrap();
    assert!(
        again.already_complete
            && again.fingerprint == first.fingerprint
            && again.pairs == first.pairs
    );
    assert_eq!((again.images, again.used), (first.images, first.used));
    let text = format!(
        "{:#}",
        make(&BuildConfig {
            lq_size: 8,
            stride: 8,
            ..wanted.clone()
        })
        .unwrap_err()
    );
    assert!(
        text.contains("the LQ patch is 16 there and 8 here") && text.contains("--overwrite"),
        "{text}"
    );
    picture(40, 40, 5).save(data.join("new.png")).unwrap();
    assert!(format!("{:#}", make(&wanted).unwrap_err()).contains("the images are not the same"));
    assert!(files(&out) == whole);
    // An unfinished set with other options is not removed silently either.
    interrupted(&out, 1);
    let text = format!(
        "{:#}",
        make(&BuildConfig {
            lq_size: 8,
            stride: 8,
            ..wanted.clone()
        })
        .unwrap_err()
    );
    assert!(text.contains("unfinished set with other options"), "{text}");
    let replaced = make(&BuildConfig {
        overwrite: true,
        ..wanted
    })
    .unwrap();
    assert!(!replaced.already_complete && replaced.images == 5);
    assert!(read_all(&out).is_ok());
}

#[test]
fn rejects_an_image_that_needs_more_memory_than_allowed_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 3);
    picture(400, 300, 1).save(data.join("large.png")).unwrap();
    let report = make(&BuildConfig {
        host_memory: 1 << 20,
        ..config(&data, &out)
    })
    .unwrap();
    assert_eq!(
        (report.images, report.used, report.rejected.len()),
        (4, 3, 1)
    );
    assert!(
        report.rejected[0].file.ends_with("large.png")
            && report.rejected[0].reason.contains("--host-memory")
    );
    assert!(report.memory_in_flight <= 1 << 20);
}

#[test]
fn two_writers_in_one_folder_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 1);
    fs::create_dir(&out).unwrap();
    let (other, _) = paragon::support::lock::lock_folder(&out, "a test holds").unwrap();
    assert!(format!("{:#}", make(&config(&data, &out)).unwrap_err()).contains("another paragon"));
    drop(other);
    assert!(make(&config(&data, &out)).is_ok());
    assert!(!out.join(".lock").exists());
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shards/golden")
}

/// The content of the golden set: four pairs of LQ 9 / HR 18 (so that bands have padding), one for
/// every way to predict the LQ and one stored raw. They are made by plain arithmetic only.
fn golden_pixels() -> Vec<(&'static str, image::RgbImage, image::RgbImage)> {
    use image::{Rgb, RgbImage};
    let smooth = RgbImage::from_fn(18, 18, |x, y| {
        Rgb([(x * 9 + y) as u8, (y * 11) as u8, (255 - x * y / 2) as u8])
    });
    let rough = RgbImage::from_fn(18, 18, |x, y| {
        Rgb([
            (x * 73 + y * 41) as u8,
            (x * 57 + y * 99) as u8,
            (x * y) as u8,
        ])
    });
    let mean = |hr: &RgbImage| {
        RgbImage::from_fn(9, 9, |x, y| {
            let sum = |c: usize| {
                (0..4)
                    .map(|i| u32::from(hr.get_pixel(2 * x + i % 2, 2 * y + i / 2).0[c]))
                    .sum::<u32>()
            };
            Rgb(std::array::from_fn(|c| ((sum(c) + 2) / 4) as u8))
        })
    };
    let own = RgbImage::from_fn(9, 9, |x, y| {
        Rgb([(x * 20) as u8, (200 - y * 20) as u8, 100])
    });
    let mut rng = paragon::support::rng::Rng::new(&[1]);
    let mut noise = |size| {
        RgbImage::from_fn(size, size, |_, _| {
            Rgb([(); 3].map(|()| rng.next_u64() as u8))
        })
    };
    let raw = (noise(9), noise(18));
    vec![
        // Bicubic halving of a slope gives its mean, or one level off.
        ("a_half", mean(&smooth), smooth.clone()),
        ("b_mean", mean(&rough), rough.clone()),
        ("c_own", own, rough),
        ("d_raw", raw.0, raw.1),
    ]
}

#[test]
fn the_golden_set_reads_as_it_always_did() {
    let set = ShardSet::open(&golden()).unwrap();
    assert_eq!((set.len(), set.scale(), set.lq_size()), (4, 2, 9));
    let mut scratch = set.scratch().unwrap();
    let (mut lq, mut hr) = (vec![0; 9 * 9 * 3], vec![0; 18 * 18 * 3]);
    for (record, (name, wanted_lq, wanted_hr)) in golden_pixels().into_iter().enumerate() {
        set.read(record as u64, &mut scratch, &mut lq, &mut hr)
            .unwrap();
        assert!(
            lq == wanted_lq.into_raw() && hr == wanted_hr.into_raw(),
            "{name}"
        );
        assert_eq!(set.source(record as u64).unwrap().image, name);
    }
    // The first byte of a predicted record is the way in which the LQ is predicted.
    let bytes = fs::read(golden().join("shard-00000.psh")).unwrap();
    let mut at = 64;
    for (record, way) in [2, 1, 0].into_iter().enumerate() {
        let (codec, length) = set.stored(record as u64).unwrap();
        assert_eq!((codec, bytes[at]), (Codec::Predict, way), "record {record}");
        at += length as usize;
    }
    assert_eq!(set.stored(3).unwrap().0, Codec::Raw);
}

/// Writes a new golden set. Only for a new version of the format, since older sets must stay
/// readable.
#[test]
#[ignore = "writes into the source tree; run it by name when the format changes"]
fn write_the_golden_set() {
    let dir = tempfile::tempdir().unwrap();
    for (name, lq, hr) in golden_pixels() {
        for (side, image) in [("hr", hr), ("lr_x2", lq)] {
            fs::create_dir_all(dir.path().join(side)).unwrap();
            image
                .save(dir.path().join(side).join(format!("{name}.png")))
                .unwrap();
        }
    }
    make(&BuildConfig {
        lq_size: 9,
        stride: 9,
        overwrite: true,
        ..config(dir.path(), &golden())
    })
    .unwrap();
}
