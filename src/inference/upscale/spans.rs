//! How a side of an image is cut into overlapping tiles. Depends on the networks' [`Tiling`].
//! Promises that the valid parts of the tiles cover the side in order, without gap or overlap.

use crate::model::Tiling;

/// One tile along one side of an image, in LQ pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    /// The pixels (from, to) of the image that the tile consists of, in this order. The second
    /// piece is empty, except for tiles at the borders of a network that wraps: these are the first
    /// pixels of the image and then its last ones, so that both borders are those of the image.
    pub pieces: [(usize, usize); 2],
    /// The pixels (from, to) of the image whose result is taken from this tile. They lie in one of
    /// the pieces.
    pub valid: (usize, usize),
}

impl Span {
    /// A tile of adjacent pixels.
    fn of(start: usize, end: usize, valid: (usize, usize)) -> Span {
        Span {
            pieces: [(start, end), (end, end)],
            valid,
        }
    }

    /// Pixels whose result is taken from this tile.
    pub fn valid_len(&self) -> usize {
        self.valid.1 - self.valid.0
    }

    /// Number of the piece that the valid pixels lie in.
    pub fn valid_piece(&self) -> usize {
        usize::from(self.valid.0 >= self.pieces[0].1)
    }

    /// Place of the first valid pixel in the tile.
    pub fn valid_at(&self) -> usize {
        let [first, second] = self.pieces;
        match self.valid_piece() {
            0 => self.valid.0 - first.0,
            _ => first.1 - first.0 + self.valid.0 - second.0,
        }
    }
}

/// Side of the tiles for a side of `len` pixels. There are as few tiles as tiles of `most` pixels
/// would give, and they are no larger than this number needs, because overlap is computed twice. If
/// there are several, the side is a multiple of 8, so that images of similar size share an arena;
/// if tiles must be aligned, it is a multiple of that and the remainder of `len`, so that the tile
/// at the end of the image is aligned too.
pub(super) fn tile_side(len: usize, most: usize, tiling: Tiling) -> usize {
    if len <= most || tiling.whole_image {
        return len;
    }
    let Tiling { halo, align, .. } = tiling;
    let rest = len % align;
    if tiling.wraps {
        let count = (len - rest).div_ceil((most - rest) / align * align - 2 * halo);
        return (len - rest).div_ceil(count).next_multiple_of(align) + 2 * halo + rest;
    }
    let (inner, overlap) = (len - 2 * halo, 2 * halo + (align - 1));
    let most = most - (most + align - rest) % align;
    let count = inner.div_ceil(most - overlap);
    let side = (inner.div_ceil(count) + overlap).next_multiple_of(8);
    (side + rest).min(most)
}

/// Cuts a side of `len` pixels into tiles of `tile` pixels (or into one of `len`). The valid parts
/// cover the side in order, without gap or overlap, and each is the halo away from the tile's inner
/// borders.
pub(super) fn spans(len: usize, tile: usize, tiling: Tiling) -> Vec<Span> {
    if len <= tile {
        return vec![Span::of(0, len, (0, len))];
    }
    if tiling.wraps {
        return spans_of_ring(len, tile, tiling);
    }
    let Tiling { halo, align, .. } = tiling;
    let mut list = Vec::new();
    let mut done: usize = 0;
    while done < len {
        let before = done.saturating_sub(halo);
        let start = (before - before % align).min(len - tile);
        let end = if start + tile == len {
            len
        } else {
            start + tile - halo
        };
        list.push(Span::of(start, start + tile, (done, end)));
        done = end;
    }
    list
}

/// [`spans`] for a network that wraps, of a side that is longer than a tile; both have the same
/// remainder to the alignment.
///
/// In a tile made of the first `a` and the last `b` pixels of the image, where `a` and `len - b` are
/// multiples of the alignment, the windows at the borders hold the same pixels as in the image, and
/// so does what fills up the last window. The tile differs from the image only where its pieces
/// meet, so pixels the halo away from there are right. Other tiles consist of whole windows, and of
/// `rest` pixels at their end that only keep the shape.
fn spans_of_ring(len: usize, tile: usize, Tiling { halo, align, .. }: Tiling) -> Vec<Span> {
    let rest = len % align;
    let windows = tile - rest;
    let mut list = Vec::new();
    let mut done: usize = 0;
    while done < len {
        let (pieces, end) = if done < halo {
            // sees the end of the image
            let tail = halo - done + rest;
            let head = tile - tail;
            ([(0, head), (len - tail, len)], head - halo)
        } else {
            // sees at most `halo` pixels of the image's beginning
            let start = (done - halo).min(len + halo - tile);
            let head = (start + tile).saturating_sub(len);
            let end = if head == halo {
                len
            } else {
                start + windows - halo
            };
            match head {
                0 => ([(start, start + tile), (start + tile, start + tile)], end),
                _ => ([(0, head), (start, len)], end),
            }
        };
        let valid = (done, end);
        list.push(Span { pieces, valid });
        done = end;
    }
    list
}
