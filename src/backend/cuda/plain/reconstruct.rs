//! The reconstruction for any number of features: up.0 and conv_out are plain convolutions, with the
//! features at HR in a workspace, and kernels/plain_reconstruct.cu adds the base. The kernels for 16
//! features fold the two convolutions instead ([`super::super::reconstruct`]).

use super::super::arguments::Address;
use super::super::constants::{BASE_CELLS, BASE_RAW, BASE_ROWS, BASE_TAPS};
use super::super::launch::Shape;
use super::super::lowering::{Lowering, int};
use super::super::reconstruct::base_back;
use super::super::reduce::{self, BLOCK_SUM_BYTES, Finish};
use super::super::tiles::tiles;
use super::conv::{ConvShape, ConvWeights, InputGradient, forward, input_gradient, weight_sums};
use super::signatures::{PLAIN_BASE, PLAIN_GAIN, PlainBaseArguments, PlainGainArguments, View};
use super::{ALIGNMENT, NO_FUNCTION, NO_VIEW, SumSpace, place, view};
use crate::plan::{BufferId, CHANNEL_GROUP, Precision, Reconstruct, ReconstructBack};
use anyhow::{Result, ensure};

/// up.0, at LQ.
fn up(o: &Reconstruct) -> ConvShape {
    ConvShape {
        extent: o.extent,
        cin: o.features,
        cout: o.features * o.scale * o.scale,
        kernel: 3,
        dilation: 1,
        groups: 1,
        matrix: false,
    }
}

/// conv_out, at HR.
fn last(o: &Reconstruct) -> ConvShape {
    ConvShape {
        extent: o.extent.scaled(o.scale),
        cin: o.features,
        cout: 3,
        kernel: 3,
        dilation: 1,
        groups: 1,
        matrix: false,
    }
}

fn up_weights(l: &Lowering<'_>, o: &Reconstruct) -> ConvWeights {
    ConvWeights {
        weight: l.parameter(o.parameters, o.up_weight.offset),
        bias: l.parameter(o.parameters, o.up_bias.offset),
        gain: Address::NULL,
        packed: Address::NULL,
    }
}

fn last_weights(l: &Lowering<'_>, o: &Reconstruct) -> ConvWeights {
    ConvWeights {
        weight: l.parameter(o.parameters, o.weight.offset),
        bias: l.parameter(o.parameters, o.bias.offset),
        gain: l.parameter(o.parameters, o.gain.offset),
        packed: Address::NULL,
    }
}

/// Bytes of the features at HR.
fn hr_bytes(o: &Reconstruct, precision: Precision) -> usize {
    let pixels = o.extent.scaled(o.scale).pixels();
    (pixels * o.features * precision.bytes() as usize).next_multiple_of(ALIGNMENT)
}

/// Features at HR from byte `at` of the workspace on, as conv_out sees them.
fn hr_view(l: &Lowering<'_>, o: &Reconstruct, workspace: BufferId, at: usize) -> Result<View> {
    view(l.activations_at(workspace, at), o.features)
}

/// The same as up.0 sees them: its channels at LQ.
fn lq_view(v: View, o: &Reconstruct) -> Result<View> {
    Ok(View {
        shuffle: int(o.scale)?,
        ..v
    })
}

/// An image at HR.
fn image(l: &Lowering<'_>, buffer: BufferId) -> View {
    View {
        floats: l.floats(buffer),
        stride: 3,
        ..NO_VIEW
    }
}

/// Checks that there are kernels for the shape.
///
/// # Errors
/// When there are none.
pub(in super::super) fn check(o: &Reconstruct) -> Result<()> {
    ensure!(
        o.features.is_multiple_of(CHANNEL_GROUP) && (1..=8).contains(&o.scale),
        "the CUDA kernels of the reconstruction take multiples of {CHANNEL_GROUP} features and \
         scales to 8, not {} features at scale {}",
        o.features,
        o.scale
    );
    Ok(())
}

/// Workspace bytes of the forward pass.
pub(in super::super) fn workspace(o: &Reconstruct, precision: Precision) -> u64 {
    hr_bytes(o, precision) as u64
}

/// Workspace bytes of the backward pass: features and their gradient, the totals of conv_out's sums
/// as f64, partial sums.
pub(in super::super) fn workspace_back(o: &ReconstructBack, precision: Precision) -> u64 {
    let f = &o.forward;
    let sums = up(f).sum_bytes().max(last(f).sum_bytes());
    (sums_at(f, precision) + sums) as u64
}

/// Where conv_out's totals end and partial sums begin, bytes.
fn sums_at(o: &Reconstruct, precision: Precision) -> usize {
    let totals = (8 * last(o).sum_count()).next_multiple_of(ALIGNMENT);
    2 * hr_bytes(o, precision) + totals
}

/// Bytes of the totals that slices carry.
pub(in super::super) fn carry(o: &ReconstructBack) -> u64 {
    8 * (up(&o.forward).sum_count() + last(&o.forward).sum_count()) as u64
}

/// Lowers up.0, which leaves the features at HR in the workspace.
fn enlarge(l: &mut Lowering<'_>, o: &Reconstruct, hr: View) -> Result<()> {
    let from = view(l.activations(o.features_in), o.features)?;
    let to = place(lq_view(hr, o)?, false);
    let (c, w) = (up(o), up_weights(l, o));
    forward(l, &c, w, (from, NO_FUNCTION), to, c.cout)
}

/// Lowers the reconstruction.
pub(in super::super) fn lower(l: &mut Lowering<'_>, o: &Reconstruct) -> Result<()> {
    let hr = hr_view(l, o, l.workspace(o.workspace)?, 0)?;
    enlarge(l, o, hr)?;
    let (c, w) = (last(o), last_weights(l, o));
    let output = place(image(l, o.output), false);
    forward(l, &c, w, (hr, NO_FUNCTION), output, c.cout)?;
    let (target, codes) = match o.target {
        Some(b) => (
            l.pixels_at(b.buffer, b.hr_of(0)),
            l.codes_at(b.buffer, b.augment_of(0)),
        ),
        None => (Address::NULL, Address::NULL),
    };
    let arguments = PlainBaseArguments {
        input: l.floats(o.input),
        output: l.floats(o.output),
        target,
        codes,
        images: int(o.extent.n)?,
        h: int(o.extent.h)?,
        w: int(o.extent.w)?,
        scale: int(o.scale)?,
        alpha: o.alpha,
        reserved: 0,
    };
    let shared = 4 * (BASE_CELLS + BASE_TAPS + BASE_RAW + BASE_ROWS);
    l.launch_persistent(&PLAIN_BASE, tiles(o.extent), shared, arguments)
}

/// Lowers the gradients.
pub(in super::super) fn lower_back(l: &mut Lowering<'_>, o: &ReconstructBack) -> Result<()> {
    let (f, precision) = (&o.forward, l.plan.precision);
    let workspace = l.workspace(o.workspace)?;
    let hr = hr_view(l, f, workspace, 0)?;
    let d_hr = hr_view(l, f, workspace, hr_bytes(f, precision))?;
    let d_output = image(l, o.d_output);
    let start = sums_at(f, precision);
    let mut space = SumSpace::new(workspace, start, o.slice);
    enlarge(l, f, hr)?;
    let c = last(f);
    let sums = weight_sums(l, &c, (hr, NO_FUNCTION), d_output, &mut space)?;
    let totals = l.doubles_at(workspace, 2 * hr_bytes(f, precision));
    space.finish(l, &[(sums, Finish::Totals(totals))])?;
    space.reuse(start);
    if o.slice.last {
        let first = reduce::contiguous(&[f.weight, f.bias])?;
        let arguments = PlainGainArguments {
            totals,
            parameters: l.parameter(f.parameters, first),
            gain: l.parameter(f.parameters, f.gain.offset),
            gradients: l.gradient(o.gradients, first),
            d_gain: l.gradient(o.gradients, f.gain.offset),
            scalars: l.scalars()?,
            count: int(c.sum_count())?,
            reserved: 0,
        };
        l.launch(&PLAIN_GAIN, Shape::of(1, BLOCK_SUM_BYTES), arguments)?;
    }
    let gradient = InputGradient {
        z: NO_VIEW,
        function: NO_FUNCTION,
        slope_partials: Address::NULL,
    };
    let w = last_weights(l, f);
    input_gradient(l, &c, w, d_output, gradient, place(d_hr, false), c.cin)?;
    let (c, d_up) = (up(f), lq_view(d_hr, f)?);
    let features = view(l.activations(f.features_in), f.features)?;
    let sums = weight_sums(l, &c, (features, NO_FUNCTION), d_up, &mut space)?;
    let first = reduce::contiguous(&[f.up_weight, f.up_bias])?;
    let to = Finish::Gradients(l.gradient(o.gradients, first));
    space.finish(l, &[(sums, to)])?;
    let d_features = view(l.activations(o.d_features), f.features)?;
    let w = up_weights(l, f);
    input_gradient(l, &c, w, d_up, gradient, place(d_features, false), c.cin)?;
    base_back(l, o)
}
