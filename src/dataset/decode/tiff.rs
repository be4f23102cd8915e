//! Reads the pages of a TIFF: chooses the one with the image, and reads its orientation and colour
//! profile. The decoder limits a tag by the size of the image and drops a larger profile, so both
//! are read here. Promises that an endless chain of pages is not followed.

use super::super::colour::ColourTag;
use super::NotSupported;
use super::head::{MAX_PROFILE, Metadata, take, too_large};
use anyhow::{Context, Result, bail, ensure};
use image::metadata::Orientation;
use std::io::{BufRead, Seek, SeekFrom};

/// Largest number of pages that are searched for one that is not a thumbnail.
const MAX_PAGES: usize = 64;
/// Memory that the decoder may take for the numbers in the tags of a page, bytes. An image of 200
/// million pixels in tiles of 16 x 16 takes 50 million.
const MAX_TAGS: u64 = 64 << 20;
/// Memory that the decoder takes for one number, bytes.
const NUMBER: u64 = 32;

const SHORT: &str = "the TIFF data are cut short; fetch the file again";

/// One entry of a page: tag, type, count, and the value or its offset.
struct TagEntry {
    tag: u16,
    kind: u16,
    count: u64,
    value: [u8; 8],
}

/// Byte order and width of offsets.
#[derive(Clone, Copy)]
struct TiffLayout {
    little: bool,
    big: bool,
}

impl TiffLayout {
    fn number(self, bytes: &[u8]) -> u64 {
        let step = |n: u64, &b: &u8| n << 8 | u64::from(b);
        if self.little {
            bytes.iter().rev().fold(0, step)
        } else {
            bytes.iter().fold(0, step)
        }
    }

    /// Bytes of an offset.
    fn wide(self) -> usize {
        if self.big { 8 } else { 4 }
    }

    /// Reads the entries of the page at `at`, and the offset of the next page.
    fn page(self, file: &mut (impl BufRead + Seek), at: u64) -> Result<(Vec<TagEntry>, u64)> {
        file.seek(SeekFrom::Start(at))?;
        let count = self.number(&take(file, if self.big { 8 } else { 2 })?.context(SHORT)?);
        ensure!(
            count <= 4096,
            "the TIFF header is damaged: {count} tags in a page"
        );
        let size = 4 + 2 * self.wide();
        let table = take(file, count as usize * size)?.context(SHORT)?;
        let next = self.number(&take(file, self.wide())?.unwrap_or_default()); // some writers leave it out
        let entry = |b: &[u8]| {
            let mut value = [0; 8];
            value[..self.wide()].copy_from_slice(&b[4 + self.wide()..]);
            TagEntry {
                tag: self.number(&b[..2]) as u16,
                kind: self.number(&b[2..4]) as u16,
                count: self.number(&b[4..4 + self.wide()]),
                value,
            }
        };
        Ok((table.chunks_exact(size).map(entry).collect(), next))
    }

    /// The number of an entry that holds a single one.
    fn single(self, entry: &TagEntry) -> u64 {
        let width = match entry.kind {
            3 => 2,
            4 | 13 => 4,
            16 | 18 => 8,
            _ => 1,
        };
        self.number(&entry.value[..width])
    }
}

/// Whether a page is a small copy or a mask of another (NewSubfileType 254, or the older
/// SubfileType 255).
fn is_secondary(page: &[TagEntry], layout: TiffLayout) -> bool {
    page.iter().any(|e| match e.tag {
        254 => layout.single(e) & 0b101 != 0,
        255 => layout.single(e) == 2,
        _ => false,
    })
}

/// Chooses the page and reads its tags.
pub(super) fn read(file: &mut (impl BufRead + Seek)) -> Result<Metadata> {
    let mut start = take(file, 16)?;
    if start.is_none() {
        file.seek(SeekFrom::Start(0))?;
        start = take(file, 8)?;
    }
    let start = start.context(SHORT)?;
    let little = start.starts_with(b"II");
    let mut layout = TiffLayout { little, big: false };
    layout.big = layout.number(&start[2..4]) == 43;
    ensure!(!layout.big || start.len() == 16, SHORT);
    let place = layout.wide()..2 * layout.wide();
    let first = layout.number(&start[place.clone()]);
    ensure!(first != 0, "the TIFF has no page");
    let mut chosen = None;
    let mut at = first;
    let mut pages = 0;
    let mut hidden = false;
    while at != 0 && pages < MAX_PAGES {
        let (page, next) = match layout.page(file, at) {
            Ok(found) => found,
            Err(e) if pages == 0 => return Err(e),
            Err(e) if crate::support::failure::system_cause(&e).is_some() => return Err(e),
            Err(_) => break,
        };
        pages += 1;
        hidden |= page.iter().any(|e| e.tag == 330);
        if !is_secondary(&page, layout) {
            chosen = Some((page, at));
            break;
        }
        at = next;
    }
    let (page, at) = match chosen {
        Some(found) => found,
        // if there is only one page, its mark is ignored
        None if pages == 1 && !hidden => (layout.page(file, first)?.0, first),
        None => bail!(NotSupported(
            "every page of the TIFF is marked as a thumbnail or a mask; save the image itself as a file of its own"
                .into()
        )),
    };
    let mut head = Metadata::new();
    if at != first {
        head.replaced = start[..place.end].to_vec();
        let mut bytes = at.to_le_bytes()[..layout.wide()].to_vec();
        if !little {
            bytes.reverse();
        }
        head.replaced[place].copy_from_slice(&bytes);
        head.skipped = head.replaced.len() as u64;
    }
    // the tags that the decoder reads as lists of numbers
    let lists = page.iter().filter(
        |e| matches!(e.tag, 258 | 273 | 277..=279 | 284 | 317 | 320..=325 | 338 | 339 | 347 | 530),
    );
    let numbers: u64 = lists
        .map(|e| e.count.saturating_mul(NUMBER))
        .fold(0, u64::saturating_add);
    ensure!(
        numbers <= MAX_TAGS,
        "the TIFF header is damaged or cuts the image into too many strips ({} numbers)",
        numbers / NUMBER
    );
    head.bytes += numbers;
    for entry in &page {
        match entry.tag {
            274 => {
                let exif = u8::try_from(layout.single(entry))
                    .ok()
                    .and_then(Orientation::from_exif);
                head.orientation = exif.unwrap_or(Orientation::NoTransforms);
            }
            34675 => profile(file, entry, layout, &mut head)?,
            _ => {}
        }
    }
    Ok(head)
}

fn profile(
    file: &mut (impl BufRead + Seek),
    entry: &TagEntry,
    layout: TiffLayout,
    head: &mut Metadata,
) -> Result<()> {
    if !matches!(entry.kind, 1 | 2 | 6 | 7) {
        head.colours = ColourTag::Unusable(format!(
            "its colour profile is stored as numbers of type {}",
            entry.kind
        ));
    } else if entry.count > MAX_PROFILE as u64 {
        head.colours = too_large(entry.count);
    } else if entry.count <= layout.wide() as u64 {
        head.set_profile(entry.value[..entry.count as usize].to_vec());
    } else {
        file.seek(SeekFrom::Start(
            layout.number(&entry.value[..layout.wide()]),
        ))?;
        match take(file, entry.count as usize)? {
            Some(profile) => head.set_profile(profile),
            None => head.colours = ColourTag::Unusable("its colour profile is cut short".into()),
        }
    }
    Ok(())
}
