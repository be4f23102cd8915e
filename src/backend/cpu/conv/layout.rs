//! The order of a convolution's weights in the parameter buffer, and the blocks of channels that the
//! direct form multiplies. Depends on the plan's operations and the vectors' width.

use super::super::simd::LANES;
use crate::plan::Conv;

/// Index of a weight in PyTorch's order `[co][ci within its group][ky][kx]`.
pub fn torch_index(c: &Conv, co: usize, ci: usize, ky: usize, kx: usize) -> usize {
    let inputs = if c.groups == 1 {
        c.cin // no division for the common case
    } else {
        c.cin / c.groups
    };
    ((co * inputs + ci) * c.kernel + ky) * c.kernel + kx
}

/// The index of the weight between input channel `ci` and output channel `co`; `None` if they are
/// in different groups, or if one of them only fills the last vector of its activation.
pub fn weight_index(c: &Conv, co: usize, ci: usize, ky: usize, kx: usize) -> Option<usize> {
    if c.groups == 1 {
        return (co < c.cout && ci < c.cin).then(|| torch_index(c, co, ci, ky, kx));
    }
    let inputs = c.cin / c.groups;
    let connected = co < c.cout && ci < c.cin && co / (c.cout / c.groups) == ci / inputs;
    connected.then(|| torch_index(c, co, ci % inputs, ky, kx))
}

/// Widths of the chunks that vectors of lanes are multiplied in: (first vector, vectors), at most
/// [`MAX_CHUNK`] each.
pub fn chunks(vectors: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let width = match vectors - first {
            0 => return None,
            5 => 3, // 3 and 2 are faster than 4 and 1
            left => left.min(MAX_CHUNK),
        };
        first += width;
        Some((first - width, width))
    })
}

/// Most vectors of a chunk.
pub const MAX_CHUNK: usize = 4;

/// How the channels of a product "from -> to" are cut into blocks: a dense convolution is one block;
/// one in groups has a block for each vector of `to` channels, which sees only the `from` channels
/// of the groups in it (all of their weights to other groups being 0).
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Number of blocks.
    pub count: usize,
    /// `to` channels of a block, a multiple of 16.
    pub lanes: usize,
    /// `from` channels that a block sees.
    pub depth: usize,
    groups: usize,
    /// `from` and `to` channels of a group.
    group: (usize, usize),
    /// `from` channels of the buffer.
    stride: usize,
}

impl Blocks {
    /// Blocks of `groups` groups; `from` and `to` are (channels, channels of the buffer), that of
    /// `to` rounded up to whole vectors.
    pub fn new(groups: usize, from: (usize, usize), to: (usize, usize)) -> Blocks {
        let whole = to.1.next_multiple_of(LANES);
        let mut blocks = Blocks {
            count: 1,
            lanes: whole,
            depth: from.0,
            groups,
            group: (from.0 / groups, to.0 / groups),
            stride: from.1,
        };
        if groups > 1 {
            (blocks.count, blocks.lanes) = (whole / LANES, LANES);
            let seen = |block: usize| {
                let last = (block * LANES + LANES - 1).min(to.0 - 1);
                (last / blocks.group.1 + 1 - block * LANES / blocks.group.1) * blocks.group.0
            };
            blocks.depth = (0..blocks.count).map(seen).max().unwrap_or(0);
        }
        blocks
    }

    /// The first `from` channel that a block sees.
    pub fn first(&self, block: usize) -> usize {
        if self.groups == 1 {
            return 0;
        }
        let first = block * LANES / self.group.1 * self.group.0;
        first.min(self.stride - self.depth)
    }
}
