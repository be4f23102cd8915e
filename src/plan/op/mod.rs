//! The operations of a plan: each names its inputs, outputs and parameters as buffers and ranges of
//! the arena, and declares through [`Operation`] everything that the planner asks of it. The planner
//! knows no operation by name. A new operation is one file here with its forward and backward
//! structs, one row in `operations!` below, and one file in each backend. Depends on the plan's
//! buffers alone.
//!
//! Sizes in the comments: N images in a micro-batch (or in a slice of it), h x w pixels at LQ
//! resolution, H x W = `scale` times that at HR resolution, F features. Every activation is NHWC,
//! that is `[N, h, w, C]` with the channels adjacent; C is the number of channels rounded up to
//! [`CHANNEL_GROUP`], and the channels added so are 0. Values are in the plan's [`Precision`]
//! (`activation` below) or always f32, as said with each buffer; a gradient has the shape and type
//! of the value it belongs to.
//!
//! [`Precision`]: super::Precision

/// Workspace methods of an [`Operation`] that has a field `workspace: Option<BufferId>`.
macro_rules! workspace_field {
    () => {
        fn workspace(&self) -> Option<BufferId> {
            self.workspace
        }

        fn set_workspace(&mut self, workspace: BufferId) {
            self.workspace = Some(workspace);
        }
    };
}

/// Slice methods of an [`Operation`] that has a field `slice: Slice`.
macro_rules! slice_field {
    () => {
        fn slice(&self) -> Option<Slice> {
            Some(self.slice)
        }

        fn set_carry(&mut self, carry: Option<BufferId>) {
            self.slice.carry = carry;
        }
    };
}

mod access;
mod activation;
mod channel_attention;
mod compose;
mod concat;
mod conv;
mod gate;
mod losses;
mod nano_block;
mod reconstruct;
mod rms_norm;
mod shuffle;
mod stream_block;
mod sum;
mod tape;
mod token_attention;
mod unpack;
mod update;
mod window_attention;

pub use access::Access;
pub(super) use access::{Counted, read, update, write};
pub use activation::{Activate, ActivateBack, Activation};
pub use channel_attention::{ChannelAttention, ChannelAttentionBack};
pub use compose::{ComposeConv, ComposeConvBack, ComposeParams};
pub use concat::{Concat, ConcatBack};
pub use conv::{Conv, ConvBack};
pub use gate::{Gate, GateBack, GateKind};
pub use losses::{PixelLoss, StructuralLoss, Target};
pub use nano_block::{NanoBlock, NanoBlockBack, NanoParams};
pub use reconstruct::{FoldedConv, Reconstruct, ReconstructBack};
pub use rms_norm::{RmsNorm, RmsNormBack};
pub use shuffle::{Shuffle, ShuffleBack};
pub use stream_block::{StreamBlock, StreamBlockBack, StreamParams};
pub use sum::{Accumulate, ScaledSum, ScaledSumBack};
pub use tape::{Destination, Fusion, Tape};
pub use token_attention::{TokenAttention, TokenAttentionBack, TokenParams};
pub use unpack::Unpack;
pub use update::{OptimizerKind, Update};
pub use window_attention::{WindowAttention, WindowAttentionBack};

use super::{BufferId, Class, Error};

/// Channels of an activation are a multiple of this: a vector of the CPU's kernels.
pub const CHANNEL_GROUP: usize = 16;

/// A range of f32 elements in the parameter buffer; the gradient, moment and EMA buffers use the
/// same positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamRange {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// Images, height and width of an activation. The channel count is given with each operation, and
/// whether the pixels are LQ or HR with each field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Images (N): of the micro-batch, or of the slice that the operation works on.
    pub n: usize,
    /// Rows of one image.
    pub h: usize,
    /// Columns of one image.
    pub w: usize,
}

impl Extent {
    /// Pixels in all images: `n * h * w`.
    pub fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Values of an activation with that many channels.
    pub fn values(&self, channels: usize) -> u64 {
        self.pixels() as u64 * channels as u64
    }

    /// The same images at `scale` times the resolution.
    pub fn scaled(&self, scale: usize) -> Extent {
        Extent {
            n: self.n,
            h: self.h * scale,
            w: self.w * scale,
        }
    }
}

/// The part of a micro-batch that an operation works on, in plans that run a stretch of the network
/// slice by slice, a few images at a time. An operation that sums over the micro-batch continues
/// its sums from slice to slice, in f64 and in the order of the images, and uses them in the last
/// slice: the result has the bits of one operation over all images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Images of the whole micro-batch: the divisor of means.
    pub of: usize,
    /// Whether this is the first slice: sums start at 0.
    pub first: bool,
    /// Whether this is the last slice: sums are complete and are used.
    pub last: bool,
    /// The buffer that carries the sums to the next slice; `None` if the plan has one slice only.
    pub carry: Option<BufferId>,
}

impl Slice {
    /// The one slice of a plan that runs all `images` of the micro-batch at once.
    pub fn whole(images: usize) -> Slice {
        Slice {
            of: images,
            first: true,
            last: true,
            carry: None,
        }
    }
}

/// What every operation declares; the planner asks nothing else. The defaults are those of an
/// operation without workspace, sums, arithmetic worth counting, or backward pass.
pub trait Operation {
    /// Short name for tables and errors.
    fn label(&self) -> &'static str;

    /// Every buffer that the operation reads or writes, except for workspace and carried sums.
    fn accesses(&self) -> Vec<Access>;

    /// The scratch memory that the backend asked for.
    fn workspace(&self) -> Option<BufferId> {
        None
    }

    /// Stores the buffer of the scratch memory; called if the backend asks for any.
    fn set_workspace(&mut self, _: BufferId) {}

    /// The memory table's class of the workspace.
    fn workspace_class(&self) -> Class {
        Class::Workspace
    }

    /// The part of the micro-batch that an operation with sums works on; `None` for operations
    /// without sums.
    fn slice(&self) -> Option<Slice> {
        None
    }

    /// Stores the buffer that carries the sums to the next slice; operations without sums ignore
    /// it.
    fn set_carry(&mut self, _: Option<BufferId>) {}

    /// Number of values of the operation's largest activation or image: a backend whose index type
    /// cannot count that far must refuse the plan.
    fn largest_extent(&self) -> u64;

    /// Useful multiply-adds of one run: recomputation is not counted. A run's time is compared with
    /// this number divided by the processor's peak.
    fn multiply_adds(&self) -> u64 {
        0
    }

    /// The activations and images that the operation writes, each with its extent; parameters,
    /// gradients of parameters and metrics are not among them.
    fn written(&self) -> Vec<(BufferId, Extent)>;

    /// A buffer that is computed from parameters alone, once for all slices and the backward pass.
    /// A device may compute it while the first operations run.
    fn prepared(&self) -> Option<BufferId> {
        None
    }

    /// A buffer besides workspace and carry that the operation's sums are computed from.
    fn summed_with(&self) -> Option<BufferId> {
        None
    }

    /// The input that the operation may overwrite with an output: it reads each value once, before
    /// it writes the value's place.
    fn may_overwrite(&self) -> Option<BufferId> {
        None
    }

    /// How a backend may compute this operation and `next`, the one after it, at once; `None` if
    /// it may not.
    fn fusion(&self, _next: &Op) -> Option<Fusion> {
        None
    }

    /// Appends the operation's backward pass: what computes, from the gradient of its output, the
    /// gradients of its inputs and parameters.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an operation that has none.
    fn backward(&self, _tape: &mut dyn Tape) -> Result<(), Error> {
        let text = format!("the operation \"{}\" has no backward pass", self.label());
        Err(Error::Invalid(text))
    }
}

/// The enum of all operations, one variant for each struct of the list, with the conversions that
/// give the planner the struct's [`Operation`].
macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// One operation of a plan. Dereferences to its [`Operation`].
        #[derive(Clone, Debug)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
        }

        impl Op {
            /// The names of all operations.
            #[doc(hidden)]
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// The name of the operation's struct.
            #[doc(hidden)]
            pub fn name(&self) -> &'static str {
                match self {
                    $(Op::$name(_) => stringify!($name),)*
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(operation: $name) -> Op {
                Op::$name(operation)
            }
        })*

        impl std::ops::Deref for Op {
            type Target = dyn Operation;

            fn deref(&self) -> &(dyn Operation + 'static) {
                match self {
                    $(Op::$name(operation) => operation,)*
                }
            }
        }

        impl std::ops::DerefMut for Op {
            fn deref_mut(&mut self) -> &mut (dyn Operation + 'static) {
                match self {
                    $(Op::$name(operation) => operation,)*
                }
            }
        }
    };
}

operations! {
    Unpack,
    Conv,
    ConvBack,
    Activate,
    ActivateBack,
    Gate,
    GateBack,
    Concat,
    ConcatBack,
    ScaledSum,
    ScaledSumBack,
    Accumulate,
    Shuffle,
    ShuffleBack,
    ComposeConv,
    ComposeConvBack,
    RmsNorm,
    RmsNormBack,
    WindowAttention,
    WindowAttentionBack,
    ChannelAttention,
    ChannelAttentionBack,
    TokenAttention,
    TokenAttentionBack,
    NanoBlock,
    NanoBlockBack,
    StreamBlock,
    StreamBlockBack,
    Reconstruct,
    ReconstructBack,
    PixelLoss,
    StructuralLoss,
    Update,
}

impl Op {
    /// Every buffer this operation reads or writes, its workspace and carried sums included.
    pub fn all_accesses(&self) -> Vec<Access> {
        let mut list = self.accesses();
        list.extend(self.slice().and_then(|slice| {
            let access = if slice.first { write } else { update };
            slice.carry.map(access)
        }));
        list.extend(self.workspace().map(|id| write(id).moving(0)));
        list
    }

    /// The buffers that an operation's sums are computed from and that do not outlive a step: its
    /// workspace, the sums carried from slice to slice, and [`Operation::summed_with`].
    pub fn sums(&self) -> impl Iterator<Item = BufferId> {
        let carry = self.slice().and_then(|slice| slice.carry);
        [self.workspace(), carry, self.summed_with()]
            .into_iter()
            .flatten()
    }
}
