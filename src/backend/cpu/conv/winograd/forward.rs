//! The forward pass of convolutions in Winograd's form: a band of rows is cut into strips of columns
//! and these into groups of tiles. While the products of a group are computed, the outputs of the
//! group before are stored and the inputs of the next group are prefetched, so that memory and
//! multiplications do not wait for each other (a tenth of the time at 64 channels). Depends on the
//! parent module and the kernels.

use super::super::super::activation::{RowActivation, apply_row};
use super::super::super::arena::SharedPtr;
use super::super::super::simd::{LANES, Simd};
use super::super::super::tasks::{
    Bands, Context, Task, Workspace, WorkspaceParts, exceeds_cache, round_up_to_lanes,
};
use super::super::super::tiling::{ImageRows, tiles};
use super::super::super::winograd::{
    IN, Output, POINTS, Points, Slopes, Span, TileValues, group_tiles, multiply_tiles, store_tiles,
    transform_activated,
};
use super::super::{pack_channels, row_activation};
use super::{Direction, OUT, Pack, Shared};
use crate::plan::{Activation, Conv};

/// How a band is cut into groups of tiles: strips of columns, and a few rows of tiles of a strip.
#[derive(Clone, Copy)]
struct Cut {
    /// First row of the band.
    start: usize,
    /// Rows of tiles.
    rows: usize,
    /// Tiles of a row.
    tiles: usize,
    /// Most tiles of a group.
    room: usize,
}

impl Cut {
    /// For the rows `start..end` of an image.
    fn new(c: &Conv, (start, end): (usize, usize)) -> Cut {
        Cut {
            start,
            rows: (end - start).div_ceil(OUT),
            tiles: tiles::<OUT>(c.extent.w),
            room: group_tiles(c.output_stride),
        }
    }

    /// All groups, one strip after the other, each from its first row to its last.
    fn groups(self) -> impl Iterator<Item = Group> {
        (0..self.tiles).step_by(self.room).flat_map(move |first| {
            let count = self.room.min(self.tiles - first);
            let rows = self.room / count;
            (0..self.rows).step_by(rows).map(move |row| Group {
                y: self.start + OUT * row,
                rows: rows.min(self.rows - row),
                first,
                count,
            })
        })
    }
}

/// Neighbouring rows of tiles of a strip.
#[derive(Clone, Copy)]
struct Group {
    /// First row of the outputs.
    y: usize,
    /// Rows of tiles.
    rows: usize,
    /// First tile of each row.
    first: usize,
    /// Tiles of each row.
    count: usize,
}

impl Group {
    /// Number of tiles.
    fn len(&self) -> usize {
        self.rows * self.count
    }

    /// The columns of pixels of an image of `w` that the tiles read.
    fn columns(&self, w: usize) -> (usize, usize) {
        let end = OUT * (self.first + self.count) + 1;
        ((OUT * self.first).saturating_sub(1), end.min(w))
    }
}

/// Most columns of pixels that a strip reads.
fn strip_pixels(c: &Conv) -> usize {
    c.extent.w.min(OUT * group_tiles(c.output_stride) + 2)
}

/// The activation that is applied while tiles are transformed; otherwise it is applied to rows that
/// are copied to a ring, since it costs more than copying.
fn slopes(c: &Conv, slopes: *const f32) -> Option<Slopes> {
    match c.activation {
        None => Some(Slopes::Linear),
        Some(Activation::LeakyRelu { slope }) => Some(Slopes::All(slope)),
        Some(Activation::PRelu { .. }) => Some(Slopes::Channels(slopes)),
        Some(_) => None,
    }
}

/// f32 values of the ring of activated rows.
fn ring_floats(c: &Conv) -> usize {
    match slopes(c, std::ptr::null()) {
        Some(_) => 0,
        None => round_up_to_lanes(IN * strip_pixels(c) * c.input_stride),
    }
}

/// Workspace of the forward operation. Shared: weights, biases, slopes and a row of zeros. Scratch:
/// activated rows, transformed inputs, and products of two groups.
pub fn workspace(c: &Conv) -> Workspace {
    let room = group_tiles(c.output_stride);
    Workspace {
        shared: Shared::new(c, Direction::forward(c)).len,
        scratch: ring_floats(c)
            + TileValues::floats(room, c.input_stride)
            + 2 * TileValues::floats(room, c.output_stride),
        ..Workspace::default()
    }
}

/// The rows of a strip as tiles read them: those in memory, or activated ones in a ring.
struct StripRows {
    rows: ImageRows,
    /// Applied to the rows of the ring.
    activation: Option<RowActivation>,
    /// Room for [`ring_floats`] values.
    ring: *mut f32,
    /// Columns that the strip reads.
    columns: (usize, usize),
    /// The first row that is not in the ring yet.
    next: isize,
}

impl StripRows {
    /// The six rows from `first` on, zeros outside the image; only the columns of the strip may be
    /// read. `first` is never less than before.
    ///
    /// # Safety
    /// As [`apply_row`] and [`ImageRows::get`]; the ring has room for the strip.
    #[inline(always)]
    unsafe fn get<S: Simd>(&mut self, first: isize) -> [*const f32; IN] {
        let (h, c) = (self.rows.h, self.rows.c);
        let (start, end) = self.columns;
        // SAFETY: the columns lie inside rows of the image, and the ring holds six rows of them
        unsafe {
            let mut rows = self.rows.get::<IN>(first, h);
            let Some(activation) = self.activation else {
                return rows;
            };
            let values = (end - start) * c;
            for (row, y) in rows.iter_mut().zip(first..) {
                if y < 0 || y >= h as isize {
                    continue;
                }
                let place = self.ring.add(y as usize % IN * values);
                if y >= self.next {
                    apply_row::<S>(activation, row.add(start * c), c, values, place);
                }
                *row = place.wrapping_sub(start * c);
            }
            self.next = first + IN as isize;
            rows
        }
    }

    /// Prefetches the part number `point` of [`POINTS`] of what `group` reads in rows from `first`
    /// on.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, group: &Group, first: usize, point: usize) {
        let (c, w, h) = (self.rows.c, self.rows.w, self.rows.h);
        let (start, end) = group.columns(w);
        let len = (end - start) * c;
        for y in first..(group.y + OUT * group.rows + 1).min(h) {
            let at = ((self.rows.image * h + y) * w + start) * c;
            // SAFETY: the row lies inside the image
            let row = unsafe { self.rows.source.at(at).cast_const() };
            for i in (len * point / POINTS..len * (point + 1) / POINTS).step_by(LANES) {
                // SAFETY: the caller's contract
                unsafe { S::prefetch(row.wrapping_add(i)) };
            }
        }
    }
}

struct Forward<'a> {
    op: &'a Conv,
    parts: WorkspaceParts,
    bands: Bands,
    /// `[N, h, w, input_stride]`
    input: SharedPtr<f32>,
    /// `[N, h, w, output_stride]`
    output: SharedPtr<f32>,
    /// Whether to store past the caches.
    non_temporal: bool,
}

/// A group whose products are computed, but not its outputs.
#[derive(Clone, Copy)]
struct Pending {
    group: Group,
    m: TileValues,
}

impl Forward<'_> {
    /// The rows of an image, and the room for the transformed tiles of a group and for the products
    /// of two groups.
    ///
    /// # Safety
    /// As [`Task::run`].
    #[inline(always)]
    unsafe fn scratch(&self, image: usize) -> (StripRows, TileValues, [TileValues; 2]) {
        let c = self.op;
        let (room, at) = (
            group_tiles(c.output_stride),
            Shared::new(c, Direction::forward(c)),
        );
        // SAFETY: the pieces follow each other as in `workspace`
        unsafe {
            let (shared, ring) = (self.parts.shared(), self.parts.scratch().at(0));
            let v = TileValues {
                base: ring.add(ring_floats(c)),
                tiles: room,
                stride: c.input_stride,
            };
            let first = v.base.add(TileValues::floats(room, c.input_stride));
            let products = [0, TileValues::floats(room, c.output_stride)];
            let products = products.map(|after| TileValues {
                base: first.wrapping_add(after),
                tiles: room,
                stride: c.output_stride,
            });
            let activation = match slopes(c, std::ptr::null()) {
                Some(_) => None,
                None => row_activation(c, shared.at(at.slopes)),
            };
            let rows = StripRows {
                rows: ImageRows {
                    source: self.input,
                    zeros: shared.at(at.zeros),
                    image,
                    h: c.extent.h,
                    w: c.extent.w,
                    c: c.input_stride,
                },
                activation,
                ring,
                columns: (0, 0),
                next: 0,
            };
            (rows, v, products)
        }
    }

    /// Transforms the inputs of a group.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose group it is; `v` has room for it.
    #[inline(always)]
    unsafe fn transform<S: Simd>(&self, group: &Group, inputs: &mut StripRows, v: &TileValues) {
        let c = self.op;
        let at = Shared::new(c, Direction::forward(c));
        // SAFETY: the caller's contract
        unsafe {
            let slopes = slopes(c, self.parts.shared().at(at.slopes)).unwrap_or(Slopes::Linear);
            for row in 0..group.rows {
                let rows = inputs.get::<S>((group.y + OUT * row) as isize - 1);
                let span = Span {
                    first: group.first,
                    count: group.count,
                    w: c.extent.w,
                    c: v.stride,
                };
                let to = points(v, row * group.count);
                transform_activated::<S, OUT>(rows, span, slopes, to);
            }
        }
    }

    /// Computes and stores the outputs of tile number `tile` of a group, in rows below `end`.
    ///
    /// # Safety
    /// As [`Task::run`] of the task whose group it is; its products are computed.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, image: usize, end: usize, pending: &Pending, tile: usize) {
        let (c, group) = (self.op, &pending.group);
        let (w, h, lanes) = (c.extent.w, c.extent.h, c.output_stride);
        let at = Shared::new(c, Direction::forward(c));
        let y = group.y + tile / group.count * OUT;
        // SAFETY: the caller's contract
        unsafe {
            for lane in (0..lanes).step_by(LANES) {
                let row = |r: usize| self.output.at((image * h + y + r) * w * lanes + lane);
                let out = Output {
                    rows: std::array::from_fn(|r| (y + r < end).then(|| row(r))),
                    stride: lanes,
                    x: OUT * (group.first + tile % group.count),
                    w,
                    non_temporal: self.non_temporal,
                };
                let mut points = points(&pending.m, tile);
                points.base = points.base.add(lane);
                let bias = S::load(self.parts.shared().at(at.bias + lane));
                store_tiles::<S, OUT>(points, 1, bias, out);
            }
        }
    }
}

/// The points of a group from a tile on.
///
/// # Safety
/// `v` has room for the tile.
#[inline(always)]
unsafe fn points(v: &TileValues, tile: usize) -> Points {
    Points {
        // SAFETY: by the caller's contract
        base: unsafe { v.at(0, tile) },
        point_stride: v.point_stride(),
        tile_stride: v.stride,
    }
}

impl Task for Forward<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, task: usize) {
        let c = self.op;
        let (image, start, end) = self.bands.task(task);
        // SAFETY: rows `start..end` of the output are this task's. Channels of the buffers are
        // multiples of 16 (`check`), so pixels begin at multiples of 64 bytes. The rest is the
        // contract of `Task::run`.
        unsafe {
            let (mut inputs, v, products) = self.scratch(image);
            let mut groups = Cut::new(c, (start, end)).groups();
            let (mut group, mut pending, mut number) = (groups.next(), None::<Pending>, 0);
            while group.is_some() || pending.is_some() {
                let (next, m) = (groups.next(), products[number % 2]);
                if let Some(group) = &group {
                    if group.y == start {
                        inputs.columns = group.columns(c.extent.w);
                        inputs.next = start as isize - 1;
                    }
                    self.transform::<S>(group, &mut inputs, &v);
                }
                for point in 0..POINTS {
                    if let Some(next) = &next {
                        // rows that the group above does not read
                        let first = match next.y == start {
                            true => start.saturating_sub(1),
                            false => next.y + 1,
                        };
                        inputs.prefetch::<S>(next, first, point);
                    }
                    if let Some(group) = &group {
                        let weights = self.parts.shared().at(0).cast_const();
                        multiply_tiles::<S>(&v, group.len(), c.cin, weights, &m, point);
                    }
                    if let Some(pending) = &pending {
                        let len = pending.group.len();
                        for tile in len * point / POINTS..len * (point + 1) / POINTS {
                            self.store::<S>(image, end, pending, tile);
                        }
                    }
                }
                pending = group.map(|group| Pending { group, m });
                group = next;
                number += 1;
            }
            S::fence();
        }
    }
}

/// Runs the forward operation.
pub fn forward(ctx: &Context<'_>, op: &Conv) {
    let parts = ctx.parts(op.workspace, workspace(op));
    let direction = Direction::forward(op);
    let (shared, at) = (parts.shared(), Shared::new(op, direction));
    Pack {
        op,
        direction,
        weight: ctx.param(op.parameters, op.weight),
        out: shared,
    }
    .run(ctx);
    // SAFETY: the pieces lie inside parameters and workspace and do not overlap, and no task runs
    unsafe {
        pack_channels(ctx, op, Some(shared.at(at.bias)), shared.at(at.slopes));
        shared.slice(at.zeros, at.len - at.zeros).fill(0.0);
    }
    let mut bands = Bands::new(op.extent);
    if op.tile_invariant {
        bands = bands.aligned(OUT);
    }
    ctx.parallel(
        bands.tasks(),
        &Forward {
            op,
            parts,
            bands,
            input: ctx.floats(op.input),
            output: ctx.floats(op.output),
            non_temporal: exceeds_cache(op.extent, op.output_stride),
        },
    );
}
