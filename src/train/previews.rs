//! A few images of every validation, kept beside the run: what the network makes of the same
//! places as it learns. Depends on `files` and PNG encoding. Promises small whole files, a bounded
//! number of them, and the same ones for the same run; and to remove only files that it has named
//! itself.

use crate::inference::eval::{ImagePair, ImageResult};
use crate::support::files::{
    bounded_name, create_folder, open_regular, remove_partials, write_atomic,
};
use anyhow::{Context, Result, ensure};
use image::{ImageFormat, ImageReader, Limits, RgbImage, imageops};
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

/// Images that are kept: the first of the validation folder.
pub const PICTURES: usize = 4;
/// The network's versions of one image that are kept at most.
pub const MOST_VERSIONS: u64 = 50;
/// Largest side of what is kept, HR pixels, out of the middle of the image.
const SIDE: u32 = 256;
/// Bytes of one preview at most, where PNG finds nothing to save.
pub const FILE_BYTES: u64 = (SIDE * (3 * SIDE + 1)) as u64 + (4 << 10);
/// Bytes that are read of a preview at most, and that decoding it may take: the file may be
/// somebody else's.
const MAX_READ_BYTES: u64 = 1 << 20;
const MAX_DECODE_BYTES: u64 = 16 << 20;
/// The original, and what bicubic makes of the LQ.
const BESIDE: [&str; 2] = ["hr.png", "bicubic.png"];

/// One kept image of a run.
pub struct Kept {
    /// Its folder's name.
    pub name: String,
    /// HR as PNG.
    pub hr: Vec<u8>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Bicubic of the LQ as PNG.
    pub bicubic: Vec<u8>,
    /// Iterations and the network's images, in order; [`read_picture`] takes one.
    pub network: Vec<(u64, PathBuf)>,
}

/// Folder of all previews of a run.
pub fn folder(run: &Path) -> PathBuf {
    run.join("previews")
}

/// Keeps the network's image of one validation image (number `index`), and the first time the
/// HR and bicubic beside it.
///
/// # Errors
/// When a file cannot be written.
pub fn keep(
    run: &Path,
    iteration: u64,
    index: usize,
    result: &ImageResult,
    ours: &RgbImage,
    bicubic: &RgbImage,
    pair: &ImagePair,
) -> Result<()> {
    if index >= PICTURES {
        return Ok(());
    }
    let plain: String = result
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
    for (name, picture) in BESIDE.into_iter().zip([&pair.hr, bicubic]) {
        if !place.join(name).exists() {
            write(&place.join(name), picture)?;
        }
    }
    write(&place.join(format!("{iteration:08}.png")), ours)?;
    let versions = versions(&place);
    for iteration in surplus(&versions.iter().map(|(i, _)| *i).collect::<Vec<_>>()) {
        for (_, path) in versions.iter().filter(|(i, _)| *i == iteration) {
            let _ = std::fs::remove_file(path); // an old preview too many does no harm
        }
    }
    Ok(())
}

/// Iterations whose previews are too many, of a list in order. The first and the newest stay, and
/// between them the first of every so many iterations: a power of two, so that what is dropped
/// early would be dropped later as well, and a run that was interrupted keeps the same.
fn surplus(iterations: &[u64]) -> Vec<u64> {
    let Some(&newest) = iterations.last() else {
        return Vec::new();
    };
    // the newest may stand beside the first of its own stretch
    let mut shift = 0;
    while newest >> shift >= MOST_VERSIONS - 1 {
        shift += 1;
    }
    let alike = |pair: &[u64]| {
        (pair[0] >> shift == pair[1] >> shift && pair[1] != newest).then_some(pair[1])
    };
    iterations.windows(2).filter_map(alike).collect()
}

/// The network's versions in an image's folder, in order.
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

/// The folders of images, in order; links are none.
fn places(run: &Path) -> Vec<PathBuf> {
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

/// Bytes that the previews of a run take.
pub fn bytes(run: &Path) -> u64 {
    places(run)
        .iter()
        .map(|place| crate::support::files::bytes_in(place))
        .sum()
}

/// Removes what a killed process left half-written, and what it kept of iterations after
/// `iteration`, which are done again.
pub fn cut_back(run: &Path, iteration: u64) {
    for place in places(run) {
        remove_partials(&place);
        for (_, path) in versions(&place).into_iter().filter(|(i, _)| *i > iteration) {
            let _ = std::fs::remove_file(path); // the next validation writes over it
        }
    }
}

/// Removes all previews of a run. Folders that hold something else stay.
pub fn clear(run: &Path) {
    for place in places(run) {
        remove_partials(&place);
        let own = BESIDE
            .iter()
            .map(|name| place.join(name))
            .chain(versions(&place).into_iter().map(|(_, path)| path));
        own.for_each(|path| drop(std::fs::remove_file(path)));
        let _ = std::fs::remove_dir(place);
    }
}

fn write(path: &Path, picture: &RgbImage) -> Result<()> {
    let (w, h) = (picture.width().min(SIDE), picture.height().min(SIDE));
    let middle = imageops::crop_imm(
        picture,
        (picture.width() - w) / 2,
        (picture.height() - h) / 2,
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

/// What a run has kept, and what is left out of it and why: a run may have been killed while it
/// wrote. Empty where there was no validation.
pub fn kept(run: &Path) -> (Vec<Kept>, Vec<String>) {
    let (mut list, mut left_out) = (Vec::new(), Vec::new());
    for place in places(run) {
        match read(&place) {
            Ok(kept) => list.push(kept),
            Err(error) => left_out.push(format!("{error:#}")),
        }
    }
    (list, left_out)
}

fn read(place: &Path) -> Result<Kept> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let name = name
        .split_once('_')
        .map_or(name.as_ref(), |(_, rest)| rest)
        .to_string();
    let [(hr, size), (bicubic, _)] = [
        read_picture(&place.join(BESIDE[0]))?,
        read_picture(&place.join(BESIDE[1]))?,
    ];
    Ok(Kept {
        name,
        hr,
        size,
        bicubic,
        network: versions(place),
    })
}

/// The bytes of a preview that can be shown, and its width and height.
///
/// # Errors
/// When it cannot be read, or is no whole PNG of the size of a preview.
pub fn read_picture(path: &Path) -> Result<(Vec<u8>, (u32, u32))> {
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

    /// What is left of previews every so many iterations, with some of them done twice after an
    /// interruption.
    fn left(every: u64, count: u64, again: &[(u64, u64)]) -> Vec<u64> {
        let mut list: Vec<u64> = Vec::new();
        let validate = |i: u64, list: &mut Vec<u64>| {
            list.retain(|&other| other < i);
            list.push(i);
            let gone = surplus(list);
            list.retain(|i| !gone.contains(i));
            assert!(list.len() as u64 <= MOST_VERSIONS, "{} at {i}", list.len());
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
                list.len() as u64 >= count.min(MOST_VERSIONS / 4),
                "{} of {count}",
                list.len()
            );
            // an interruption changes nothing
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
    fn pictures_that_are_none_are_refused_before_they_are_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let refused = |words: &str| {
            let error = format!("{:#}", read_picture(&path).unwrap_err());
            assert!(error.contains("a.png") && error.contains(words), "{error}");
        };
        RgbImage::new(SIDE + 1, 4).save(&path).unwrap();
        refused("257x4");
        write(&path, &RgbImage::new(300, 20)).unwrap();
        assert_eq!(read_picture(&path).unwrap().1, (SIDE, 20));
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
