//! Draws synthetic images that replace photographs: dead leaves, opaque shapes with power-law sizes
//! that occlude one another. They have the scale invariance, the edges and the spectrum of natural
//! images (Lee, Mumford & Huang, "Occlusion models for natural images", 2001) and train
//! restoration networks nearly as well as photographs do (Achddou, Gousseau & Ladjal, "Synthetic
//! images as a regularity prior for image restoration neural networks", 2021). On top of the plain
//! model come textures, shading, cast shadows, lens blur, thin lines and writing. Depends on `rng`
//! alone; promises the same bytes for the same arguments, on any machine and from any thread.

mod shape;
mod texture;

use crate::support::rng::Rng;
use image::RgbImage;
use shape::{Outline, segment_squared};
use texture::{Texture, sine};

/// Separates these draws from those of other modules with the same seed: "leaves" in ASCII and a
/// version. It must change whenever the images change.
const PURPOSE: u64 = 0x6c65_6176_6573_0001;
/// A pixel whose free share is at most this counts as hidden: well below half a value of 255.
const HIDDEN: f32 = 1.0 / 1024.0;
/// Painting of leaves stops when at most this share of the pixels is free; the background fills
/// them.
const REMAINDER: f64 = 0.002;

type Colour = [f32; 3];

/// Draws image number `index` of a seed, `width` x `height` pixels. It takes 23 bytes of memory per
/// pixel.
pub fn synthetic_image(seed: u64, index: u64, width: u32, height: u32) -> RgbImage {
    let mut rng = Rng::new(&[PURPOSE, seed, index]);
    let scene = Scene::draw(&mut rng, width, height);
    let mut canvas = Canvas::new(width as usize, height as usize);
    // painting goes from front to back: hidden shapes cost nothing, and it ends when almost no
    // pixel is free
    let area = f64::from(width) * f64::from(height);
    for _ in 0..scene.line_groups {
        lines(&mut rng, &scene, &mut canvas);
    }
    if rng.unit() < 0.3 {
        writing(&mut rng, &scene, &mut canvas);
    }
    let most = (area / 4.0) as u64 + 64;
    for n in 0..most {
        if canvas.free as f64 <= REMAINDER * area {
            break;
        }
        leaf(&mut rng, &scene, &mut canvas);
        // A wood or a lawn behind the first leaves
        if n % 400 == 60 && rng.unit() < scene.line_share {
            lines(&mut rng, &scene, &mut canvas);
        }
    }
    background(&mut rng, &scene, &mut canvas);
    canvas.finish(scene.blur)
}

/// The parameters of one image.
struct Scene {
    width: f32,
    height: f32,
    palette: Vec<Colour>,
    /// Leaf sizes: density proportional to r^-3 between these radii.
    smallest: f64,
    largest: f64,
    /// Share of textured leaves, and how strong a texture is.
    rich: f64,
    contrast: f64,
    /// Share of leaves that are out of focus.
    defocus: f64,
    /// Direction towards the light, a unit vector.
    light: (f32, f32),
    /// Brightness across the image: the change along x and y from the centre to the border.
    slope: (f32, f32),
    /// Weight of each neighbour in the lens blur.
    blur: f32,
    line_groups: u64,
    line_share: f64,
}

impl Scene {
    fn draw(rng: &mut Rng, width: u32, height: u32) -> Scene {
        let side = f64::from(width.max(height));
        let (middle, spread) = (rng.range(0.3, 0.6), rng.range(0.2, 0.6));
        let vivid = rng.unit() * rng.unit();
        let palette = (0..3 + rng.below(4))
            .map(|_| {
                let light = (middle + spread * bell(rng)).clamp(0.03, 0.97);
                colour(rng, light, 0.03 + 0.45 * vivid)
            })
            .collect();
        let smallest = 1.5 + 12.0 * rng.unit() * rng.unit();
        let turn = rng.unit() as f32;
        Scene {
            width: width as f32,
            height: height as f32,
            palette,
            smallest,
            largest: (side * rng.range(0.2, 0.6)).max(smallest * 2.0),
            rich: rng.range(0.25, 0.9),
            contrast: rng.range(0.15, 0.7),
            defocus: if rng.unit() < 0.35 {
                rng.range(0.1, 0.6)
            } else {
                0.02
            },
            light: (sine(turn + 0.25), sine(turn)),
            slope: (rng.range(-0.2, 0.2) as f32, rng.range(-0.2, 0.2) as f32),
            blur: if rng.unit() < 0.4 {
                0.0
            } else {
                rng.range(0.0, 0.16) as f32
            },
            line_groups: rng.below(3),
            line_share: rng.range(0.0, 0.8),
        }
    }

    /// One of the image's colours, a little varied.
    fn tint(&self, rng: &mut Rng) -> Colour {
        let base = self.palette[rng.below(self.palette.len() as u64) as usize];
        let lighter = 0.16 * bell(rng);
        let shift = colour(rng, lighter, 0.03);
        std::array::from_fn(|c| base[c] + shift[c])
    }

    fn place(&self, rng: &mut Rng, margin: f32) -> (f32, f32) {
        let mut along =
            |length: f32| rng.range(f64::from(-margin), f64::from(length + margin)) as f32;
        (along(self.width), along(self.height))
    }
}

/// A bell-shaped number in (-1.5, 1.5) with standard deviation 0.5: the sum of three uniform
/// numbers, which needs no logarithm.
fn bell(rng: &mut Rng) -> f64 {
    rng.unit() + rng.unit() + rng.unit() - 1.5
}

/// A colour of this luma with a random hue, up to this far from grey.
fn colour(rng: &mut Rng, luma: f64, chroma: f64) -> Colour {
    let (hue, chroma) = (rng.unit() as f32, (chroma * rng.unit()) as f32);
    let (red, blue) = (chroma * sine(hue), chroma * sine(hue + 0.25));
    // BT.601: 0.299 R + 0.587 G + 0.114 B stays the luma
    [
        luma as f32 + red,
        luma as f32 - 0.509 * red - 0.194 * blue,
        luma as f32 + blue,
    ]
}

/// A radius with density proportional to r^-3: the inverse of its distribution needs a square root
/// only.
fn power_law(rng: &mut Rng, smallest: f64, largest: f64) -> f64 {
    let (a, b) = (1.0 / (smallest * smallest), 1.0 / (largest * largest));
    1.0 / (a + (b - a) * rng.unit()).sqrt()
}

/// The surface of one leaf.
struct Paint {
    /// The two colours that the texture mixes.
    low: Colour,
    high: Colour,
    texture: Texture,
    /// Change of brightness per pixel along u and v, and with the squared distance from the centre.
    gradient: (f32, f32),
    hollow: f32,
}

impl Paint {
    fn at(&self, u: f32, v: f32) -> Colour {
        let t = 0.5 + 0.5 * self.texture.at(u, v);
        let shade = 1.0 + self.gradient.0 * u + self.gradient.1 * v - self.hollow * (u * u + v * v);
        std::array::from_fn(|c| (self.low[c] + (self.high[c] - self.low[c]) * t) * shade)
    }
}

fn paint(rng: &mut Rng, scene: &Scene, radius: f32, turn: (f32, f32)) -> Paint {
    let low = scene.tint(rng);
    let other = scene.tint(rng);
    let strength = (scene.contrast * rng.range(0.3, 1.4)) as f32;
    // Either towards another colour of the image, or lighter or darker in the same hue, as most
    // materials are.
    let high = if rng.unit() < 0.3 {
        std::array::from_fn(|c| low[c] + (other[c] - low[c]) * strength.min(1.0))
    } else {
        let factor = if rng.unit() < 0.5 {
            1.0 + strength
        } else {
            1.0 / (1.0 + strength)
        };
        low.map(|v| v * factor + 0.1 * (factor - 1.0))
    };
    let steep = rng.range(0.0, 0.35) as f32 / radius;
    let (lx, ly) = scene.light;
    let lit = (lx * turn.0 + ly * turn.1, ly * turn.0 - lx * turn.1); // the light in the leaf's own directions
    let hollow = if rng.unit() < 0.2 {
        rng.range(0.1, 0.6) as f32 / (radius * radius)
    } else {
        0.0
    };
    Paint {
        low,
        high,
        texture: Texture::draw(rng, scene.rich, 1.0),
        gradient: (steep * lit.0, steep * lit.1),
        hollow,
    }
}

/// Paints one opaque shape behind everything painted so far.
fn leaf(rng: &mut Rng, scene: &Scene, canvas: &mut Canvas) {
    let radius = power_law(rng, scene.smallest, scene.largest) as f32;
    let (x, y) = scene.place(rng, radius);
    let angle = rng.unit() as f32;
    let turn = (sine(angle + 0.25), sine(angle));
    let outline = Outline::draw(rng, radius);
    let paint = paint(rng, scene, radius, turn);
    let soft = if rng.unit() < scene.defocus {
        1.0 + radius.min(20.0) * rng.range(0.05, 0.5) as f32
    } else {
        1.0
    };
    let local = |px: f32, py: f32| {
        let (dx, dy) = (px - x, py - y);
        (dx * turn.0 + dy * turn.1, dy * turn.0 - dx * turn.1)
    };
    let reach = radius * 1.01 + soft;
    canvas.cover((x - reach, y - reach, x + reach, y + reach), |px, py| {
        let (u, v) = local(px, py);
        let share = 0.5 - outline.distance(u, v) / soft;
        if share <= 0.0 {
            None
        } else {
            Some((share, paint.at(u, v)))
        }
    });
    if radius > 6.0 && rng.unit() < 0.35 {
        let (depth, width) = (
            rng.range(0.15, 0.6) as f32,
            radius * rng.range(0.05, 0.4) as f32 + 1.0,
        );
        let far = width * rng.range(0.2, 1.0) as f32;
        let (sx, sy) = (scene.light.0 * far, scene.light.1 * far);
        let reach = reach + width + far;
        canvas.darken((x - reach, y - reach, x + reach, y + reach), |px, py| {
            let (u, v) = local(px + sx, py + sy);
            1.0 - depth * (0.5 - outline.distance(u, v) / width).clamp(0.0, 1.0)
        });
    }
}

/// Paints a stroke of a round pen.
fn stroke(canvas: &mut Canvas, from: (f32, f32), to: (f32, f32), half_width: f32, ink: Colour) {
    let reach = half_width + 1.0;
    let area = (
        from.0.min(to.0) - reach,
        from.1.min(to.1) - reach,
        from.0.max(to.0) + reach,
        from.1.max(to.1) + reach,
    );
    // A line thinner than a pixel is a pixel wide and covers less of it.
    let (half, most) = (half_width.max(0.5), (2.0 * half_width).min(1.0));
    canvas.cover(area, |px, py| {
        let share = 0.5 + half - segment_squared((px, py), from, to).sqrt();
        if share <= 0.0 {
            None
        } else {
            Some((share.min(1.0) * most, ink))
        }
    });
}

/// Paints bent lines of one kind: hair, grass, twigs or wires.
fn lines(rng: &mut Rng, scene: &Scene, canvas: &mut Canvas) {
    let side = scene.width.max(scene.height);
    let count = 1 + rng.below(24);
    let (spread, turn) = (rng.range(0.02, 0.5) as f32 * side, rng.unit() as f32);
    let fan = if rng.unit() < 0.5 { 0.02 } else { 0.2 };
    let length = side * rng.range(0.1, 0.9) as f32;
    let width = 0.3 + 1.6 * (rng.unit() * rng.unit()) as f32;
    let taper = rng.unit() as f32;
    let root = scene.place(rng, 0.0);
    let ink = scene.tint(rng);
    for _ in 0..count {
        let mut at = (
            root.0 + spread * bell(rng) as f32,
            root.1 + spread * bell(rng) as f32,
        );
        let mut direction = turn + fan * bell(rng) as f32;
        let bend = 0.03 * bell(rng) as f32;
        let lighter = 0.1 * bell(rng) as f32;
        let ink = ink.map(|v| v + lighter);
        let steps = 6 + rng.below(8) as u32;
        let step = length / steps as f32 * rng.range(0.6, 1.2) as f32;
        for i in 0..steps {
            let to = (
                at.0 + step * sine(direction + 0.25),
                at.1 + step * sine(direction),
            );
            stroke(
                canvas,
                at,
                to,
                width * (1.0 - taper * i as f32 / steps as f32),
                ink,
            );
            at = to;
            direction += bend + 0.015 * bell(rng) as f32;
        }
    }
}

/// Paints lines of invented letters; each has a few strokes between the points of a small grid.
fn writing(rng: &mut Rng, scene: &Scene, canvas: &mut Canvas) {
    let tall = rng.range(7.0, 28.0) as f32;
    let angle = if rng.unit() < 0.5 {
        0.0
    } else {
        0.1 * bell(rng) as f32
    };
    let (along, down) = (
        (sine(angle + 0.25), sine(angle)),
        (-sine(angle), sine(angle + 0.25)),
    );
    let start = scene.place(rng, 0.0);
    let half = tall * rng.range(0.04, 0.11) as f32;
    let ink = scene.tint(rng);
    for row in 0..1 + rng.below(3) {
        for column in 0..3 + rng.below(10) {
            if rng.unit() < 0.15 {
                continue; // between words
            }
            let corner = (column as f32 * tall * 0.75, row as f32 * tall * 1.5);
            let grid = |p: u64| {
                let (x, y) = (
                    corner.0 + (p % 3) as f32 * tall * 0.25,
                    corner.1 + (p / 3) as f32 * tall * 0.5,
                );
                (
                    start.0 + x * along.0 + y * down.0,
                    start.1 + x * along.1 + y * down.1,
                )
            };
            let mut last = rng.below(9);
            for _ in 0..2 + rng.below(3) {
                let next = (last + 1 + rng.below(8)) % 9;
                stroke(canvas, grid(last), grid(next), half, ink);
                last = next;
            }
        }
    }
}

/// Fills the free pixels.
fn background(rng: &mut Rng, scene: &Scene, canvas: &mut Canvas) {
    let paint = paint(rng, scene, scene.width.max(scene.height), (1.0, 0.0));
    let (cx, cy) = (0.5 * scene.width, 0.5 * scene.height);
    canvas.cover((0.0, 0.0, scene.width, scene.height), |px, py| {
        Some((1.0, paint.at(px - cx, py - cy)))
    });
    for (i, pixel) in canvas.colour.iter_mut().enumerate() {
        let (x, y) = ((i % canvas.width) as f32, (i / canvas.width) as f32);
        let light = 1.0 + scene.slope.0 * (x / cx - 1.0) + scene.slope.1 * (y / cy - 1.0);
        *pixel = pixel.map(|v| v * light);
    }
}

/// An image that is painted from the front to the back.
struct Canvas {
    width: usize,
    height: usize,
    colour: Vec<Colour>,
    /// Share of each pixel that is still free.
    left: Vec<f32>,
    /// Light that falls on everything painted from now on, 1 = no shadow.
    shade: Vec<f32>,
    /// Number of pixels whose free share is above [`HIDDEN`].
    free: usize,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Canvas {
        let pixels = width * height;
        Canvas {
            width,
            height,
            colour: vec![[0.0; 3]; pixels],
            left: vec![1.0; pixels],
            shade: vec![1.0; pixels],
            free: pixels,
        }
    }

    /// The pixels of an area (left, top, right, bottom), cut to the image.
    fn clip(&self, area: (f32, f32, f32, f32)) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let cut = |low: f32, high: f32, size: usize| {
            let start = (low.max(0.0) as usize).min(size);
            start
                ..((high.max(0.0) as usize).saturating_add(1))
                    .min(size)
                    .max(start)
        };
        (
            cut(area.0, area.2, self.width),
            cut(area.1, area.3, self.height),
        )
    }

    /// Paints a shape behind everything painted so far. `shape` returns the coverage (values above
    /// 1 count as 1) and the colour at the centre of a pixel.
    fn cover(
        &mut self,
        area: (f32, f32, f32, f32),
        shape: impl Fn(f32, f32) -> Option<(f32, Colour)>,
    ) {
        let (columns, rows) = self.clip(area);
        for y in rows {
            for x in columns.clone() {
                let i = y * self.width + x;
                let left = self.left[i];
                if left <= HIDDEN {
                    continue;
                }
                if let Some((share, colour)) = shape(x as f32 + 0.5, y as f32 + 0.5) {
                    let share = share.min(1.0);
                    let weight = left * share * self.shade[i];
                    for (sum, value) in self.colour[i].iter_mut().zip(colour) {
                        *sum += weight * value.clamp(0.0, 1.0);
                    }
                    self.left[i] = left * (1.0 - share);
                    self.free -= usize::from(self.left[i] <= HIDDEN);
                }
            }
        }
    }

    /// Multiplies the light that falls on everything painted from now on.
    fn darken(&mut self, area: (f32, f32, f32, f32), light: impl Fn(f32, f32) -> f32) {
        let (columns, rows) = self.clip(area);
        for y in rows {
            for x in columns.clone() {
                let i = y * self.width + x;
                if self.left[i] > HIDDEN {
                    self.shade[i] *= light(x as f32 + 0.5, y as f32 + 0.5);
                }
            }
        }
    }

    /// Blurs with (blur, 1 - 2 blur, blur) in both directions and rounds to bytes.
    fn finish(mut self, blur: f32) -> RgbImage {
        let (width, height) = (self.width, self.height);
        let mix = |before: f32, here: f32, after: f32| {
            (1.0 - 2.0 * blur) * here + blur * (before + after)
        };
        for row in self.colour.chunks_mut(width.max(1)) {
            let mut before = row[0];
            for x in 0..width {
                let (here, after) = (row[x], row[(x + 1).min(width - 1)]);
                row[x] = std::array::from_fn(|c| mix(before[c], here[c], after[c]));
                before = here;
            }
        }
        let row = |y: usize| &self.colour[y * width..][..width];
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let (x, y) = (x as usize, y as usize);
            let (above, here, below) = (
                row(y.saturating_sub(1))[x],
                row(y)[x],
                row((y + 1).min(height - 1))[x],
            );
            image::Rgb(std::array::from_fn(|c| {
                (mix(above[c], here[c], below[c]).clamp(0.0, 1.0) * 255.0 + 0.5) as u8
            }))
        })
    }
}
