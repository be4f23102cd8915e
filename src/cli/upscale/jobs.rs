//! Which images are upscaled, into which files. Depends on the dataset's listing and on `encode`.
//! Promises that no two results have one name, that no result takes the place of an image that is
//! read, and that whatever is left out is said.

use anyhow::{Context, Result, ensure};
use paragon::dataset::encode::Format;
use paragon::dataset::scan::{ENDINGS, ImageFile, list_images};
use paragon::support::files::bounded_name;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// One image to upscale.
pub struct Job {
    pub input: PathBuf,
    pub output: PathBuf,
    pub format: Format,
}

/// An image that could not be upscaled.
pub struct Failed {
    pub input: PathBuf,
    pub reason: String,
}

/// What is to be done.
#[derive(Default)]
pub struct Jobs {
    pub jobs: Vec<Job>,
    /// Images of which the listing alone says that they cannot be read.
    pub failed: Vec<Failed>,
    /// What takes no part and why, a line each.
    pub left_out: Vec<String>,
    /// Results that have another name than their image, a line each.
    pub renamed: Vec<String>,
}

/// The job of a single image; `output` may be a folder.
pub fn of_file(input: &Path, output: &Path, format: Option<Format>) -> Result<Jobs> {
    let (output, format) = if output.is_dir() {
        let stem = input.file_stem().context("the input has no file name")?;
        let format = format.unwrap_or(Format::Png);
        // `a.v1` becomes `a.v1.png`: what stands behind a dot need not be an ending
        let mut name = stem.to_os_string();
        name.push(format.ending());
        (output.join(name), format)
    } else {
        let named = Format::of(output);
        if let (Some(named), Some(wanted)) = (named, format) {
            ensure!(
                named == wanted,
                "{} is named as {} and --format says {}; give one of them",
                output.display(),
                &named.ending()[1..],
                &wanted.ending()[1..]
            );
        }
        let endings = Format::ENDINGS;
        let format = format.or(named);
        let text = || {
            format!(
                "{} has no ending of an image format; use one of {endings}, or give --format",
                output.display()
            )
        };
        (output.to_path_buf(), format.with_context(text)?)
    };
    ensure!(
        !same(input, &output),
        "{} would be overwritten by its result; name another output",
        input.display()
    );
    if std::fs::metadata(&output).is_ok_and(|about| !about.is_file()) {
        ensure!(
            !format.goes_back(),
            "{} is no regular file, and {} goes back in the file while it is written; give --format png, jpg or webp",
            output.display(),
            &format.ending()[1..]
        );
    }
    Ok(Jobs {
        jobs: vec![Job {
            input: input.to_path_buf(),
            output,
            format,
        }],
        ..Jobs::default()
    })
}

/// The jobs of a folder; with `recursive`, of the folders within it as well, which the results
/// keep.
pub fn of_folder(input: &Path, output: &Path, format: Format, recursive: bool) -> Result<Jobs> {
    ensure!(
        !same(input, output),
        "results in {} would overwrite its images; name another folder",
        input.display()
    );
    ensure!(
        !output.exists() || output.is_dir(),
        "{} is a file, and the results of a folder go into a folder; name another place",
        output.display()
    );
    let mut found = list_images(input, recursive)?;
    let mut todo = Jobs::default();
    let seen = found.images.len();
    if let Ok(own) = output.canonicalize() {
        found.images.retain(|image| {
            !image
                .path
                .canonicalize()
                .is_ok_and(|path| path.starts_with(&own))
        });
    }
    let count = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let results = seen - found.images.len();
    if results > 0 {
        todo.left_out.push(format!(
            "{} left out: in {}, where the results go",
            count(results as u64, "image"),
            output.display()
        ));
    }
    todo.left_out
        .extend(found.left_out.iter().map(ToString::to_string));
    if found.subfolders > 0 {
        todo.left_out.push(format!(
            "{} left out: within {} (give --recursive to enter them)",
            count(found.subfolders, "folder"),
            input.display()
        ));
    }
    if found.ignored > 0 {
        todo.left_out.push(format!(
            "{} left out: without the ending of an image",
            count(found.ignored, "file")
        ));
    }
    todo.failed
        .extend(found.rejected.into_iter().map(|r| Failed {
            input: r.path,
            reason: r.reason,
        }));
    ensure!(
        !found.images.is_empty() || !todo.failed.is_empty(),
        "{} holds no images ({}){}",
        input.display(),
        ENDINGS.join(", "),
        todo.left_out
            .iter()
            .map(|what| format!("; {what}"))
            .collect::<String>()
    );
    let inputs: HashSet<PathBuf> = found
        .images
        .iter()
        .filter_map(|image| image.path.canonicalize().ok())
        .collect();
    for (image, name) in found.images.iter().zip(result_names(&found.images, format)) {
        if name != image.name {
            let (own, new) = (image.path.display(), file_of(&name, format));
            todo.renamed.push(format!(
                "{own}: its result is {}, since another image has the name {}",
                new.display(),
                image.name
            ));
        }
        let output = output.join(file_of(&name, format));
        if output
            .canonicalize()
            .is_ok_and(|path| inputs.contains(&path))
        {
            let reason = format!(
                "its result {} would overwrite an image that is read; name another folder",
                output.display()
            );
            todo.failed.push(Failed {
                input: image.path.clone(),
                reason,
            });
            continue;
        }
        todo.jobs.push(Job {
            input: image.path.clone(),
            output,
            format,
        });
    }
    Ok(todo)
}

/// `a/b` as the path of a file, its name bounded.
pub fn file_of(name: &str, format: Format) -> PathBuf {
    let (folders, last) = name.rsplit_once('/').unwrap_or(("", name));
    Path::new(folders).join(bounded_name(last, format.ending()))
}

/// A name for the result of each image, no two alike. Of several images that differ in their
/// endings alone the one that already has the results' ending, or else the first, keeps its name;
/// the others carry their ending in it: `a_jpg`.
fn result_names(images: &[ImageFile], format: Format) -> Vec<String> {
    let mut keeper: HashMap<&str, usize> = HashMap::new();
    for (i, image) in images.iter().enumerate() {
        let kept = *keeper.entry(&image.name).or_insert(i);
        let is_result = |i: usize| Format::of(&images[i].path) == Some(format);
        if !is_result(kept) && is_result(i) {
            keeper.insert(&image.name, i);
        }
    }
    let mut taken: HashSet<String> = keeper.keys().map(ToString::to_string).collect();
    let name_of = |(i, image): (usize, &ImageFile)| {
        if keeper.get(image.name.as_str()) == Some(&i) {
            return image.name.clone();
        }
        let ending = image
            .path
            .extension()
            .map(|e| e.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        let plain = format!("{}_{ending}", image.name);
        let names =
            std::iter::once(plain.clone()).chain((2..).map(|n: u64| format!("{plain}_{n}")));
        names
            .into_iter()
            .find(|name| taken.insert(name.clone()))
            .unwrap_or(plain)
    };
    images.iter().enumerate().map(name_of).collect()
}

/// Whether two paths lead to one file or folder.
fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(x), Ok(y)) if x == y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str], format: Format) -> Vec<String> {
        let mut images: Vec<ImageFile> = files
            .iter()
            .map(|file| ImageFile {
                name: file.rsplit_once('.').unwrap().0.to_string(),
                path: PathBuf::from(file),
            })
            .collect();
        images.sort();
        result_names(&images, format)
    }

    #[test]
    fn no_two_results_have_one_name() {
        assert_eq!(
            names(&["a.jpg", "a.png", "b.jpg"], Format::Png),
            ["a_jpg", "a", "b"]
        );
        assert_eq!(names(&["a.jpg", "a.png"], Format::Jpg), ["a", "a_png"]);
        // no PNG among them; a name that is taken by another image
        assert_eq!(
            names(&["a.bmp", "a.jpg", "a_jpg.png"], Format::Png),
            ["a", "a_jpg_2", "a_jpg"]
        );
        assert_eq!(
            names(&["a.JPG", "a.jpg", "a.png"], Format::Png),
            ["a_jpg", "a_jpg_2", "a"]
        );
        assert_eq!(
            names(&["d/a.jpg", "d/a.png", "d_a.png"], Format::Png),
            ["d/a_jpg", "d/a", "d_a"]
        );
        assert_eq!(file_of("d/a.v1", Format::Webp), Path::new("d/a.v1.webp"));
        assert!(
            file_of(&"x".repeat(255), Format::Png)
                .to_str()
                .unwrap()
                .len()
                <= 255
        );
    }
}
