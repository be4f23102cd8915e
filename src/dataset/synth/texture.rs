//! The texture of a leaf: a value between -1 and 1 at every point of the leaf's coordinates. Uses
//! only arithmetic that IEEE 754 defines to the bit (no platform sine or power), so that an image
//! is the same on every machine.

use crate::support::rng::Rng;

/// Largest integer not above `x`; |x| must be below 2^31. (`f32::floor` is a call on baseline
/// x86-64.)
fn floor(x: f32) -> i32 {
    let i = x as i32;
    i - i32::from(x < i as f32)
}

/// sin(2 pi x) by two parabolas and one correction: within 0.002, smooth, the same everywhere.
pub(super) fn sine(turns: f32) -> f32 {
    let t = turns - floor(turns) as f32 - 0.5;
    let y = t * (16.0 * t.abs() - 8.0);
    y * (0.225 * y.abs() + 0.775)
}

/// A value in [-1, 1) for each point of the integer lattice.
fn lattice(x: i32, y: i32, key: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77) ^ key;
    h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
    h ^= h >> 15;
    h as i32 as f32 * (1.0 / 2_147_483_648.0)
}

/// Value noise: the lattice, joined smoothly.
fn noise(x: f32, y: f32, key: u32) -> f32 {
    let (ix, iy) = (floor(x), floor(y));
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (fx, fy) = (ease(x - ix as f32), ease(y - iy as f32));
    let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
    let top = mix(lattice(ix, iy, key), lattice(ix + 1, iy, key), fx);
    let bottom = mix(lattice(ix, iy + 1, key), lattice(ix + 1, iy + 1, key), fx);
    mix(top, bottom, fy)
}

/// Distance of `x` from the nearest multiple of `period`, in the units of `x`.
fn from_grid(x: f32, period: f32) -> f32 {
    let cell = x / period;
    (cell - floor(cell + 0.5) as f32).abs() * period
}

/// 1 inside, -1 outside of an edge at 0, with a transition of one pixel.
fn edge(inside_by: f32) -> f32 {
    (2.0 * inside_by).clamp(-1.0, 1.0)
}

/// A surface; lengths in pixels.
#[derive(Clone, Debug)]
pub(super) enum Texture {
    Flat,
    /// A sine wave along u, bent along v.
    Grating {
        frequency: f32,
        phase: f32,
        bend: f32,
    },
    /// Sharp bars of `width` every `period`.
    Stripes {
        period: f32,
        width: f32,
    },
    Checks {
        period: f32,
    },
    /// Tiles or bricks: joints of `gap`, each tile of its own brightness, every second row moved by
    /// `shift`.
    Tiles {
        width: f32,
        height: f32,
        gap: f32,
        shift: f32,
        key: u32,
    },
    Dots {
        period: f32,
        radius: f32,
    },
    /// Noise in octaves, each half as large and weaker by `gain`; stretched along u for wood, fur
    /// and water.
    Fractal {
        size: f32,
        stretch: f32,
        gain: f32,
        octaves: u32,
        key: u32,
    },
}

impl Texture {
    /// A random surface, `rich` (0 to 1) of them not flat. `grain` scales every length.
    pub(super) fn draw(rng: &mut Rng, rich: f64, grain: f64) -> Texture {
        if rng.unit() >= rich {
            return Texture::Flat;
        }
        let key = rng.next_u64() as u32;
        // Lengths spread evenly over scales: a uniform exponent, by repeated multiplication only.
        let mut length = |shortest: f64, octaves: f64| {
            let exponent = rng.unit() * octaves;
            let whole = exponent as u32;
            let rest = exponent - f64::from(whole);
            (shortest * grain * f64::from(1u32 << whole) * (1.0 + rest * (0.6565 + 0.3435 * rest)))
                as f32
        };
        let (fine, middle, coarse) = (length(2.2, 4.0), length(4.0, 3.0), length(2.0, 5.0));
        let kind = rng.below(20);
        let mut range = |low: f64, high: f64| rng.range(low, high) as f32;
        match kind {
            0..=2 => Texture::Grating {
                frequency: 1.0 / fine,
                phase: range(0.0, 1.0),
                bend: range(0.0, 0.6),
            },
            3..=4 => Texture::Stripes {
                period: middle,
                width: middle * range(0.2, 0.8),
            },
            5 => Texture::Checks { period: middle },
            6..=7 => {
                let (height, aspect) = (middle.max(5.0), range(1.0, 3.0));
                let (gap, shift) = (
                    range(0.6, 1.8),
                    if range(0.0, 1.0) < 0.6 { 0.5 } else { 0.0 },
                );
                Texture::Tiles {
                    width: height * aspect,
                    height,
                    gap,
                    shift,
                    key,
                }
            }
            8 => Texture::Dots {
                period: middle,
                radius: middle * range(0.15, 0.45),
            },
            _ => {
                let stretch = if range(0.0, 1.0) < 0.4 {
                    range(2.0, 8.0)
                } else {
                    1.0
                };
                let octaves = 2 + (range(0.0, 3.0) as u32);
                Texture::Fractal {
                    size: coarse,
                    stretch,
                    gain: range(0.45, 0.8),
                    octaves,
                    key,
                }
            }
        }
    }

    /// The surface at (u, v), -1 to 1.
    pub(super) fn at(&self, u: f32, v: f32) -> f32 {
        match *self {
            Texture::Flat => -1.0,
            Texture::Grating {
                frequency,
                phase,
                bend,
            } => sine(u * frequency + phase + bend * sine(v * frequency * 0.19)),
            Texture::Stripes { period, width } => edge(0.5 * width - from_grid(u, period)),
            Texture::Checks { period } => {
                let side = |x: f32| edge(0.25 * period - from_grid(x, period));
                side(u) * side(v)
            }
            Texture::Tiles {
                width,
                height,
                gap,
                shift,
                key,
            } => {
                let row = floor(v / height);
                let u = u + if row & 1 == 1 { shift * width } else { 0.0 };
                let inside = edge(from_grid(u, width).min(from_grid(v, height)) - 0.5 * gap);
                let tone = lattice(floor(u / width), row, key);
                inside * 0.7
                    + if inside > 0.0 {
                        0.3 * tone * inside
                    } else {
                        -0.3
                    }
            }
            Texture::Dots { period, radius } => {
                let (x, y) = (from_grid(u, period), from_grid(v, period));
                edge(radius - (x * x + y * y).sqrt())
            }
            Texture::Fractal {
                size,
                stretch,
                gain,
                octaves,
                key,
            } => {
                let (mut x, mut y) = (u / (size * stretch), v / size);
                let (mut sum, mut weight, mut total) = (0.0, 1.0, 0.0);
                for octave in 0..octaves {
                    sum += weight * noise(x, y, key.wrapping_add(octave));
                    total += weight;
                    weight *= gain;
                    x *= 2.0;
                    y *= 2.0;
                }
                (1.6 * sum / total).clamp(-1.0, 1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_is_close_to_the_library_one() {
        for i in -2000..2000 {
            let x = i as f32 * 0.00317;
            assert!(
                (sine(x) - (x * std::f32::consts::TAU).sin()).abs() < 2e-3,
                "at {x}"
            );
        }
    }

    #[test]
    fn surfaces_stay_in_range() {
        let mut rng = Rng::new(&[11]);
        for _ in 0..300 {
            let texture = Texture::draw(&mut rng, 1.0, 1.0);
            for _ in 0..50 {
                let (u, v) = (
                    rng.range(-500.0, 500.0) as f32,
                    rng.range(-500.0, 500.0) as f32,
                );
                let t = texture.at(u, v);
                assert!(
                    (-1.001..=1.001).contains(&t),
                    "{texture:?} is {t} at ({u}, {v})"
                );
            }
        }
    }
}
