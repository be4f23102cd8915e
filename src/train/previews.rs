//! Previews: crops of the first validation images as the network reconstructs them at every
//! validation, kept for the report. Depends on `files` and PNG encoding. Promises small files that
//! are written atomically, a bounded number of them, the same ones for the same run, and to remove
//! only files that it has named itself.

use super::folder::bytes_in;
use crate::inference::eval::{ImagePair, Measured};
use crate::support::files::{
    bounded_name, create_folder, open_regular, remove_partials, write_atomic,
};
use anyhow::{Context, Result, ensure};
use image::{ImageFormat, ImageReader, Limits, RgbImage, imageops};
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

/// Number of images with previews: the first of the validation set.
pub(super) const IMAGES: usize = 4;
/// Largest number of validations of which previews are kept, per image.
pub(super) const MAX_VERSIONS: u64 = 50;
/// Largest side of a preview, HR pixels; it is cut from the middle of the image.
const SIDE: u32 = 256;
/// Largest size of a preview, bytes: PNG rows without compression, and some room for headers.
pub(super) const FILE_BYTES: u64 = (SIDE * (3 * SIDE + 1)) as u64 + (4 << 10);
/// Largest preview that is read, bytes: the file may come from elsewhere.
const MAX_READ_BYTES: u64 = 1 << 20;
/// Largest amount of memory that decoding a preview may take, bytes.
const MAX_DECODE_BYTES: u64 = 16 << 20;
/// Files of the original and of the bicubic upscaling, in the folder of an image.
const REFERENCES: [&str; 2] = ["hr.png", "bicubic.png"];

/// The previews of one image.
pub struct KeptPreview {
    /// Name of the image.
    pub name: String,
    /// The HR original, as PNG.
    pub hr: Vec<u8>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The bicubic upscaling of the LQ, as PNG; at scale 1 it is the LQ.
    pub bicubic: Vec<u8>,
    /// Iterations and files of the network's results, in order; [`read_preview`] reads one.
    pub network: Vec<(u64, PathBuf)>,
}

/// Folder of all previews of a run.
fn folder(run: &Path) -> PathBuf {
    run.join("previews")
}

/// Writes the preview of validation image `index`, and the first time those of HR and bicubic.
/// Images from [`IMAGES`] on have none.
///
/// # Errors
/// A file cannot be written.
pub(super) fn keep(
    run: &Path,
    iteration: u64,
    index: usize,
    measured: &Measured,
    pair: &ImagePair,
) -> Result<()> {
    if index >= IMAGES {
        return Ok(());
    }
    let plain: String = measured
        .result
        .name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let place = folder(run).join(bounded_name(&format!("{index}_{plain}"), ""));
    create_folder(&place)?;
    for (name, image) in REFERENCES.into_iter().zip([&pair.hr, &measured.bicubic]) {
        if !place.join(name).exists() {
            write(&place.join(name), image)?;
        }
    }
    write(&place.join(format!("{iteration:08}.png")), &measured.ours)?;
    let versions = versions(&place);
    for iteration in surplus(&versions.iter().map(|(i, _)| *i).collect::<Vec<_>>()) {
        for (_, path) in versions.iter().filter(|(i, _)| *i == iteration) {
            let _ = std::fs::remove_file(path); // an old preview too many does no harm
        }
    }
    Ok(())
}

/// Iterations whose previews are removed, of a sorted list. The first and the newest are kept, and
/// between them the first of every `2^shift` iterations. Because that is a power of two, a preview
/// that is removed early would also be removed later, and a run that was interrupted keeps the same
/// ones.
fn surplus(iterations: &[u64]) -> Vec<u64> {
    let Some(&newest) = iterations.last() else {
        return Vec::new();
    };
    // Minus one: the newest is kept besides the first of its own `2^shift` iterations.
    let mut shift = 0;
    while newest >> shift >= MAX_VERSIONS - 1 {
        shift += 1;
    }
    let alike = |pair: &[u64]| {
        (pair[0] >> shift == pair[1] >> shift && pair[1] != newest).then_some(pair[1])
    };
    iterations.windows(2).filter_map(alike).collect()
}

/// Iterations and files of the network's results in the folder of an image, in order.
fn versions(place: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(place) else {
        return Vec::new();
    };
    let number = |name: &str| name.strip_suffix(".png")?.parse().ok();
    let mut list: Vec<(u64, PathBuf)> = entries
        .flatten()
        .filter_map(|e| Some((number(e.file_name().to_str()?)?, e.path())))
        .collect();
    list.sort();
    list
}

/// The folders of images, in order; links are not followed.
fn image_folders(run: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder(run)) else {
        return Vec::new();
    };
    let folders = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut list: Vec<PathBuf> = folders.map(|e| e.path()).collect();
    list.sort();
    list
}

/// Bytes of all previews of a run.
pub(super) fn bytes(run: &Path) -> u64 {
    image_folders(run).iter().map(|place| bytes_in(place)).sum()
}

/// Removes half-written files of a killed process, and the previews of iterations after
/// `iteration`, which are done again.
pub(super) fn cut_back(run: &Path, iteration: u64) {
    for place in image_folders(run) {
        remove_partials(&place);
        for (_, path) in versions(&place).into_iter().filter(|(i, _)| *i > iteration) {
            let _ = std::fs::remove_file(path); // if it stays, the next validation overwrites it
        }
    }
}

/// Removes all previews of a run. Folders that hold other files stay.
pub(super) fn clear(run: &Path) {
    for place in image_folders(run) {
        remove_partials(&place);
        let own = REFERENCES
            .iter()
            .map(|name| place.join(name))
            .chain(versions(&place).into_iter().map(|(_, path)| path));
        own.for_each(|path| drop(std::fs::remove_file(path)));
        let _ = std::fs::remove_dir(place);
    }
}

/// Writes the middle of an image as PNG.
fn write(path: &Path, image: &RgbImage) -> Result<()> {
    let (w, h) = (image.width().min(SIDE), image.height().min(SIDE));
    let middle = imageops::crop_imm(
        image,
        (image.width() - w) / 2,
        (image.height() - h) / 2,
        w,
        h,
    )
    .to_image();
    let mut bytes = Vec::new();
    middle
        .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
        .with_context(|| format!("cannot encode {}", path.display()))?;
    write_atomic(path, |out| Ok(out.write_all(&bytes)?))
}

/// The previews of a run, and the reasons why others are left out: a run may have been killed while
/// it wrote. Both are empty if there was no validation.
pub fn kept_previews(run: &Path) -> (Vec<KeptPreview>, Vec<String>) {
    let (mut list, mut left_out) = (Vec::new(), Vec::new());
    for place in image_folders(run) {
        match read(&place) {
            Ok(kept) => list.push(kept),
            Err(error) => left_out.push(format!("{error:#}")),
        }
    }
    (list, left_out)
}

/// Reads the folder of an image.
fn read(place: &Path) -> Result<KeptPreview> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let name = name
        .split_once('_')
        .map_or(name.as_ref(), |(_, rest)| rest)
        .to_string();
    let [(hr, size), (bicubic, _)] = [
        read_preview(&place.join(REFERENCES[0]))?,
        read_preview(&place.join(REFERENCES[1]))?,
    ];
    Ok(KeptPreview {
        name,
        hr,
        size,
        bicubic,
        network: versions(place),
    })
}

/// The bytes of a preview (PNG), and its width and height in pixels.
///
/// # Errors
/// It cannot be read, or is no complete PNG of the size of a preview.
pub fn read_preview(path: &Path) -> Result<(Vec<u8>, (u32, u32))> {
    let read = || -> Result<_> {
        let mut bytes = Vec::new();
        open_regular(path)?
            .take(MAX_READ_BYTES)
            .read_to_end(&mut bytes)?;
        let reader = || {
            let mut reader = ImageReader::with_format(Cursor::new(&bytes), ImageFormat::Png);
            let mut limits = Limits::default();
            limits.max_alloc = Some(MAX_DECODE_BYTES);
            reader.limits(limits);
            reader
        };
        let size = reader().into_dimensions()?;
        ensure!(
            size.0 <= SIDE && size.1 <= SIDE,
            "it has {}x{} pixels, and a preview at most {SIDE}x{SIDE}",
            size.0,
            size.1
        );
        reader().decode()?;
        Ok((bytes, size))
    };
    read().with_context(|| format!("the preview {} cannot be shown", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The previews left of `count` validations every `every` iterations. `again`: at validation
    /// `.0` the run is interrupted and continues from validation `.1`.
    fn left(every: u64, count: u64, again: &[(u64, u64)]) -> Vec<u64> {
        let mut list: Vec<u64> = Vec::new();
        let validate = |i: u64, list: &mut Vec<u64>| {
            list.retain(|&other| other < i);
            list.push(i);
            let gone = surplus(list);
            list.retain(|i| !gone.contains(i));
            assert!(list.len() as u64 <= MAX_VERSIONS, "{} at {i}", list.len());
        };
        for k in 1..=count {
            validate(k * every, &mut list);
            for &(_, back) in again.iter().filter(|(at, _)| *at == k) {
                (back..=k).for_each(|k| validate(k * every, &mut list));
            }
        }
        list
    }

    #[test]
    fn the_first_the_newest_and_a_bounded_selection_stay() {
        for (every, count) in [(1, 2600), (5000, 80), (5000, 1), (7, 49), (100, 333)] {
            let list = left(every, count, &[]);
            assert_eq!(
                (list.first(), list.last()),
                (Some(&every), Some(&(count * every)))
            );
            assert!(
                list.len() as u64 >= count.min(MAX_VERSIONS / 4),
                "{} of {count}",
                list.len()
            );
            // An interruption changes nothing.
            assert_eq!(
                left(
                    every,
                    count,
                    &[(count / 2, count / 3 + 1), (count, count / 2 + 1)]
                ),
                list
            );
        }
    }

    #[test]
    fn files_that_are_no_previews_are_refused_before_they_are_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let refused = |words: &str| {
            let error = format!("{:#}", read_preview(&path).unwrap_err());
            assert!(error.contains("a.png") && error.contains(words), "{error}");
        };
        RgbImage::new(SIDE + 1, 4).save(&path).unwrap();
        refused("257x4");
        write(&path, &RgbImage::new(300, 20)).unwrap();
        assert_eq!(read_preview(&path).unwrap().1, (SIDE, 20));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        refused("cannot be shown");
        #[cfg(unix)]
        {
            std::fs::remove_file(&path).unwrap();
            crate::sys::symlink_file(Path::new("/dev/zero"), &path).unwrap();
            refused("no regular file");
        }
    }
}
