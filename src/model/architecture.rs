//! What an architecture says about itself, and the table of all architectures. A network is one
//! file below `networks/` with an implementation of [`Architecture`], and one row in
//! [`ARCHITECTURES`]; see docs/adding-a-network.md. Depends on the graph and the settings.

use super::graph::{Graph, Value};
use super::networks::{
    compact::Compact, nano::Nano, photo::Photo, pro::Pro, span::Span, stream::Stream,
};
use super::settings::{Setting, SettingSpec};
use super::{Error, Network, ParamTable};
use crate::plan::{BufferId, LossKind};

/// All architectures that can be trained, in the order of the help.
pub(super) const ARCHITECTURES: [&'static dyn Architecture; 6] =
    [&Nano, &Stream, &Photo, &Pro, &Compact, &Span];

/// Another name of an architecture, with settings that differ from the defaults.
pub(super) struct Alias {
    /// The name, in lower case.
    pub name: &'static str,
    /// Whole numbers that it sets.
    pub sets: &'static [(&'static str, usize)],
}

/// An alias that sets nothing.
pub(super) const fn plain(name: &'static str) -> Alias {
    Alias { name, sets: &[] }
}

/// What the table of architectures says about one.
pub(super) struct Row {
    /// Canonical name, which files carry.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [Alias],
    /// What it is for, in a few words for the help.
    pub about: &'static str,
    /// HR pixels per LQ pixel along one side that it can have.
    pub scales: &'static [usize],
    /// Its settings.
    pub settings: &'static [SettingSpec],
    /// What makes short runs of it learn fast; `--preset quick` sets it.
    pub quick: Recipe,
}

/// Values for short runs of a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// Learning rate after warm-up.
    pub lr: f64,
    /// The one loss, with weight 1.
    pub loss: LossKind,
    /// Settings of the network that are numbers, and their values.
    pub settings: &'static [(&'static str, f32)],
}

/// How an image can be cut into tiles so that the result is that of the whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// LQ pixels: an output pixel depends on input pixels up to this far away, and a tile whose
    /// valid part is this far from its inner borders gives the same bits as one pass. If tiles give
    /// another result (`whole_image`), this is the overlap of approximate tiles.
    pub halo: usize,
    /// Tiles begin at multiples of this many LQ pixels. If the network wraps, the halo is a multiple
    /// of it too.
    pub align: usize,
    /// Whether pixels at a border depend on those at the opposite border, as if the image, filled
    /// up with zeros to a multiple of `align`, were a ring.
    pub wraps: bool,
    /// Whether every output pixel depends on the whole image, so that tiles give another result.
    pub whole_image: bool,
}

impl Tiling {
    /// Pixels along a side of the blocks that a backend may compute 3x3 convolutions in (Winograd's
    /// form), if tiles are aligned with them.
    const BLOCK: usize = 4;

    /// Tiles for a network of 3x3 convolutions in a row, which a backend may compute in blocks of
    /// 4 x 4 pixels. The bits of a block depend on all of its inputs, so each convolution adds a
    /// block to the halo; the first one, of the image, adds a pixel, which is rounded up to a block.
    pub(super) fn in_blocks(convolutions: usize) -> Tiling {
        Tiling {
            halo: Tiling::BLOCK * convolutions,
            align: Tiling::BLOCK,
            wraps: false,
            whole_image: false,
        }
    }

    /// Tiles for a network of the ParagonSR2 family, whose features before `conv_mid` see `body`
    /// pixels far. A backend may compute `conv_mid` in blocks of 4 x 4 pixels, which adds a block to
    /// the halo, and the 5x5 convolution of the reconstruction in blocks of 2 x 2 pixels, which see
    /// three pixels to each side.
    pub(super) fn with_tail_in_blocks(body: usize) -> Tiling {
        Tiling {
            halo: (body + Tiling::BLOCK + 3).next_multiple_of(Tiling::BLOCK),
            align: Tiling::BLOCK,
            wraps: false,
            whole_image: false,
        }
    }

    /// Tiles anywhere, with a halo.
    pub(super) fn with_halo(halo: usize) -> Tiling {
        Tiling {
            halo,
            align: 1,
            wraps: false,
            whole_image: false,
        }
    }

    /// Tiles for a network of `blocks` blocks with a 3x3 convolution and then attention in windows
    /// of `window` pixels each, between conv_in and conv_mid, up.0, conv_out. Windows begin at
    /// multiples of `window` or, in every second block, `window / 2` pixels later, where the last one
    /// joins pixels of opposite borders.
    pub(crate) fn in_windows(window: usize, blocks: usize) -> Tiling {
        // `reached`: pixels from a tile's inner border that may differ from the whole image. A window
        // with one such pixel differs as a whole, so `reached` is rounded up to the next window's
        // border. Shifted windows have borders `shift` pixels after a multiple of the window, and
        // `window - shift` pixels before one.
        let mut reached: usize = 1; // conv_in
        for block in 0..blocks {
            reached += 1; // the block's 3x3 convolution
            let shift = window_shift(window, block);
            let border =
                |first: usize| first + reached.saturating_sub(first).next_multiple_of(window);
            reached = border(shift).max(border(window - shift));
        }
        Tiling::in_windows_after(window, reached)
    }

    /// Tiles for a stage of a network that is computed in stages: attention in windows of `window`
    /// pixels, then a 3x3 convolution, or conv_mid, up.0, conv_out.
    pub(super) fn in_windows_of_stages(window: usize) -> Tiling {
        let shift = window_shift(window, 1);
        // what a tile begins with is right everywhere, so only its shifted windows are not whole
        Tiling::in_windows_after(window, shift.max(window - shift))
    }

    /// Tiles for conv_mid, up.0 and conv_out after layers that reach `reached` pixels far.
    fn in_windows_after(window: usize, mut reached: usize) -> Tiling {
        reached += 1; // conv_mid, in blocks of pixels if the tiles are aligned with them
        if window.is_multiple_of(Tiling::BLOCK) {
            reached = reached.next_multiple_of(Tiling::BLOCK);
        }
        reached += 2; // up.0 and conv_out, in blocks of 2 x 2 pixels
        if window.is_multiple_of(2) {
            reached = reached.next_multiple_of(2);
        }
        Tiling {
            halo: reached.next_multiple_of(window),
            align: window,
            wraps: true,
            whole_image: false,
        }
    }

    /// The tiles of a network that are used if the user allows another result than that of the
    /// whole image: exact ones where there are any.
    #[must_use]
    pub fn approximate(self) -> Tiling {
        Tiling {
            whole_image: false,
            ..self
        }
    }
}

/// How a network that looks at the whole image is computed in stages: each can be tiled, if the
/// means of its input's channels over the whole image are known. Between two stages the features of
/// the whole image are kept outside of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    /// Number of stages, at least two.
    pub count: usize,
    /// Channels of the features between them.
    pub channels: usize,
    /// How the image can be tiled in each stage.
    pub tiling: Tiling,
}

/// What a stage that is not the first begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct StageStart {
    /// The features that the stage before ended with.
    pub features: Value,
    /// Their means over the whole image, f64 `[N, C]`.
    pub means: BufferId,
}

/// A stage of a network, see [`Architecture::stage`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// From the image to features.
    First { input: Value },
    /// From features to features; `number` counts stages from 0.
    Middle { number: usize, start: StageStart },
    /// From features and the image to the prediction.
    Last { input: Value, start: StageStart },
}

/// Pixels by which the windows of a block are shifted: those of every second block, by half a window.
pub(super) fn window_shift(window: usize, block: usize) -> usize {
    if block % 2 == 1 { window / 2 } else { 0 }
}

/// The shapes of a file's tensors by name, for [`Architecture::recognise`].
pub(super) trait Shapes {
    /// The shape of a tensor; `None` if the file does not have it.
    fn shape(&self, name: &str) -> Option<&[usize]>;
}

/// What the shapes of a file's tensors show about a network.
pub(super) struct Found {
    /// HR pixels per LQ pixel along one side, if it can be seen.
    pub scale: Option<usize>,
    /// Settings by name.
    pub settings: Vec<(&'static str, Setting)>,
}

/// A network that can be planned, trained and read from files.
pub(super) trait Architecture: Sync {
    /// Its row in the table.
    fn row(&self) -> &'static Row;

    /// Adds its parameters, trainable ones first.
    fn parameters(&self, net: &Network, table: &mut ParamTable);

    /// Appends operations that depend on parameters alone.
    ///
    /// # Errors
    /// A bug in the network's file.
    fn prepare(&self, _: &mut Graph<'_, '_>) -> Result<(), Error> {
        Ok(())
    }

    /// Appends the part of the network that always runs on the whole micro-batch, and returns its
    /// output. The default has no such part.
    ///
    /// # Errors
    /// A bug in the network's file.
    fn body(&self, _: &mut Graph<'_, '_>, input: Value) -> Result<Value, Error> {
        Ok(input)
    }

    /// Appends the rest of the network, which may run on a few images at a time, and returns the
    /// buffer of the prediction. `features` is the body's output.
    ///
    /// # Errors
    /// A bug in the network's file.
    fn tail(&self, g: &mut Graph<'_, '_>, input: Value, features: Value)
    -> Result<BufferId, Error>;

    /// Appends the block `number` of a network that calls [`Graph::block`], and returns its output.
    /// It is called again for the backward pass if that computes blocks again.
    ///
    /// # Errors
    /// A bug in the network's file.
    fn block(&self, _: &mut Graph<'_, '_>, number: usize, _: Value) -> Result<Value, Error> {
        let text = format!("the network has no block {number}");
        Err(crate::plan::Error::Invalid(text).into())
    }

    /// Number of blocks that [`Graph::block`] appends.
    fn blocks(&self) -> usize {
        0
    }

    /// How images may be tiled.
    fn tiling(&self, net: &Network) -> Tiling;

    /// The stages in which inference can be computed, if the network looks at the whole image.
    fn stages(&self, _: &Network) -> Option<Stages> {
        None
    }

    /// Appends a stage and returns the buffer of its result: features, or the prediction.
    ///
    /// # Errors
    /// A bug in the network's file.
    fn stage(&self, _: &mut Graph<'_, '_>, _: Stage) -> Result<BufferId, Error> {
        let text = "the network has no stages".to_string();
        Err(crate::plan::Error::Invalid(text).into())
    }

    /// The network whose tensors have these shapes; `None` if they are not of this architecture.
    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found>;

    /// Computes the parameters that are no start values but follow from others, before a file is
    /// written: `values` is in table order.
    fn derive(&self, _: &Network, _: &ParamTable, _: &mut [f32]) {}
}

/// The row of a network by name or alias (any case), and the alias if the name is one.
pub(super) fn find(name: &str) -> Option<(&'static Row, Option<&'static Alias>)> {
    let name = name.to_lowercase();
    ARCHITECTURES.into_iter().find_map(|architecture| {
        let row = architecture.row();
        let alias = row.aliases.iter().find(|alias| alias.name == name);
        (row.name == name || alias.is_some()).then_some((row, alias))
    })
}

/// The architecture of a canonical name.
pub(super) fn by_name(name: &str) -> Option<&'static dyn Architecture> {
    let mut all = ARCHITECTURES.into_iter();
    all.find(|architecture| architecture.row().name == name)
}
