//! Which images are upscaled, and the files that their results are written to. Depends on the
//! dataset's listing and on `encode`. Promises that no two results have the same name, that no
//! result overwrites an image that is read, and that everything that is left out is reported.

use anyhow::{Context, Result, ensure};
use paragon::dataset::encode::Format;
use paragon::dataset::scan::{ENDINGS, ImageFile, Listing, list_images};
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

/// All jobs of a command, and the images that have none.
#[derive(Default)]
pub struct Jobs {
    pub jobs: Vec<Job>,
    /// Images that the listing has rejected already.
    pub failed: Vec<Failed>,
    /// One line for each reason to leave something out.
    pub left_out: Vec<String>,
    /// One line for each result whose name differs from its image's.
    pub renamed: Vec<String>,
}

/// The job of a single image; `output` may be a folder.
pub fn of_file(input: &Path, output: &Path, format: Option<Format>) -> Result<Jobs> {
    let (output, format) = if output.is_dir() {
        let stem = input.file_stem().context("the input has no file name")?;
        let format = format.unwrap_or(Format::Png);
        // `a.v1` becomes `a.v1.png`: the text after a dot need not be the ending of a format.
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

/// The jobs of a folder and, with `recursive`, of the folders below it. The results go into the same
/// subfolders of `output`.
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
    let mut listing = list_images(input, recursive)?;
    let results = drop_results(&mut listing, output);
    let mut todo = Jobs {
        left_out: left_out_lines(&listing, input, output, results),
        ..Jobs::default()
    };
    todo.failed
        .extend(listing.rejected.into_iter().map(|r| Failed {
            input: r.path,
            reason: r.reason,
        }));
    ensure!(
        !listing.images.is_empty() || !todo.failed.is_empty(),
        "{} holds no images ({}){}",
        input.display(),
        ENDINGS.join(", "),
        todo.left_out
            .iter()
            .map(|line| format!("; {line}"))
            .collect::<String>()
    );
    todo.add_images(&listing.images, output, format);
    Ok(todo)
}

/// Removes the images within the output folder, which are results of an earlier command; returns
/// their number.
fn drop_results(listing: &mut Listing, output: &Path) -> usize {
    let Ok(output) = output.canonicalize() else {
        return 0;
    };
    let is_result = |image: &ImageFile| {
        let path = image.path.canonicalize();
        path.is_ok_and(|path| path.starts_with(&output))
    };
    let count = listing.images.len();
    listing.images.retain(|image| !is_result(image));
    count - listing.images.len()
}

/// A line for each reason why something in the folder `input` is left out. `results` images were
/// left out because they are in `output`.
fn left_out_lines(listing: &Listing, input: &Path, output: &Path, results: usize) -> Vec<String> {
    let count = |n: u64, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let mut lines = Vec::new();
    if results > 0 {
        lines.push(format!(
            "{} left out: in {}, where the results go",
            count(results as u64, "image"),
            output.display()
        ));
    }
    lines.extend(listing.left_out.iter().map(ToString::to_string));
    if listing.subfolders > 0 {
        lines.push(format!(
            "{} left out: within {} (--no-recursive)",
            count(listing.subfolders, "folder"),
            input.display()
        ));
    }
    if listing.ignored > 0 {
        let files = count(listing.ignored_files.count(), "file");
        let kinds = listing.ignored_files.kinds();
        lines.push(format!("{files} left out: {kinds}"));
    }
    lines
}

impl Jobs {
    /// Adds a job for each image whose result in the folder `output` overwrites no image.
    fn add_images(&mut self, images: &[ImageFile], output: &Path, format: Format) {
        let inputs: HashSet<PathBuf> = images
            .iter()
            .filter_map(|image| image.path.canonicalize().ok())
            .collect();
        let is_input = |path: &Path| path.canonicalize().is_ok_and(|path| inputs.contains(&path));
        for (image, name) in images.iter().zip(result_names(images, format)) {
            let file = file_of(&name, format);
            if name != image.name {
                self.renamed.push(format!(
                    "{}: its result is {}, since another image has the name {}",
                    image.path.display(),
                    file.display(),
                    image.name
                ));
            }
            let input = image.path.clone();
            let output = output.join(file);
            if is_input(&output) {
                let reason = format!(
                    "its result {} would overwrite an image that is read; name another folder",
                    output.display()
                );
                self.failed.push(Failed { input, reason });
            } else {
                self.jobs.push(Job {
                    input,
                    output,
                    format,
                });
            }
        }
    }
}

/// The path `a/b.png` for the name `a/b`, with the file's name shortened to what systems allow.
pub fn file_of(name: &str, format: Format) -> PathBuf {
    let (folders, last) = name.rsplit_once('/').unwrap_or(("", name));
    Path::new(folders).join(bounded_name(last, format.ending()))
}

/// A different name for the result of each image. Among images whose names differ only in their
/// endings, one keeps its name: the one that has the ending of the results, or else the first. The
/// others get their own ending appended: `a_jpg`.
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
        // No PNG is among them, and another image has the name that `a.jpg` would get.
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
