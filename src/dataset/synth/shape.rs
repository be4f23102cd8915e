//! The outlines of leaves as signed distances in pixels, negative inside. Clamped, the distance is
//! the covered share of a pixel, which gives antialiased edges. Uses only arithmetic and square
//! roots, as `texture` does.

use super::texture::sine;
use crate::support::rng::Rng;

/// Corners of the largest polygon.
const MAX_CORNERS: usize = 9;

/// An outline around the origin.
#[derive(Clone, Debug)]
pub(super) enum Outline {
    /// An ellipse with these half axes.
    Ellipse { a: f32, b: f32 },
    /// A rectangle with these half sides and rounded corners.
    Rectangle { a: f32, b: f32, round: f32 },
    /// A star-shaped polygon.
    Polygon {
        corners: [(f32, f32); MAX_CORNERS],
        count: usize,
    },
}

impl Outline {
    /// A random outline that reaches about `radius` pixels.
    pub(super) fn draw(rng: &mut Rng, radius: f32) -> Outline {
        let aspect = rng.range(0.25, 1.0) as f32;
        match rng.below(10) {
            0..=1 => Outline::Ellipse {
                a: radius,
                b: radius,
            },
            2..=4 => Outline::Ellipse {
                a: radius,
                b: radius * aspect,
            },
            5..=6 => {
                let b = radius * aspect;
                let round = if rng.unit() < 0.3 {
                    b * rng.range(0.1, 0.9) as f32
                } else {
                    0.0
                };
                Outline::Rectangle {
                    a: radius,
                    b,
                    round,
                }
            }
            _ => {
                let count = 3 + rng.below(MAX_CORNERS as u64 - 2) as usize;
                let spiky = rng.range(0.2, 0.75);
                let mut corners = [(0.0, 0.0); MAX_CORNERS];
                for (i, corner) in corners.iter_mut().take(count).enumerate() {
                    let turn = ((i as f64 + rng.range(-0.35, 0.35)) / count as f64) as f32;
                    let reach = radius * rng.range(1.0 - spiky, 1.0) as f32;
                    *corner = (reach * sine(turn + 0.25), reach * sine(turn));
                }
                Outline::Polygon { corners, count }
            }
        }
    }

    /// Distance of (u, v) from the outline in pixels, negative inside.
    pub(super) fn distance(&self, u: f32, v: f32) -> f32 {
        match self {
            Outline::Ellipse { a, b } => {
                // First order: the implicit function over the length of its gradient; exact for a
                // disc.
                let (p, q) = (u / a, v / b);
                let k = (p * p + q * q).sqrt();
                let (gx, gy) = (p / a, q / b);
                let slope = (gx * gx + gy * gy).sqrt();
                if slope < 1e-9 {
                    -b
                } else {
                    k * (k - 1.0) / slope
                }
            }
            Outline::Rectangle { a, b, round } => {
                let (x, y) = (u.abs() - a + round, v.abs() - b + round);
                let (ox, oy) = (x.max(0.0), y.max(0.0));
                (ox * ox + oy * oy).sqrt() + x.max(y).min(0.0) - round
            }
            Outline::Polygon { corners, count } => {
                let corners = &corners[..*count];
                let mut nearest = f32::INFINITY;
                let mut inside = false;
                let mut last = corners[count - 1];
                for &corner in corners {
                    nearest = nearest.min(segment_squared((u, v), last, corner));
                    // Even-odd rule: count the sides that a ray along +u crosses.
                    if (corner.1 > v) != (last.1 > v) {
                        let cross =
                            corner.0 + (v - corner.1) * (last.0 - corner.0) / (last.1 - corner.1);
                        inside ^= u < cross;
                    }
                    last = corner;
                }
                let distance = nearest.sqrt();
                if inside { -distance } else { distance }
            }
        }
    }
}

/// Squared distance of a point from a segment.
pub(super) fn segment_squared(p: (f32, f32), from: (f32, f32), to: (f32, f32)) -> f32 {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (px, py) = (p.0 - from.0, p.1 - from.1);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 {
        ((px * dx + py * dy) / length).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let (ex, ey) = (px - t * dx, py - t * dy);
    ex * ex + ey * ey
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_simple_outlines() {
        let disc = Outline::Ellipse { a: 5.0, b: 5.0 };
        assert!(
            (disc.distance(3.0, 4.0)).abs() < 1e-5 && (disc.distance(6.0, 8.0) - 5.0).abs() < 1e-5
        );
        let square = Outline::Rectangle {
            a: 2.0,
            b: 3.0,
            round: 0.0,
        };
        assert!(
            (square.distance(0.0, 0.0) + 2.0).abs() < 1e-6
                && (square.distance(5.0, 7.0) - 5.0).abs() < 1e-6
        );
        let mut corners = [(0.0, 0.0); MAX_CORNERS];
        corners[..4].copy_from_slice(&[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]);
        let polygon = Outline::Polygon { corners, count: 4 };
        assert!(
            (polygon.distance(0.0, 0.25) + 0.75).abs() < 1e-6
                && (polygon.distance(3.0, 0.5) - 2.0).abs() < 1e-6
        );
    }

    #[test]
    fn outlines_stay_within_their_radius() {
        let mut rng = Rng::new(&[12]);
        for _ in 0..500 {
            let outline = Outline::draw(&mut rng, 10.0);
            for turn in 0..16 {
                let (x, y) = (
                    15.0 * sine(turn as f32 / 16.0 + 0.25),
                    15.0 * sine(turn as f32 / 16.0),
                );
                assert!(
                    outline.distance(x, y) > 0.0,
                    "{outline:?} reaches ({x}, {y})"
                );
            }
        }
    }
}
