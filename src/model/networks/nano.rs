//! ParagonSR2 Nano ("realtime"), by Philip Hofmann: docs/networks.md has its mathematics. Its
//! blocks are one fused operation each and keep only their input for the backward pass.

use super::paragon;
use crate::model::architecture::{Architecture, Found, Recipe, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::{Error, Network, ParamTable};
use crate::plan::BufferId;

/// See the module's documentation.
pub(in crate::model) struct Nano;

/// Features F: channels of every activation at LQ resolution.
const FEATURES: usize = 16;
/// Blocks in its single group.
const BLOCKS: usize = 3;

static ROW: Row = Row {
    name: "paragonsr2_realtime",
    aliases: &[plain("nano"), plain("paragonsr2_nano"), plain("realtime")],
    about: "ParagonSR2 Nano: the smallest and fastest",
    scales: paragon::SCALES,
    settings: &[
        paragon::alpha(0.3),
        paragon::gain(0.05),
        paragon::LAYER_SCALE,
    ],
    // the higher the rate, the sooner the network leaves the linear regime (docs/BENCHMARKS.md)
    quick: Recipe {
        lr: 4e-3,
        ..paragon::QUICK
    },
};

fn block_name(i: usize) -> String {
    format!("body.0.blocks.{i}")
}

impl Architecture for Nano {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        paragon::first_parameters(net, t, FEATURES);
        for i in 0..BLOCKS {
            let name = |layer: &str| format!("{}.{layer}", block_name(i));
            t.conv(&name("conv1"), 2 * FEATURES, FEATURES, 1);
            t.conv(&name("dw"), 2 * FEATURES, 1, 3);
            t.conv(&name("conv2"), FEATURES, 2 * FEATURES, 1);
            paragon::layer_scale(net, t, name("scale.gamma"), FEATURES);
        }
        paragon::last_parameters(net, t, FEATURES);
    }

    fn body(&self, g: &mut Graph<'_, '_>, input: Value) -> Result<Value, Error> {
        let mut x = g.conv("conv_in", input)?;
        for i in 0..BLOCKS {
            x = g.nano_block(&block_name(i), x)?;
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
        Tiling::with_halo(paragon::halo(BLOCKS))
    }

    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
        // Photo and Pro have such a layer too, after a norm
        let normed = ["norm", "norm1"].map(|norm| format!("body.0.blocks.0.{norm}.scale"));
        let own = normed.iter().all(|name| shapes.shape(name).is_none());
        own.then(|| paragon::recognise(shapes, "conv1.weight"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 16_780), (4, 44_620)] {
            // the two `base.*.kernel` buffers are in the state_dict but are no parameters
            let table = Network::new("nano", scale).unwrap().params();
            let parameters = table.params.iter().filter(|p| !p.name.ends_with("kernel"));
            assert_eq!(parameters.map(|p| p.range.len).sum::<usize>(), count);
        }
    }
}
