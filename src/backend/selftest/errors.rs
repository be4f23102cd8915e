//! Measures of how far a device's values are from the CPU's. Depends on nothing but extents.

use crate::plan::Extent;

/// The larger of two errors; NaN counts as larger than any number.
pub(super) fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

/// `|got - expected| / |expected|` in the L2 norm.
pub(super) fn relative(got: impl Iterator<Item = f64>, expected: impl Iterator<Item = f64>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    got.zip(expected).for_each(|(g, e)| {
        difference += (g - e) * (g - e);
        size += e * e;
    });
    (difference / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// Sums over one region of an image.
#[derive(Clone, Copy, Default)]
struct RegionSums {
    /// Squared differences.
    difference: f64,
    /// Squared expected values.
    size: f64,
    /// Number of values.
    count: usize,
}

impl RegionSums {
    /// The root mean square of the differences, relative to that of the values or, if these are
    /// smaller than in the whole image, to `mean_square` of the whole.
    fn error(self, mean_square: f64) -> f64 {
        let count = self.count.max(1) as f64;
        let size = (self.size / count).max(mean_square).max(f64::MIN_POSITIVE);
        (self.difference / count / size).sqrt()
    }
}

/// The largest error of any row, column or corner, or of the interior, of images `[N, h, w, C]`;
/// each region is taken over all images.
pub(super) fn edge_error(got: &[f64], expected: &[f64], extent: Extent) -> f64 {
    let Extent { h, w, .. } = extent;
    let channels = (expected.len() / extent.pixels().max(1)).max(1);
    // h rows, w columns, 4 corners, the interior
    let mut regions = vec![RegionSums::default(); h + w + 5];
    let mut sum_of_squares = 0.0;
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let pixel = i / channels;
        let (x, y) = (pixel % w, pixel / w % h);
        let (left, right, top, bottom) = (x == 0, x == w - 1, y == 0, y == h - 1);
        let corner = [top && left, top && right, bottom && left, bottom && right]
            .iter()
            .position(|is_corner| *is_corner);
        let interior = (!(left || right || top || bottom)).then_some(4);
        let corner_or_interior = corner.or(interior).map(|c| h + w + c);
        sum_of_squares += e * e;
        for region in [Some(y), Some(h + x), corner_or_interior]
            .into_iter()
            .flatten()
        {
            let sums = &mut regions[region];
            sums.difference += (g - e) * (g - e);
            sums.size += e * e;
            sums.count += 1;
        }
    }
    let mean_square = sum_of_squares / expected.len().max(1) as f64;
    regions
        .into_iter()
        .map(|region| region.error(mean_square))
        .fold(0.0, worse)
}
