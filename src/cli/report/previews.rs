//! The images of the page: what the network made of the same crops at different iterations.

use super::facts::RunFacts;
use crate::cli::flags::tell;
use paragon::report::page::{Preview, Strip};
use paragon::support::text::one_line;
use paragon::train::{KeptPreview, kept_previews, read_preview};
use std::path::{Path, PathBuf};

fn warn(text: String) {
    tell(format_args!("warning: {text}; it is left out"));
}

/// A version of an image: its name, and the PNG. `None`, with a warning, for one that cannot be
/// shown.
fn version(image: &KeptPreview, (iteration, path): &(u64, PathBuf)) -> Option<(String, Vec<u8>)> {
    match read_preview(path) {
        Ok((png, size)) if size == image.size => Some((format!("iteration {iteration}"), png)),
        Ok((_, size)) => {
            let (w, h) = image.size;
            warn(format!(
                "the preview {} has {}x{} pixels and its HR {w}x{h}",
                path.display(),
                size.0,
                size.1
            ));
            None
        }
        Err(error) => {
            warn(format!("{error:#}"));
            None
        }
    }
}

/// The images of a run, with the network's results up to iteration `reached`.
fn kept(run: &Path, reached: Option<u64>) -> Vec<KeptPreview> {
    let (mut kept, left_out) = kept_previews(run);
    left_out.into_iter().for_each(warn);
    for image in &mut kept {
        image
            .network
            .retain(|(i, _)| reached.is_none_or(|reached| *i <= reached));
    }
    kept
}

/// The previews of a run up to an iteration; one that cannot be shown is left out with a warning.
/// `baseline` names the image beside the network's results.
pub(super) fn of_run(run: &Path, reached: Option<u64>, baseline: &str) -> Vec<Preview> {
    let mut out = Vec::new();
    for mut image in kept(run, reached) {
        let mut network = std::mem::take(&mut image.network);
        let mut versions = vec![(baseline.to_string(), std::mem::take(&mut image.bicubic))];
        // After bicubic comes the newest version, so that the page opens with these two; the first,
        // the middle and the HR follow as choices.
        let newest = std::iter::from_fn(|| network.pop()).find_map(|kept| version(&image, &kept));
        versions.extend(newest);
        let middle = network.len() / 2;
        let early = network
            .iter()
            .enumerate()
            .filter(|(i, _)| *i == 0 || *i == middle);
        versions.extend(early.filter_map(|(_, kept)| version(&image, kept)));
        versions.push(("HR".to_string(), image.hr));
        let caption = "left and right of the line: choose what is compared".to_string();
        out.push(Preview {
            name: format!("{}:", one_line(image.name)),
            caption,
            versions,
            size: image.size,
        });
    }
    out
}

/// The crops that at least two runs have, as each run's newest network makes them. Images are the
/// same if their HR crops are.
pub(super) fn side_by_side(runs: &[RunFacts], names: &[String]) -> Vec<Strip> {
    let all: Vec<Vec<KeptPreview>> = runs
        .iter()
        .map(|run| kept(&run.folder, run.reached))
        .collect();
    let mut out: Vec<Strip> = Vec::new();
    for (at, image) in all
        .iter()
        .enumerate()
        .flat_map(|(at, list)| list.iter().map(move |i| (at, i)))
    {
        let is_shown = all[..at].iter().flatten().any(|other| other.hr == image.hr);
        if is_shown {
            continue;
        }
        let results: Vec<(String, Vec<u8>)> = all
            .iter()
            .zip(names)
            .filter_map(|(list, name)| {
                let own = list.iter().find(|other| other.hr == image.hr)?;
                let (when, png) = own
                    .network
                    .iter()
                    .rev()
                    .find_map(|kept| version(own, kept))?;
                Some((format!("{name}, {when}"), png))
            })
            .collect();
        if results.len() < 2 {
            continue;
        }
        let baseline = vec![(runs[at].baseline.to_string(), image.bicubic.clone())];
        let hr = vec![("HR".to_string(), image.hr.clone())];
        out.push(Strip {
            name: one_line(&image.name),
            versions: [baseline, results, hr].concat(),
            size: image.size,
        });
    }
    out
}
