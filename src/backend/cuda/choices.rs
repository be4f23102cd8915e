//! What a lowering chooses by the card: the unit of the depthwise step, and the number of blocks that
//! sum. Both change the last bits of a training, so they depend on the kind of card alone. Depends on the
//! limits.

use super::limits::most_sum_blocks;

/// The unit that computes the depthwise step of a Nano block in half precision. Both sum in f32; the
/// taps are rounded to half precision for tensor cores alone, so the last bits differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Depthwise {
    /// Tensor cores multiply by diagonal matrices, mostly zeros.
    #[default]
    Tensor,
    /// Multiply-adds.
    Plain,
}

impl Depthwise {
    /// The faster unit of a card with this compute capability x 10. Tensor cores multiply halves 16
    /// times as fast as the other units of sm_80 and sm_90, 8 or 4 times on sm_75, where few blocks
    /// fit, and 4 or, on consumer cards, 2 times on sm_86, sm_89 and sm_120.
    pub fn of_card(capability: i32) -> Depthwise {
        match capability {
            86 | 89 | 120.. => Depthwise::Plain,
            _ => Depthwise::Tensor,
        }
    }
}

/// Blocks of a kernel that sums which run at once on a multiprocessor: the registers of most such
/// kernels leave room for two.
const SUM_BLOCKS_AT_ONCE: usize = 2;

/// The choices of a lowering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choices {
    /// The unit of the depthwise step.
    pub depthwise: Depthwise,
    /// Most blocks of a kernel that sums over pixels; no more than a plan has room for, which is 256
    /// unless `PARAGON_CUDA_SUM_BLOCKS` says otherwise.
    pub sum_blocks: usize,
}

impl Default for Choices {
    /// Those that suit no card in particular: tensor cores, and all blocks that a plan has room for.
    fn default() -> Choices {
        Depthwise::default().into()
    }
}

impl From<Depthwise> for Choices {
    /// This unit, and all blocks that a plan has room for.
    fn from(depthwise: Depthwise) -> Choices {
        Choices {
            depthwise,
            sum_blocks: most_sum_blocks(),
        }
    }
}

impl Choices {
    /// Those of a card with this compute capability x 10 and number of multiprocessors. The blocks that sum
    /// all run at once: with a few more, the last ones would run while most of the card is idle, and
    /// each block's partial sums are written and read again.
    pub fn of_card(capability: i32, multiprocessors: u32) -> Choices {
        Choices {
            depthwise: Depthwise::of_card(capability),
            sum_blocks: (SUM_BLOCKS_AT_ONCE * multiprocessors as usize).clamp(1, most_sum_blocks()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (capability, multiprocessors): RTX 3060, RTX 3090, A100, H200, RTX 4090, T4.
    #[test]
    fn blocks_that_sum_run_at_once() {
        let blocks = |capability, processors| Choices::of_card(capability, processors).sum_blocks;
        assert_eq!(blocks(86, 28), 56);
        assert_eq!(blocks(86, 82), 164);
        assert_eq!(blocks(80, 108), 216);
        // a plan has room for no more
        assert_eq!(blocks(90, 132), 256);
        assert_eq!(blocks(89, 128), 256);
        assert_eq!(blocks(75, 40), 80);
    }
}
