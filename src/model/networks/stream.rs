//! ParagonSR2 Stream, by Philip Hofmann: docs/networks.md has its mathematics. Its blocks are one
//! fused operation each and keep only their input for the backward pass.

use super::paragon;
use crate::model::architecture::{Architecture, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::settings::Setting;
use crate::model::{Error, Init, Network, ParamTable};
use crate::plan::BufferId;

/// See the module's documentation.
pub(in crate::model) struct Stream;

/// Features F: channels of every activation at LQ resolution.
const FEATURES: usize = 32;
/// Groups of blocks, which add no skip of their own.
const GROUPS: usize = 2;
/// Blocks in a group.
const BLOCKS: usize = 3;
/// LQ pixels that a block sees far: 3 by the dilated convolution, 1 by the gate's.
const BLOCK_HALO: usize = 4;

static ROW: Row = Row {
    name: "paragonsr2_stream",
    aliases: &[plain("stream"), plain("tiny")],
    about: "ParagonSR2 Stream: larger than Nano, for video",
    scales: paragon::SCALES,
    settings: &[
        paragon::alpha(0.0),
        paragon::gain(0.1),
        paragon::LAYER_SCALE,
    ],
    quick: paragon::QUICK,
};

fn block_names() -> impl Iterator<Item = String> {
    (0..GROUPS).flat_map(|g| (0..BLOCKS).map(move |i| format!("body.{g}.blocks.{i}")))
}

impl Architecture for Stream {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        const HIDDEN: usize = 2 * FEATURES;
        paragon::first_parameters(net, t, FEATURES);
        for block in block_names() {
            let name = |layer: &str| format!("{block}.{layer}");
            t.conv(&name("dw1"), FEATURES, 1, 3);
            t.conv(&name("dw3"), FEATURES, 1, 3);
            t.conv(&name("fuse"), FEATURES, 2 * FEATURES, 1);
            t.conv(&name("proj"), 2 * HIDDEN, FEATURES, 1);
            t.conv(&name("gate"), 2 * HIDDEN, 1, 3);
            t.conv(&name("out"), FEATURES, HIDDEN, 1);
            let gamma = Init::Constant(net.number("layer_scale"));
            t.add(name("scale.gamma"), &[1, FEATURES, 1, 1], gamma, true);
        }
        paragon::last_parameters(net, t, FEATURES);
    }

    fn body(&self, g: &mut Graph<'_, '_>, input: Value) -> Result<Value, Error> {
        let mut x = g.conv("conv_in", input)?;
        for block in block_names() {
            x = g.stream_block(&block, x)?;
        }
        Ok(x)
    }

    fn tail(
        &self,
        g: &mut Graph<'_, '_>,
        input: Value,
        features: Value,
    ) -> Result<BufferId, Error> {
        paragon::tail(g, input, features)
    }

    fn tiling(&self, _: &Network) -> Tiling {
        Tiling::with_halo(paragon::halo(GROUPS * BLOCKS * BLOCK_HALO))
    }

    fn recognise(
        &self,
        shapes: &dyn Shapes,
    ) -> Option<(Option<usize>, Vec<(&'static str, Setting)>)> {
        paragon::recognise(shapes, "dw1.weight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 110_092), (4, 221_068)] {
            // the two `base.*.kernel` buffers are in the state_dict but are no parameters
            let table = Network::new("stream", scale).unwrap().params();
            let parameters = table.params.iter().filter(|p| !p.name.ends_with("kernel"));
            assert_eq!(parameters.map(|p| p.range.len).sum::<usize>(), count);
        }
    }
}
