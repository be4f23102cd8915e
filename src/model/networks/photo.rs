//! ParagonSR2 Photo, by Philip Hofmann: docs/networks.md has its mathematics. Its blocks are made of
//! plain operations, and windows of pixels that attend to each other.

use super::paragon::{self, FEATURES};
use crate::model::architecture::{Architecture, Found, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::{Error, Network, ParamTable};
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
    settings: paragon::WINDOW_SETTINGS,
    quick: paragon::QUICK,
};

impl Architecture for Photo {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        paragon::first_parameters(net, t, FEATURES);
        for block in paragon::block_names(GROUPS, BLOCKS) {
            let name = |layer: &str| format!("{block}.{layer}");
            paragon::norm_parameters(t, &name("norm"));
            paragon::mix_parameters(t, &block);
            paragon::norm_parameters(t, &name("attn_norm"));
            paragon::attention_parameters(t, &name("attn"));
            paragon::layer_scale(net, t, name("scale.gamma"), FEATURES);
        }
        paragon::last_parameters(net, t, FEATURES);
    }

    fn tail(&self, g: &mut Graph<'_, '_>, input: Value, _: Value) -> Result<BufferId, Error> {
        paragon::tail_of_blocks(g, input, self.blocks())
    }

    fn block(&self, g: &mut Graph<'_, '_>, number: usize, x: Value) -> Result<Value, Error> {
        let block = paragon::block_name(number, BLOCKS);
        let name = |layer: &str| format!("{block}.{layer}");
        // both residuals of a block have the same LayerScale
        let gamma = g.param(&name("scale.gamma"))?;
        let mixed = g.rms_norm(&name("norm"), x, 1)?;
        let mixed = paragon::mix_channels(g, &block, mixed)?;
        let y = g.scaled_sum(&name("sum"), x, mixed, Some(gamma));
        let seen = paragon::attend(g, number, (&name("attn_norm"), &name("attn")), y)?;
        Ok(g.scaled_sum(&block, y, seen, Some(gamma)))
    }

    fn blocks(&self) -> usize {
        GROUPS * BLOCKS
    }

    fn tiling(&self, net: &Network) -> Tiling {
        Tiling::in_windows(paragon::window(net), self.blocks())
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
