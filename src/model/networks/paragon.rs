//! What the networks of the ParagonSR2 family share: the fixed base upsampler, and the layers
//! around the body.

use crate::model::architecture::{Found, Recipe, Shapes};
use crate::model::graph::{Graph, Value};
use crate::model::settings::{InFile, SettingKind, SettingSpec};
use crate::model::{BLUR_TAPS, Error, Init, Network, ParamTable, SHARP_TAPS};
use crate::plan::{BufferId, LossKind};

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
