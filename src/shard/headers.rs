//! Reads the header of every image and decides what it would give: patches, memory, or the reason
//! for rejecting it. Depends on `dataset::decode`. Promises that no pixel is decoded, and that an
//! error of the system ends the run and never rejects an image.

use super::config::BuildConfig;
use super::degraded::PatchDegrader;
use super::format::Geometry;
use super::job::{Job, MEMORY, Rejected, TOO_SMALL, kind_of_fault};
use super::source_table::check_name;
use crate::dataset::decode;
use crate::dataset::scan::{RESTORATION_SCALE, Source};
use crate::support::failure;
use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Largest number of files named in the error if the system cannot read some.
const SHOWN: usize = 5;
/// Bytes of an RGB pixel.
const RGB: u64 = 3;

/// Left (or top) edges, in pixels, of the patches of `size` that cover a side of `length` at
/// `stride`. The last patch ends at the border.
pub fn positions(length: u32, size: u32, stride: u32) -> Vec<u32> {
    if length < size {
        return Vec::new();
    }
    let last = length - size;
    let mut out: Vec<u32> = (0..=last).step_by(stride.max(1) as usize).collect();
    if out.last() != Some(&last) {
        out.push(last);
    }
    out
}

/// Width and height of the LQ image of a pair, in pixels. If there is no LQ image, the HR is
/// cropped to a multiple of the scale. If there is one, the HR may have up to `scale - 1` pixels
/// more than `scale` times the LQ, which are cut off at the right and at the bottom: in some
/// published data sets the HR was not cropped. At scale 1 this allows no difference.
///
/// # Errors
/// The kind and the reason of the rejection: the sizes do not fit each other, or are too small.
pub fn lq_dimensions(
    hr: (u32, u32),
    lq: Option<(u32, u32)>,
    g: Geometry,
) -> Result<(u32, u32), (&'static str, String)> {
    let made = (hr.0 / g.scale, hr.1 / g.scale);
    let size = lq.unwrap_or(made);
    let wanted = (
        u64::from(size.0) * u64::from(g.scale),
        u64::from(size.1) * u64::from(g.scale),
    );
    let fits =
        |hr: u32, wanted: u64| (wanted..wanted + u64::from(g.scale)).contains(&u64::from(hr));
    if lq.is_some() && !(fits(hr.0, wanted.0) && fits(hr.1, wanted.1)) {
        let sizes = format!(
            "the HR is {}x{} and the LQ {}x{}",
            hr.0, hr.1, size.0, size.1
        );
        let reason = if g.scale == RESTORATION_SCALE {
            format!("{sizes}: at scale 1 both must have the same size")
        } else {
            format!(
                "{sizes}: at scale {} the HR should be {}x{}, or up to {} pixels more",
                g.scale,
                wanted.0,
                wanted.1,
                g.scale - 1
            )
        };
        return Err(("geometry", reason));
    }
    if size.0 < g.lq_size || size.1 < g.lq_size {
        let reason = format!(
            "the HR is {}x{}, the LQ {}x{}; one patch needs an HR of {}x{} (LQ {}x{})",
            hr.0,
            hr.1,
            size.0,
            size.1,
            g.hr(),
            g.hr(),
            g.lq(),
            g.lq()
        );
        return Err((TOO_SMALL, reason));
    }
    Ok(size)
}

/// Reads every header.
///
/// # Errors
/// The system cannot read some files. The error names the first few, after which the reading stops.
pub(super) fn read_all(
    sources: Vec<Source>,
    config: &BuildConfig,
    g: Geometry,
    pool: &rayon::ThreadPool,
) -> Result<Vec<Result<Job, Rejected>>> {
    let unread: Mutex<Vec<anyhow::Error>> = Mutex::new(Vec::new());
    let lock = || unread.lock().unwrap_or_else(PoisonError::into_inner);
    let one = |source| {
        if lock().len() >= SHOWN {
            return None;
        }
        read_one(source, config, g).map_err(|e| lock().push(e)).ok()
    };
    let outcomes: Vec<_> = pool.install(|| sources.into_par_iter().map(one).collect());
    let mut unread = unread.into_inner().unwrap_or_else(PoisonError::into_inner);
    unread.truncate(SHOWN); // several threads may have failed at the same moment
    let Some(first) = unread.pop() else {
        return Ok(outcomes.into_iter().flatten().collect());
    };
    let mut all: Vec<String> = unread
        .iter()
        .chain([&first])
        .map(|e| format!("  {e:#}"))
        .collect();
    all.sort();
    bail!(
        "{} cannot be read as a whole, because of errors of the system (disk, network, permissions, limits), which say nothing about the \
         images; nothing was recorded. Remove the cause and run the same command again, or take the files out:\n{}",
        config.dataset_text(),
        all.join("\n")
    )
}

/// Reads the headers of one image. The outer error is one of the system.
fn read_one(source: Source, config: &BuildConfig, g: Geometry) -> Result<Result<Job, Rejected>> {
    if let Err(e) = check_name(&source.name) {
        let reason = format!("its name below the data set cannot be used ({e:#}); rename it");
        return Ok(Err(Rejected {
            file: source.hr.clone(),
            kind: "name".into(),
            reason,
            lq_side: None,
        }));
    }
    let mut headers = [None, None];
    for (header, path) in headers
        .iter_mut()
        .zip([Some(&source.hr), source.lq.as_ref()])
    {
        let Some(path) = path else { continue };
        let read = || -> Result<(decode::ImageHeader, u64)> {
            let about = failure::retry(|| std::fs::metadata(path))
                .with_context(|| path.display().to_string())?;
            Ok((decode::read_header(path, &config.limits)?, about.len()))
        };
        match read() {
            Ok(found) => *header = Some(found),
            Err(e) if failure::system_cause(&e).is_some() => return Err(e),
            Err(e) => {
                return Ok(Err(Rejected::new(
                    path,
                    kind_of_fault(&e),
                    format!("{e:#}"),
                )));
            }
        }
    }
    let [hr, lq] = headers;
    let hr = hr.context("an image without a file")?;
    Ok(job_of(source, hr, lq, config, g))
}

/// Makes the job of an image from its headers, each with the size of its file in bytes.
fn job_of(
    source: Source,
    (hr, mut file_bytes): (decode::ImageHeader, u64),
    lq: Option<(decode::ImageHeader, u64)>,
    config: &BuildConfig,
    g: Geometry,
) -> Result<Job, Rejected> {
    let reject = Rejected::new;
    let size = hr.size;
    let pixels = |size: (u32, u32)| u64::from(size.0) * u64::from(size.1);
    // Memory is largest in one of four phases: the HR is decoded; the HR is measured; the LQ is
    // decoded while the HR is held; patches are cut from both.
    let mut decoding = file_bytes + hr.metadata_bytes + pixels(size) * hr.pixel_bytes;
    let mut cutting = if size.0 % g.scale == 0 && size.1 % g.scale == 0 {
        RGB * pixels(size)
    } else {
        2 * RGB * pixels(size) // the image and its cropped copy
    };
    decoding = decoding.max(RGB * pixels(size) + config.criteria.image_bytes(pixels(size)));
    cutting += config.criteria.patch_bytes(g);
    let mut lq_size = None;
    if let Some((lq, bytes)) = lq {
        lq_size = Some(lq.size);
        file_bytes += bytes;
        let decoding_lq = bytes + lq.metadata_bytes + pixels(lq.size) * lq.pixel_bytes;
        decoding = decoding.max(RGB * pixels(size) + decoding_lq);
        cutting += RGB * pixels(lq.size);
    } else if let Some(recipe) = config.degrade.as_ref().filter(|_| !config.hr_only) {
        cutting += PatchDegrader::bytes(recipe, g.scale, g.lq(), usize::MAX);
    } else if !config.hr_only {
        // the HR reduced along x only, then the LQ
        cutting += RGB * pixels(size) / u64::from(g.scale)
            + RGB * pixels(size) / u64::from(g.scale * g.scale);
    }
    let lq = lq_dimensions(size, lq_size, g).map_err(|(kind, reason)| {
        let lq = lq_size.unwrap_or((size.0 / g.scale, size.1 / g.scale));
        Rejected {
            lq_side: (kind == TOO_SMALL).then_some(lq.0.min(lq.1)),
            ..reject(&source.hr, kind, reason)
        }
    })?;
    let across = positions(lq.0, g.lq_size, config.stride).len() as u64;
    let pairs = across * positions(lq.1, g.lq_size, config.stride).len() as u64;
    let memory = decoding.max(cutting + pairs * g.record_bytes(config.lqs()) as u64);
    if memory > config.host_memory {
        let mib = |b: u64| b.div_ceil(1 << 20);
        let reason = format!(
            "needs about {} MiB of memory ({}x{} pixels, {pairs} pairs) where --host-memory allows {} MiB",
            mib(memory),
            size.0,
            size.1,
            mib(config.host_memory)
        );
        return Err(reject(&source.hr, MEMORY, reason));
    }
    Ok(Job {
        source,
        size,
        file_bytes,
        pairs,
        held_out: false,
        memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_cover_the_side(length in 1u32..400, size in 1u32..100, stride in 1u32..120) {
            let at = positions(length, size, stride);
            prop_assert_eq!(at.is_empty(), length < size);
            prop_assert!(at.windows(2).all(|w| w[0] < w[1]));
            if let (Some(&first), Some(&last)) = (at.first(), at.last()) {
                prop_assert_eq!(first, 0);
                prop_assert_eq!(last + size, length);
                // a gap is never wider than the stride asks for
                prop_assert!(at.windows(2).all(|w| w[1] - w[0] <= stride));
            }
        }
    }

    #[test]
    fn sizes_are_compared_before_cropping() {
        let g = Geometry {
            scale: 2,
            lq_size: 32,
        };
        assert_eq!(lq_dimensions((65, 67), None, g), Ok((32, 33)));
        assert_eq!(lq_dimensions((64, 64), Some((32, 32)), g), Ok((32, 32)));
        assert_eq!(lq_dimensions((129, 131), Some((64, 65)), g), Ok((64, 65)));
        assert!(lq_dimensions((63, 64), Some((32, 32)), g).is_err());
        let (kind, why) = lq_dimensions((66, 64), Some((32, 32)), g).unwrap_err();
        assert!(
            kind == "geometry"
                && why.contains("66x64")
                && why.contains("32x32")
                && why.contains("64x64"),
            "{why}"
        );
        let equal = Geometry {
            scale: 1,
            lq_size: 32,
        };
        assert_eq!(lq_dimensions((65, 67), Some((65, 67)), equal), Ok((65, 67)));
        for lq in [(64, 67), (65, 68), (32, 33)] {
            let (kind, why) = lq_dimensions((65, 67), Some(lq), equal).unwrap_err();
            assert!(kind == "geometry" && why.contains("the same size"), "{why}");
        }
        let (kind, why) = lq_dimensions((63, 640), None, g).unwrap_err();
        assert!(kind == "too small" && why.contains("63x640"), "{why}");
    }
}
