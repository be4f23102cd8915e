//! Finds the images of a data set and pairs each HR image with its LQ image. It goes by names; if
//! names do not show what folders hold, it reads the headers of a few images. Depends on `decode`
//! (for these headers) and `failure`. Promises the same order on every machine, and that every
//! image file below the root of the data set is paired, rejected with a reason, or counted with the
//! reason why it was left out.
//!
//! `listing` lists image files, `names` interprets names, `folders` chooses the folders of the two
//! sides, `pairing` pairs, and `alike` finds small copies that no name shows.

mod alike;
mod folders;
mod ignored;
mod listing;
mod names;
mod pairing;

pub use ignored::IgnoredFiles;
pub use listing::{
    ENDINGS, ImageFile, LeftOut, Listing, Reason, Reject, is_image_name, list_images,
};
pub use names::photograph;

use anyhow::{Result, bail, ensure};
use folders::{SideFolders, check_no_sides_below, choose, same_folder};
use listing::{FolderId, FolderLister, LeftOuts};
use pairing::Sides;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// One HR image, with its LQ partner where the data set has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Path below the HR folder without its extension, with `/` between folders.
    pub name: String,
    /// The HR file.
    pub hr: PathBuf,
    /// The LQ file; `None` if it is made from the HR, at scale 1 only by a degradation recipe.
    pub lq: Option<PathBuf>,
}

/// The scale of restoration: both sides of a pair have the same size. No filter makes an LQ from an
/// HR, because resizing to the same size changes nothing.
pub const RESTORATION_SCALE: u32 = 1;

/// The result of [`scan`]. Every image file counts once: `hr_files + lq_files` is the number of
/// files named in `sources` (one or two each) plus `rejected.len()`; all others below the root are
/// counted in `left_out`.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Sorted by name, byte by byte; never empty.
    pub sources: Vec<Source>,
    /// Sorted by path.
    pub rejected: Vec<Reject>,
    /// What was left out by rule, one entry for each reason.
    pub left_out: Vec<LeftOut>,
    /// The folder of the HR images.
    pub hr_root: PathBuf,
    /// The folder of the LQ images; `None` if they are made from the HR.
    pub lq_root: Option<PathBuf>,
    /// Number of image files below `hr_root`, or those of the HR side if both sides share a folder.
    pub hr_files: usize,
    /// Number of image files below `lq_root`, likewise.
    pub lq_files: usize,
    /// Number of files in these folders without the ending of an image; hidden ones are not
    /// counted.
    pub ignored: usize,
    /// The same by ending.
    pub ignored_files: IgnoredFiles,
}

/// Options of [`scan`].
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// HR side over LQ side; folders named for another scale are left out.
    pub scale: u32,
    /// The HR folder; `None` = it is found by its name. A path that does not exist is tried below
    /// the root of the data set.
    pub hr: Option<PathBuf>,
    /// The LQ folder, likewise. If it is the HR folder, the ends of names separate the sides.
    pub lq: Option<PathBuf>,
    /// The output folder of the command. It is left out, since it may be inside the data set.
    pub out: Option<PathBuf>,
}

/// Finds the images below `root` and pairs them.
///
/// Folders are recognized by their names, in upper or lower case: `hr`, `gt`, `HR_x2`, `GTmod12`,
/// `DIV2K_train_HR` beside `lq`, `lr_x2_bicubic`, `LRbicx2`, `DIV2K_train_LR_bicubic/X2` ... If
/// `root` has no such folders, it is itself the HR folder and the LQ is made from the HR; at scale
/// 1, where it cannot be made, such a data set is refused. The two images of a pair have the same
/// relative path without extension, apart from words for the side, the scale or the method at its
/// end (`0001x2`, `0001_LR`, `0001_bicLRx2`). Both sides may also be in one folder; then these
/// words separate them.
///
/// # Errors
/// A folder that is missing or cannot be listed; names that leave open which images are meant (the
/// error says what to type); no LQ images at scale 1; no usable image.
pub fn scan(root: &Path, options: &ScanOptions) -> Result<Scan> {
    scan_with(root, options, true)
}

/// As [`scan`], for a command that can use HR images alone at scale 1 too.
///
/// # Errors
/// Those of [`scan`] apart from missing LQ images.
pub fn scan_for_hr(root: &Path, options: &ScanOptions) -> Result<Scan> {
    scan_with(root, options, false)
}

/// [`scan`]; `filters`: an LQ that is not there could only be made by a filter.
fn scan_with(root: &Path, options: &ScanOptions, filters: bool) -> Result<Scan> {
    let needs_lq = filters && options.scale == RESTORATION_SCALE;
    ensure!(
        root.exists(),
        "{} does not exist: expected a folder of images",
        root.display()
    );
    ensure!(
        root.is_dir(),
        "{} is a file: expected a folder of images",
        root.display()
    );
    let chosen = choose(root, options)?;
    let Listings { hr, lq, outside } = list(root, &chosen, options)?;
    let mut left_out = LeftOuts::default();
    for listing in [Some(&hr), lq.as_ref(), Some(&outside)]
        .into_iter()
        .flatten()
    {
        left_out.merge(&listing.left_out);
    }
    let SideFolders {
        hr: hr_root,
        lq: mut lq_root,
    } = chosen;
    let forced = lq_root.is_some() && lq.is_none();
    let Sides { hr, lq } = match lq {
        Some(lq) => Sides { hr, lq: Some(lq) },
        None if options.hr.is_some() && !forced => Sides { hr, lq: None },
        None => {
            if !forced {
                check_alone(root, &hr_root, &outside)?;
                check_no_sides_below(&hr_root, &hr)?;
            }
            let sides =
                pairing::split_by_ending(&hr_root, hr, options.scale, forced, &mut left_out)?;
            match sides.lq {
                Some(_) => lq_root = Some(hr_root.clone()),
                // at scale 1 the data set is refused below, with another message
                None if needs_lq => {}
                None => alike::check_sizes(&hr_root, &sides.hr)?,
            }
            sides
        }
    };
    count_outside(root, &outside, &mut left_out);
    let left_out = left_out.into_vec();
    let (hr_files, lq_files) = (hr.files(), lq.as_ref().map_or(0, Listing::files));
    let mut ignored_files = hr.ignored_files.clone();
    lq.iter()
        .for_each(|lq| ignored_files.merge(&lq.ignored_files));
    let ignored = ignored_files.count() as usize;
    let mut hint = format!(
        "looked for {} in it and its folders; {ignored} other files",
        ENDINGS.join(", ")
    );
    if ignored > 0 {
        hint += &format!(" ({ignored_files})");
    }
    for left in &left_out {
        hint += &format!("; {left}");
    }
    ensure!(hr_files > 0, "no images in {} ({hint})", hr_root.display());
    let lq_folder = lq_root.as_deref().map(|folder| (folder, lq_files));
    check_lq(root, needs_lq, lq_folder, &hint)?;
    let (sources, mut rejected) = match lq {
        Some(lq) => pairing::pair(hr, lq, options.scale),
        None => pairing::hr_alone(hr),
    };
    rejected.sort_by(|a, b| a.path.cmp(&b.path));
    if sources.is_empty() {
        let shown: Vec<String> = rejected
            .iter()
            .take(SHOWN)
            .map(|r| format!("{}: {}", r.path.display(), r.reason))
            .collect();
        bail!(
            "no image of {} can be used; {} were rejected, among them\n  {}",
            root.display(),
            rejected.len(),
            shown.join("\n  ")
        );
    }
    Ok(Scan {
        sources,
        rejected,
        left_out,
        hr_root,
        lq_root,
        hr_files,
        lq_files,
        ignored,
        ignored_files,
    })
}

/// Refuses an LQ folder without images, and a data set without an LQ folder where one is needed.
/// `lq` is the folder with its number of image files; `hint` says what was looked for.
fn check_lq(root: &Path, needs_lq: bool, lq: Option<(&Path, usize)>, hint: &str) -> Result<()> {
    match lq {
        Some((folder, 0)) if needs_lq => {
            bail!("no images in {} ({hint})", folder.display())
        }
        Some((folder, 0)) => bail!(
            "no images in {} ({hint}); remove the folder to have the LQ made from the HR",
            folder.display()
        ),
        None if needs_lq => bail!(
            "{root} has no LQ images, and at scale 1 none can be made from the HR (resizing to the same size changes nothing): put HR and \
             LQ images of equal size into folders hr and lq below {root}, or name the folder of the LQ images with --lq. \
             `paragon shard --degrade jpeg` makes the LQ of restoration from the HR",
            root = root.display()
        ),
        _ => Ok(()),
    }
}

/// Rejected files that are named if no image is usable.
const SHOWN: usize = 4;

/// The content of the chosen folders, and everything else below the root.
struct Listings {
    hr: Listing,
    /// `None` if there is no LQ folder, or it is the HR folder.
    lq: Option<Listing>,
    outside: Listing,
}

fn list(root: &Path, chosen: &SideFolders, options: &ScanOptions) -> Result<Listings> {
    let out = options
        .out
        .as_deref()
        .and_then(|folder| FolderId::of(folder).ok());
    let lq_root = chosen
        .lq
        .as_deref()
        .filter(|lq| !same_folder(&chosen.hr, lq));
    let mut all = HashSet::new();
    let mut list = |folder: &Path, except: Option<&Path>| -> Result<Listing> {
        let entered = except
            .and_then(|e| FolderId::of(e).ok())
            .into_iter()
            .collect();
        let mut lister = FolderLister {
            entered,
            out: out.clone(),
            lenient: false,
        };
        let listing = lister.list(folder, true)?;
        all.extend(lister.entered);
        Ok(listing)
    };
    let hr = list(&chosen.hr, lq_root)?;
    let lq = lq_root
        .map(|folder| list(folder, Some(&chosen.hr)))
        .transpose()?;
    let outside = match FolderId::of(root) {
        Ok(id) if !all.contains(&id) => FolderLister {
            entered: all,
            out,
            lenient: true,
        }
        .list(root, true)?,
        _ => Listing::default(),
    };
    Ok(Listings { hr, lq, outside })
}

/// Refuses a folder that was chosen as the HR folder by its name alone if other folders hold images
/// too: `HR` may be one of `DE FR HR IT`.
fn check_alone(root: &Path, hr_root: &Path, outside: &Listing) -> Result<()> {
    let Some(first) = outside.images.first() else {
        return Ok(());
    };
    bail!(
        "{hr} is named for HR images, but no LQ folder lies beside it, and other folders hold images too ({count}, such as {first}): give \
         {hr} itself to use it alone, --hr {root} to take all images of {root} as HR, or name the LQ folder with --lq",
        hr = hr_root.display(),
        count = outside.images.len(),
        first = first.path.display(),
        root = root.display()
    )
}

/// Counts the images outside the chosen folders; those in folders that are named for another side
/// or scale get a reason of their own.
fn count_outside(root: &Path, outside: &Listing, left_out: &mut LeftOuts) {
    let paths = outside
        .images
        .iter()
        .map(|p| &p.path)
        .chain(outside.rejected.iter().map(|r| &r.path));
    for path in paths {
        let folders = path
            .strip_prefix(root)
            .ok()
            .and_then(Path::parent)
            .unwrap_or(Path::new(""));
        let is_named = folders.iter().any(|name| {
            let said = names::label(&name.to_string_lossy());
            said.side.is_some() || said.scale.is_some()
        });
        left_out.add(
            if is_named {
                Reason::OtherScale
            } else {
                Reason::Outside
            },
            1,
            0,
            path,
        );
    }
}
