//! Functions, gates and sums of activations value by value, concatenation, and the pixel shuffle
//! (kernels/plain_values.cu).

use super::super::arguments::Address;
use super::super::launch::Shape;
use super::super::lowering::{Lowering, int};
use super::super::operation::CudaOperation;
use super::super::reduce::Finish;
use super::signatures::{
    PLAIN_ACTIVATE, PLAIN_ACTIVATE_BACK, PLAIN_COPY, PLAIN_GATE, PLAIN_GATE_BACK, PLAIN_SHUFFLE,
    PLAIN_SHUFFLE_BACK, PLAIN_SUM, PLAIN_SUM_BACK, PlainActivateArguments,
    PlainActivateBackArguments, PlainCopyArguments, PlainGateArguments, PlainGateBackArguments,
    PlainShuffleArguments, PlainShuffleBackArguments, PlainSumArguments, PlainSumBackArguments,
};
use super::{SumSpace, channel_sum_bytes, check_stride, function, piece_blocks, sum_bytes};
use crate::plan::{
    Accumulate, Activate, ActivateBack, CHANNEL_GROUP, Concat, ConcatBack, Gate, GateBack,
    GateKind, Precision, ScaledSum, ScaledSumBack, Shuffle, ShuffleBack,
};
use anyhow::{Result, ensure};

impl CudaOperation for Activate {
    fn check(&self) -> Result<()> {
        check_stride(self.stride)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let arguments = PlainActivateArguments {
            input: l.activations(self.input),
            output: l.activations(self.output),
            function: function(l, Some(self.activation), self.parameters, self.channels)?,
            pixels: int(self.extent.pixels())?,
            stride: int(self.stride)?,
        };
        let blocks = piece_blocks(self.extent, self.stride, l.plan.precision, false);
        l.launch(&PLAIN_ACTIVATE, Shape::of(blocks, 0), arguments)
    }
}

impl CudaOperation for ActivateBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, precision: Precision) -> u64 {
        let f = &self.forward;
        if f.activation.slopes().is_none() {
            return 0;
        }
        let blocks = piece_blocks(f.extent, f.stride, precision, true);
        sum_bytes(f.channels, blocks) as u64
    }

    fn carry(&self) -> u64 {
        let slopes = self.forward.activation.slopes();
        slopes.map_or(0, |slopes| 8 * slopes.len as u64)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let (f, precision) = (&self.forward, l.plan.precision);
        let slopes = f.activation.slopes();
        let blocks = piece_blocks(f.extent, f.stride, precision, slopes.is_some());
        let mut finished = Vec::new();
        let mut partials = Address::NULL;
        if let Some(slopes) = slopes {
            let mut space = SumSpace::new(l.workspace(self.workspace)?, 0, self.slice);
            let sums = space.sums(l, f.channels, blocks);
            partials = sums.partials;
            let to = Finish::Gradients(l.gradient(self.gradients, slopes.offset));
            finished.push((space, (sums, to)));
        }
        let arguments = PlainActivateBackArguments {
            input: l.activations(f.input),
            d_output: l.activations(self.d_output),
            d_input: l.activations(self.d_input.buffer),
            partials,
            function: function(l, Some(f.activation), f.parameters, f.channels)?,
            pixels: int(f.extent.pixels())?,
            stride: int(f.stride)?,
            add: self.d_input.add.into(),
            reserved: 0,
        };
        let shape = Shape::of(blocks, channel_sum_bytes(precision));
        l.launch(&PLAIN_ACTIVATE_BACK, shape, arguments)?;
        let mut finished = finished.into_iter();
        finished.try_for_each(|(space, sums)| space.finish(l, &[sums]))
    }
}

/// The largest magnitude of a product of halves.
fn limit(kind: GateKind) -> f32 {
    match kind {
        GateKind::Attention => 0.0,
        GateKind::Halves { limit } => limit,
    }
}

impl CudaOperation for Gate {
    fn check(&self) -> Result<()> {
        let halves = self.kind != GateKind::Attention;
        ensure!(
            halves != self.b.is_some() && (!halves || self.channels == self.stride()),
            "a gate of {} channels with the wrong inputs",
            self.channels
        );
        check_stride(self.stride())
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let arguments = PlainGateArguments {
            a: l.activations(self.a),
            b: self.b.map_or(Address::NULL, |b| l.activations(b)),
            output: l.activations(self.output),
            pixels: int(self.extent.pixels())?,
            stride: int(self.stride())?,
            limit: limit(self.kind),
            reserved: 0,
        };
        let blocks = piece_blocks(self.extent, self.stride(), l.plan.precision, false);
        l.launch(&PLAIN_GATE, Shape::of(blocks, 0), arguments)
    }
}

impl CudaOperation for GateBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let f = &self.forward;
        let arguments = PlainGateBackArguments {
            a: l.activations(f.a),
            b: f.b.map_or(Address::NULL, |b| l.activations(b)),
            d_output: l.activations(self.d_output),
            d_a: l.activations(self.d_a.buffer),
            d_b: self.d_b.map_or(Address::NULL, |d| l.activations(d.buffer)),
            pixels: int(f.extent.pixels())?,
            stride: int(f.stride())?,
            limit: limit(f.kind),
            add_a: self.d_a.add.into(),
            add_b: self.d_b.is_some_and(|d| d.add).into(),
            reserved: 0,
        };
        let blocks = piece_blocks(f.extent, f.stride(), l.plan.precision, false);
        l.launch(&PLAIN_GATE_BACK, Shape::of(blocks, 0), arguments)
    }
}

/// The parts of a concatenation: each one's channels, and where they begin in the whole.
fn parts(o: &Concat) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    o.parts.iter().map(move |&(_, channels)| {
        let at = first;
        first += channels;
        (channels, at)
    })
}

fn copy(l: &mut Lowering<'_>, arguments: PlainCopyArguments) -> Result<()> {
    let values = usize::try_from(arguments.pixels)? * usize::try_from(arguments.filled)?;
    l.launch_persistent(&PLAIN_COPY, values.div_ceil(256), 0, arguments)
}

impl CudaOperation for Concat {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let to_stride = self.stride();
        for ((channels, first), &(part, _)) in parts(self).zip(&self.parts) {
            let last = first + channels == self.channels();
            let filled = if last { to_stride - first } else { channels };
            let arguments = PlainCopyArguments {
                from: l.activations(part),
                to: l.activations(self.output),
                pixels: int(self.extent.pixels())?,
                count: int(channels)?,
                filled: int(filled)?,
                from_stride: int(channels.next_multiple_of(CHANNEL_GROUP))?,
                from_first: 0,
                to_stride: int(to_stride)?,
                to_first: int(first)?,
                add: 0,
            };
            copy(l, arguments)?;
        }
        Ok(())
    }
}

impl CudaOperation for ConcatBack {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let f = &self.forward;
        for ((channels, first), d) in parts(f).zip(&self.d_parts) {
            let Some(d) = d else { continue };
            let stride = channels.next_multiple_of(CHANNEL_GROUP);
            let arguments = PlainCopyArguments {
                from: l.activations(self.d_output),
                to: l.activations(d.buffer),
                pixels: int(f.extent.pixels())?,
                count: int(channels)?,
                filled: int(stride)?,
                from_stride: int(f.stride())?,
                from_first: int(first)?,
                to_stride: int(stride)?,
                to_first: 0,
                add: d.add.into(),
            };
            copy(l, arguments)?;
        }
        Ok(())
    }
}

impl CudaOperation for ScaledSum {
    fn check(&self) -> Result<()> {
        check_stride(self.stride)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let gamma = self.gamma;
        let arguments = PlainSumArguments {
            a: l.activations(self.a),
            b: l.activations(self.b),
            gamma: gamma.map_or(Address::NULL, |g| l.parameter(self.parameters, g.offset)),
            output: l.activations(self.output),
            pixels: int(self.extent.pixels())?,
            stride: int(self.stride)?,
            channels: int(self.channels)?,
            reserved: 0,
        };
        let blocks = piece_blocks(self.extent, self.stride, l.plan.precision, false);
        l.launch(&PLAIN_SUM, Shape::of(blocks, 0), arguments)
    }
}

impl CudaOperation for ScaledSumBack {
    fn check(&self) -> Result<()> {
        self.forward.check()
    }

    fn workspace(&self, precision: Precision) -> u64 {
        let f = &self.forward;
        if f.gamma.is_none() {
            return 0;
        }
        let blocks = piece_blocks(f.extent, f.stride, precision, true);
        sum_bytes(f.channels, blocks) as u64
    }

    fn carry(&self) -> u64 {
        self.forward.gamma.map_or(0, |gamma| 8 * gamma.len as u64)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let (f, precision) = (&self.forward, l.plan.precision);
        let blocks = piece_blocks(f.extent, f.stride, precision, f.gamma.is_some());
        let mut finished = Vec::new();
        let (mut partials, mut factors) = (Address::NULL, Address::NULL);
        if let Some(gamma) = f.gamma {
            let mut space = SumSpace::new(l.workspace(self.workspace)?, 0, self.slice);
            let sums = space.sums(l, f.channels, blocks);
            (partials, factors) = (sums.partials, l.parameter(f.parameters, gamma.offset));
            let to = l.gradient(self.gradients, gamma.offset);
            let to = if self.adds_gamma {
                Finish::Added(to)
            } else {
                Finish::Gradients(to)
            };
            finished.push((space, (sums, to)));
        }
        let arguments = PlainSumBackArguments {
            b: l.activations(f.b),
            d_output: l.activations(self.d_output),
            gamma: factors,
            d_a: self.d_a.map_or(Address::NULL, |d| l.activations(d.buffer)),
            d_b: self.d_b.map_or(Address::NULL, |d| l.activations(d.buffer)),
            partials,
            pixels: int(f.extent.pixels())?,
            stride: int(f.stride)?,
            channels: int(f.channels)?,
            add_a: self.d_a.is_some_and(|d| d.add).into(),
            add_b: self.d_b.is_some_and(|d| d.add).into(),
            reserved: 0,
        };
        let shape = Shape::of(blocks, channel_sum_bytes(precision));
        l.launch(&PLAIN_SUM_BACK, shape, arguments)?;
        let mut finished = finished.into_iter();
        finished.try_for_each(|(space, sums)| space.finish(l, &[sums]))
    }
}

impl CudaOperation for Accumulate {
    fn check(&self) -> Result<()> {
        check_stride(self.stride)
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let arguments = PlainSumArguments {
            a: l.activations(self.into),
            b: l.activations(self.from),
            gamma: Address::NULL,
            output: l.activations(self.into),
            pixels: int(self.extent.pixels())?,
            stride: int(self.stride)?,
            channels: int(self.stride)?,
            reserved: 0,
        };
        let blocks = piece_blocks(self.extent, self.stride, l.plan.precision, false);
        l.launch(&PLAIN_SUM, Shape::of(blocks, 0), arguments)
    }
}

impl CudaOperation for Shuffle {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let e = self.extent;
        let (target, codes) = match self.target {
            Some(b) => (
                l.pixels_at(b.buffer, b.hr_of(0)),
                l.codes_at(b.buffer, b.augment_of(0)),
            ),
            None => (Address::NULL, Address::NULL),
        };
        let arguments = PlainShuffleArguments {
            input: l.activations(self.input),
            base: self.base.map_or(Address::NULL, |base| l.floats(base)),
            output: l.floats(self.output),
            target,
            codes,
            images: int(e.n)?,
            h: int(e.h)?,
            w: int(e.w)?,
            scale: int(self.scale)?,
            stride: int(self.input_stride)?,
            reserved: 0,
        };
        let blocks = e.scaled(self.scale).pixels().div_ceil(256);
        l.launch_persistent(&PLAIN_SHUFFLE, blocks, 0, arguments)
    }
}

impl CudaOperation for ShuffleBack {
    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let (f, e) = (&self.forward, self.forward.extent);
        let arguments = PlainShuffleBackArguments {
            d_output: l.floats(self.d_output),
            d_input: l.activations(self.d_input.buffer),
            d_base: self.d_base.map_or(Address::NULL, |d_base| l.floats(d_base)),
            images: int(e.n)?,
            h: int(e.h)?,
            w: int(e.w)?,
            scale: int(f.scale)?,
            stride: int(f.input_stride)?,
            add: self.d_input.add.into(),
        };
        let blocks = (e.pixels() * f.input_stride).div_ceil(256);
        l.launch_persistent(&PLAIN_SHUFFLE_BACK, blocks, 0, arguments)
    }
}
