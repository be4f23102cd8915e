//! What the networks of the ParagonSR2 family share: the fixed base upsampler, and the layers
//! around the body.

use crate::model::architecture::{Found, Recipe, Shapes, window_shift};
use crate::model::graph::{Graph, Value};
use crate::model::settings::{InFile, SettingKind, SettingSpec};
use crate::model::{BLUR_TAPS, Error, Init, Network, ParamTable, SHARP_TAPS};
use crate::plan::{Activation, BufferId, LossKind};

/// Scales for which the family's base upsampler is written.
pub(super) const SCALES: &[usize] = &[2, 3, 4, 8];

/// Strength of the base's sharpening.
pub(super) const fn alpha(default: f32) -> SettingSpec {
    SettingSpec {
        name: "upsampler_alpha",
        kind: SettingKind::Number(default),
        in_file: InFile::Metadata,
        doc: "Strength of the base upsampler's sharpening, 0 for none",
    }
}

/// Start value of the gain on the learnt detail.
pub(super) const fn gain(default: f32) -> SettingSpec {
    SettingSpec {
        name: "detail_gain",
        kind: SettingKind::Number(default),
        in_file: InFile::StartValue,
        doc: "Start value of the gain on the learnt detail",
    }
}

/// Start value of LayerScale.
pub(super) const LAYER_SCALE: SettingSpec = SettingSpec {
    name: "layer_scale",
    kind: SettingKind::Number(1e-5),
    in_file: InFile::StartValue,
    doc: "Start value of LayerScale; larger ones (0.1) let the blocks contribute sooner",
};

/// Side of the windows that attend to each other.
const WINDOW: SettingSpec = SettingSpec {
    name: "window_size",
    kind: SettingKind::Whole {
        default: 16,
        range: (2, 32),
    },
    in_file: InFile::Metadata,
    doc: "Side in LQ pixels of the windows whose pixels attend to each other",
};

/// Side of a network's windows in LQ pixels.
pub(super) fn window(net: &Network) -> usize {
    net.whole(WINDOW.name)
}

/// Features F of Photo and Pro: channels of every activation at LQ resolution.
pub(super) const FEATURES: usize = 64;
/// Channels inside [`mix_channels`].
const HIDDEN: usize = 2 * FEATURES;
/// Heads of the window attention.
const HEADS: usize = 4;

/// The settings of Photo and Pro.
pub(super) const WINDOW_SETTINGS: &[SettingSpec] = &[alpha(0.4), gain(0.1), LAYER_SCALE, WINDOW];

/// With the published start values (LayerScale 1e-5) the networks stay nearly linear for thousands
/// of iterations. With 0.1 the blocks contribute from the start, and a higher rate is stable. The
/// base is not sharpened, so that the detail is learned on a plain interpolation.
pub(super) const QUICK: Recipe = Recipe {
    lr: 1e-3,
    loss: LossKind::L1,
    settings: &[("layer_scale", 0.1), ("upsampler_alpha", 0.0)],
};

/// Adds the parameters before the body: `detail_gain` and conv_in, 3x3, 3 -> F.
pub(super) fn first_parameters(net: &Network, t: &mut ParamTable, features: usize) {
    let gain = Init::Constant(net.number("detail_gain"));
    t.add("detail_gain", &[], gain, true);
    t.conv("conv_in", features, 3, 3);
}

/// Adds the parameters after the body: conv_mid, up.0, conv_out and the fixed taps of the base.
pub(super) fn last_parameters(net: &Network, t: &mut ParamTable, features: usize) {
    t.conv("conv_mid", features, features, 3);
    t.conv("up.0", features * net.scale * net.scale, features, 3);
    t.conv("conv_out", 3, features, 3);
    base_taps(t, "sharp", &SHARP_TAPS);
    base_taps(t, "blur", &BLUR_TAPS);
}

/// Adds the fixed taps of one filter of the base, which PyTorch's `state_dict` contains three
/// times.
fn base_taps(t: &mut ParamTable, filter: &str, taps: &'static [f32]) {
    let k = taps.len();
    for (name, shape) in [
        ("kernel", &[k][..]),
        ("h.weight", &[3, 1, 1, k]),
        ("v.weight", &[3, 1, k, 1]),
    ] {
        let name = format!("base.{filter}.{name}");
        t.add(name, shape, Init::Taps(taps), false);
    }
}

/// The name of a block, counted through groups of `blocks` blocks.
pub(super) fn block_name(number: usize, blocks: usize) -> String {
    format!("body.{}.blocks.{}", number / blocks, number % blocks)
}

/// The names of all blocks.
pub(super) fn block_names(groups: usize, blocks: usize) -> impl Iterator<Item = String> {
    (0..groups * blocks).map(move |number| block_name(number, blocks))
}

/// Adds LayerScale.
pub(super) fn layer_scale(net: &Network, t: &mut ParamTable, name: String, features: usize) {
    let gamma = Init::Constant(net.number("layer_scale"));
    t.add(name, &[1, features, 1, 1], gamma, true);
}

/// Adds the parameters of [`mix_channels`].
pub(super) fn mix_parameters(t: &mut ParamTable, block: &str) {
    t.conv(&format!("{block}.conv1"), HIDDEN, FEATURES, 1);
    t.conv(&format!("{block}.dw"), HIDDEN, 1, 3);
    t.conv(&format!("{block}.conv2"), FEATURES, HIDDEN, 1);
}

/// Adds the parameters of RMSNorm.
pub(super) fn norm_parameters(t: &mut ParamTable, name: &str) {
    let shape = [FEATURES, 1, 1];
    t.add(format!("{name}.scale"), &shape, Init::Constant(1.0), true);
    t.add(format!("{name}.bias"), &shape, Init::Constant(0.0), true);
}

/// Adds the parameters of window attention.
pub(super) fn attention_parameters(t: &mut ParamTable, name: &str) {
    t.linear(&format!("{name}.qkv"), 3 * FEATURES, FEATURES);
    t.linear(&format!("{name}.proj"), FEATURES, FEATURES);
}

/// Appends `conv2(gelu(dw(conv1(x))))` with the parameters below `block`.
///
/// # Errors
/// When the network has no such parameters.
pub(super) fn mix_channels(g: &mut Graph<'_, '_>, block: &str, x: Value) -> Result<Value, Error> {
    let wide = g.conv(&format!("{block}.conv1"), x)?;
    let wide = g.conv(&format!("{block}.dw"), wide)?;
    let wide = g.activate(wide, Activation::Gelu);
    g.conv(&format!("{block}.conv2"), wide)
}

/// Appends window attention of the norm of `x` with the parameters below `norm` and `name`, in block
/// `number`.
///
/// # Errors
/// When the network has no such parameters.
pub(super) fn attend(
    g: &mut Graph<'_, '_>,
    number: usize,
    (norm, name): (&str, &str),
    x: Value,
) -> Result<Value, Error> {
    let window = window(g.net());
    let normed = g.rms_norm(norm, x, window)?;
    let windows = (HEADS, window, window_shift(window, number));
    g.window_attention(name, normed, x.size, windows)
}

/// Appends conv_in, `blocks` blocks, and the end of the network.
///
/// # Errors
/// A bug in the network's file.
pub(super) fn tail_of_blocks(
    g: &mut Graph<'_, '_>,
    input: Value,
    blocks: usize,
) -> Result<BufferId, Error> {
    let first = g.conv("conv_in", input)?;
    let features = (0..blocks).try_fold(first, |x, number| g.block(number, x))?;
    tail(g, input, features)
}

/// Appends conv_mid and the reconstruction.
///
/// # Errors
/// When the network has no such parameters.
pub(super) fn tail(
    g: &mut Graph<'_, '_>,
    input: Value,
    features: Value,
) -> Result<BufferId, Error> {
    let mid = g.conv("conv_mid", features)?;
    g.reconstruct(input, mid)
}

/// Halo in LQ pixels of a network whose blocks together see `blocks` pixels far: conv_in,
/// conv_mid, up.0 and conv_out (one HR pixel, rounded up) add one each, and one is spare. The base
/// sees fewer: 3 pixels of sharpening and 2 HR pixels of blur.
pub(super) const fn halo(blocks: usize) -> usize {
    1 + blocks + 1 + 1 + 1 + 1
}

/// The scale of a file whose blocks have a layer called `block_layer`, from the shape of the pixel
/// shuffle's convolution `[F * scale^2, F, 3, 3]`.
pub(super) fn recognise(shapes: &dyn Shapes, block_layer: &str) -> Option<Found> {
    shapes.shape(&format!("body.0.blocks.0.{block_layer}"))?;
    let scale = shapes.shape("up.0.weight").and_then(|shape| {
        let (out, features) = (*shape.first()?, *shape.get(1)?);
        let scale = (out.checked_div(features)?).isqrt();
        (scale * scale * features == out).then_some(scale)
    });
    Some(Found {
        scale,
        settings: Vec::new(),
    })
}

/// Parameters of a network as its author counts them: the two `base.*.kernel` buffers are in the
/// state_dict but are no parameters.
#[cfg(test)]
pub(super) fn published_count(name: &str, scale: usize) -> usize {
    let table = Network::new(name, scale).unwrap().params();
    let parameters = table.params.iter().filter(|p| !p.name.ends_with("kernel"));
    parameters.map(|p| p.range.len).sum()
}
