//! ParagonSR2 Photo, by Philip Hofmann: docs/networks.md has its mathematics. Its blocks are made of
//! plain operations, and windows of pixels that attend to each other.

use super::paragon::{self, Attention, FEATURES};
use crate::model::architecture::{Architecture, Found, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::{Error, Init, Network, ParamTable};
use crate::plan::BufferId;

/// See the module's documentation.
pub(in crate::model) struct Photo;

/// Groups of blocks, which add no skip of their own.
const GROUPS: usize = 4;
/// Blocks in a group.
const BLOCKS: usize = 4;

static ROW: Row = Row {
    name: "paragonsr2_photo",
    aliases: &[plain("photo"), plain("base")],
    about: "ParagonSR2 Photo: window attention, for photographs",
    scales: paragon::SCALES,
    settings: &[
        paragon::alpha(0.4),
        paragon::gain(0.1),
        paragon::LAYER_SCALE,
        paragon::WINDOW,
    ],
    quick: paragon::QUICK,
};

impl Architecture for Photo {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        const HIDDEN: usize = 2 * FEATURES;
        paragon::first_parameters(net, t, FEATURES);
        for block in paragon::block_names(GROUPS, BLOCKS) {
            let name = |layer: &str| format!("{block}.{layer}");
            paragon::norm_parameters(t, &name("norm"));
            t.conv(&name("conv1"), HIDDEN, FEATURES, 1);
            t.conv(&name("dw"), HIDDEN, 1, 3);
            t.conv(&name("conv2"), FEATURES, HIDDEN, 1);
            paragon::norm_parameters(t, &name("attn_norm"));
            paragon::attention_parameters(t, &name("attn"));
            let gamma = Init::Constant(net.number("layer_scale"));
            t.add(name("scale.gamma"), &[1, FEATURES, 1, 1], gamma, true);
        }
        paragon::last_parameters(net, t, FEATURES);
    }

    fn tail(&self, g: &mut Graph<'_, '_>, input: Value, _: Value) -> Result<BufferId, Error> {
        let first = g.conv("conv_in", input)?;
        let mut blocks = paragon::block_names(GROUPS, BLOCKS);
        let features = blocks.try_fold(first, |x, block| g.block(&block, x))?;
        paragon::tail(g, input, features)
    }

    fn block(&self, g: &mut Graph<'_, '_>, block: &str, x: Value) -> Result<Value, Error> {
        let name = |layer: &str| format!("{block}.{layer}");
        let attention = Attention::of(g.net(), block, BLOCKS);
        // both residuals of a block have the same LayerScale
        let gamma = g.param(&name("scale.gamma"))?;
        let mixed = g.rms_norm(&name("norm"), x, 1)?;
        let mixed = paragon::mix_channels(g, block, mixed)?;
        let y = g.scaled_sum(&name("sum"), x, mixed, Some(gamma));
        let seen = g.rms_norm(&name("attn_norm"), y, attention.window)?;
        let seen = attention.append(g, &name("attn"), seen, y.size)?;
        Ok(g.scaled_sum(block, y, seen, Some(gamma)))
    }

    fn blocks(&self) -> usize {
        GROUPS * BLOCKS
    }

    fn tiling(&self, net: &Network) -> Tiling {
        Tiling::in_windows(paragon::window(net), GROUPS * BLOCKS)
    }

    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
        paragon::recognise(shapes, "attn.qkv.weight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 745_292), (4, 1_188_428)] {
            assert_eq!(paragon::published_count("photo", scale), count);
        }
    }
}
