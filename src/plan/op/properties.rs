//! What the planner and the backends ask of every operation: the buffers it touches, its scratch
//! memory, its sums, its cost. Depends on the operations alone.

use super::{Conv, Extent, NanoBlock, Op, Reconstruct, Slice};
use crate::plan::{BufferId, Target};

/// One buffer that an operation touches, and how.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The buffer, or the view of a slice's images in one.
    pub buffer: BufferId,
    /// The operation reads values that it did not write itself.
    pub read: bool,
    /// The operation writes it.
    pub write: bool,
}

fn read(buffer: BufferId) -> Access {
    Access {
        buffer,
        read: true,
        write: false,
    }
}

pub(in crate::plan) fn write(buffer: BufferId) -> Access {
    Access {
        buffer,
        read: false,
        write: true,
    }
}

pub(in crate::plan) fn update(buffer: BufferId) -> Access {
    Access {
        buffer,
        read: true,
        write: true,
    }
}

impl Op {
    /// Every buffer this operation reads or writes, its workspace included.
    pub fn accesses(&self) -> impl Iterator<Item = Access> {
        let mut list = match self {
            Op::Unpack(o) => vec![read(o.batch.buffer), write(o.output)],
            Op::Conv(o) => vec![read(o.parameters), read(o.input), write(o.output)],
            Op::ConvBack(o) => {
                let mut list = vec![
                    read(o.forward.parameters),
                    read(o.forward.input),
                    read(o.d_output),
                    update(o.gradients),
                ];
                list.extend(o.d_input.map(write));
                list.extend(o.slice.accesses());
                list
            }
            Op::NanoBlock(o) => vec![read(o.parameters), read(o.input), write(o.output)],
            Op::NanoBlockBack(o) => {
                vec![
                    read(o.forward.parameters),
                    read(o.forward.input),
                    read(o.d_output),
                    write(o.d_input),
                    update(o.gradients),
                ]
            }
            Op::Reconstruct(o) => {
                let mut list = vec![
                    read(o.parameters),
                    read(o.input),
                    read(o.features_in),
                    write(o.output),
                ];
                list.extend(o.target.map(|batch| read(batch.buffer)));
                list.extend(o.folded.map(|c| {
                    if c.first {
                        write(c.buffer)
                    } else {
                        read(c.buffer)
                    }
                }));
                list
            }
            Op::ReconstructBack(o) => {
                let f = &o.forward;
                let mut list = vec![
                    read(f.parameters),
                    read(f.features_in),
                    read(o.d_output),
                    write(o.d_features),
                    update(o.gradients),
                ];
                list.extend(o.d_input.map(write));
                list.extend(o.slice.accesses());
                list.extend(f.folded.map(|c| read(c.buffer)));
                list
            }
            Op::PixelLoss(o) => {
                let mut list = vec![read(o.prediction), write(o.d_prediction), update(o.metrics)];
                if let Target::Float(target) = o.target {
                    list.push(read(target));
                }
                list.extend(o.slice.accesses());
                list
            }
            Op::StructuralLoss(o) => {
                let mut list = vec![
                    read(o.prediction),
                    read(o.target.buffer()),
                    update(o.d_prediction),
                    update(o.metrics),
                ];
                list.extend(o.slice.accesses());
                list
            }
            Op::Update(o) => {
                vec![
                    update(o.parameters),
                    read(o.gradients),
                    update(o.moment1),
                    update(o.moment2),
                    update(o.ema),
                    update(o.metrics),
                ]
            }
        };
        list.extend(self.workspace().map(write));
        list.into_iter()
    }

    /// The operation's workspace, if the backend asked for one.
    pub fn workspace(&self) -> Option<BufferId> {
        match self {
            Op::Unpack(_) => None,
            Op::Conv(o) => o.workspace,
            Op::ConvBack(o) => o.workspace,
            Op::NanoBlock(o) => o.workspace,
            Op::NanoBlockBack(o) => o.workspace,
            Op::Reconstruct(o) => o.workspace,
            Op::ReconstructBack(o) => o.workspace,
            Op::PixelLoss(o) => o.workspace,
            Op::StructuralLoss(o) => o.workspace,
            Op::Update(o) => o.workspace,
        }
    }

    pub(in crate::plan) fn set_workspace(&mut self, id: BufferId) {
        let workspace = match self {
            Op::Unpack(_) => return,
            Op::Conv(o) => &mut o.workspace,
            Op::ConvBack(o) => &mut o.workspace,
            Op::NanoBlock(o) => &mut o.workspace,
            Op::NanoBlockBack(o) => &mut o.workspace,
            Op::Reconstruct(o) => &mut o.workspace,
            Op::ReconstructBack(o) => &mut o.workspace,
            Op::PixelLoss(o) => &mut o.workspace,
            Op::StructuralLoss(o) => &mut o.workspace,
            Op::Update(o) => &mut o.workspace,
        };
        *workspace = Some(id);
    }

    /// Sets the buffer that carries the sums to the next slice; operations that sum nothing ignore
    /// it.
    pub(crate) fn set_carry(&mut self, carry: Option<BufferId>) {
        match self {
            Op::ConvBack(o) => o.slice.carry = carry,
            Op::ReconstructBack(o) => o.slice.carry = carry,
            Op::PixelLoss(o) => o.slice.carry = carry,
            Op::StructuralLoss(o) => o.slice.carry = carry,
            Op::Unpack(_)
            | Op::Conv(_)
            | Op::NanoBlock(_)
            | Op::NanoBlockBack(_)
            | Op::Reconstruct(_)
            | Op::Update(_) => {}
        }
    }

    /// The part of the micro-batch that an operation with sums works on; `None` for operations
    /// without sums.
    pub fn slice(&self) -> Option<Slice> {
        match self {
            Op::ConvBack(o) => Some(o.slice),
            Op::ReconstructBack(o) => Some(o.slice),
            Op::PixelLoss(o) => Some(o.slice),
            Op::StructuralLoss(o) => Some(o.slice),
            Op::Unpack(_)
            | Op::Conv(_)
            | Op::NanoBlock(_)
            | Op::NanoBlockBack(_)
            | Op::Reconstruct(_)
            | Op::Update(_) => None,
        }
    }

    /// Number of values of the operation's largest activation or image: a backend whose index type
    /// cannot count that far must refuse the plan.
    pub fn largest_extent(&self) -> u64 {
        let values = |e: Extent, channels: usize| e.pixels() as u64 * channels as u64;
        let conv = |o: &Conv| values(o.extent, o.cin.max(o.cout));
        let reconstruct =
            |o: &Reconstruct| values(o.extent.scaled(o.scale), 3).max(values(o.extent, o.features));
        match self {
            Op::Unpack(o) => o.batch.bytes() as u64,
            Op::Conv(o) => conv(o),
            Op::ConvBack(o) => conv(&o.forward),
            Op::NanoBlock(o) => values(o.extent, 2 * o.features),
            Op::NanoBlockBack(o) => values(o.forward.extent, 2 * o.forward.features),
            Op::Reconstruct(o) => reconstruct(o),
            Op::ReconstructBack(o) => reconstruct(&o.forward),
            Op::PixelLoss(o) => values(o.extent, 3),
            Op::StructuralLoss(o) => values(o.extent, 3),
            Op::Update(o) => o.trainable as u64,
        }
    }

    /// The buffers that an operation's sums are computed from and that do not outlive a step: its
    /// workspace, the sums carried from slice to slice, and the folded convolution, from whose
    /// gradient those of up.0 and conv_out are computed.
    pub fn sums(&self) -> impl Iterator<Item = BufferId> {
        let (carry, folded) = match self {
            Op::ConvBack(o) => (o.slice.carry, None),
            Op::ReconstructBack(o) => (o.slice.carry, o.forward.folded),
            Op::PixelLoss(o) => (o.slice.carry, None),
            Op::StructuralLoss(o) => (o.slice.carry, None),
            Op::Unpack(_)
            | Op::Conv(_)
            | Op::NanoBlock(_)
            | Op::NanoBlockBack(_)
            | Op::Reconstruct(_)
            | Op::Update(_) => (None, None),
        };
        [self.workspace(), carry, folded.map(|c| c.buffer)]
            .into_iter()
            .flatten()
    }

    /// The [`Reconstruct`] that this operation is, or whose gradients it computes.
    pub(in crate::plan) fn reconstruct(&self) -> Option<&Reconstruct> {
        match self {
            Op::Reconstruct(o) => Some(o),
            Op::ReconstructBack(o) => Some(&o.forward),
            _ => None,
        }
    }

    /// Short name for tables and errors.
    pub fn label(&self) -> &'static str {
        match self {
            Op::Unpack(_) => "unpack",
            Op::Conv(_) => "conv 3x3",
            Op::ConvBack(_) => "conv 3x3, backward",
            Op::NanoBlock(_) => "nano block",
            Op::NanoBlockBack(_) => "nano block, backward",
            Op::Reconstruct(_) => "reconstruct",
            Op::ReconstructBack(_) => "reconstruct, backward",
            Op::PixelLoss(_) => "pixel loss",
            Op::StructuralLoss(_) => "structural loss",
            Op::Update(_) => "optimizer",
        }
    }

    /// Useful multiply-adds of one run: recomputation is not counted. A run's time is compared with
    /// this number divided by the processor's peak.
    pub fn multiply_adds(&self) -> u64 {
        let conv = |c: &Conv| (c.extent.pixels() * c.cin * c.cout * 9) as u64;
        let block = |b: &NanoBlock| {
            (b.extent.pixels() * (2 * b.features * (2 * b.features) + 9 * 2 * b.features)) as u64
        };
        let reconstruct = |o: &Reconstruct| {
            (o.extent.pixels() * (o.up_weight.len + o.scale * o.scale * o.features * 27)) as u64
        };
        match self {
            Op::Unpack(_) | Op::PixelLoss(_) | Op::StructuralLoss(_) | Op::Update(_) => 0,
            Op::Conv(o) => conv(o),
            Op::ConvBack(o) => conv(&o.forward) * (1 + u64::from(o.d_input.is_some())),
            Op::NanoBlock(o) => block(o),
            Op::NanoBlockBack(o) => 2 * block(&o.forward),
            Op::Reconstruct(o) => reconstruct(o),
            Op::ReconstructBack(o) => 2 * reconstruct(&o.forward),
        }
    }
}
