//! ParagonSR2 Stream, by Philip Hofmann: docs/networks.md has its mathematics. Its blocks are one
//! fused operation each and keep only their input for the backward pass.

use super::paragon;
use crate::model::architecture::{Architecture, Found, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::{Error, Network, ParamTable};
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
    paragon::block_names(GROUPS, BLOCKS)
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
            paragon::layer_scale(net, t, name("scale.gamma"), FEATURES);
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
        Tiling::with_tail_in_blocks(1 + GROUPS * BLOCKS * BLOCK_HALO)
    }

    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
        paragon::recognise(shapes, "dw1.weight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{CpuBackend, CpuOptions};
    use crate::backend::{Backend, Scalars, read_floats, write_floats};
    use crate::model::StepSpec;
    use crate::model::step::training_plan_as;
    use crate::plan::{GateKind, LossKind};
    use crate::support::rng::Rng;

    /// Stream from plain operations: every step of the block is one of its own.
    struct PlainStream;

    fn plain_block(g: &mut Graph<'_, '_>, block: &str, x: Value) -> Result<Value, Error> {
        let name = |layer: &str| format!("{block}.{layer}");
        let near = g.conv(&name("dw1"), x)?;
        let far = g.dilated_conv(&name("dw3"), x, 3)?;
        let both = g.concat(&name("both"), &[near, far]);
        let t = g.conv(&name("fuse"), both)?;
        let p = g.conv(&name("proj"), t)?;
        let p = g.conv(&name("gate"), p)?;
        let m = g.gate(&name("m"), GateKind::Halves { limit: 65504.0 }, p, None);
        let out = g.conv(&name("out"), m)?;
        let gamma = g.param(&name("scale.gamma"))?;
        Ok(g.scaled_sum(block, x, out, Some(gamma)))
    }

    impl Architecture for PlainStream {
        fn row(&self) -> &'static Row {
            &ROW
        }

        fn parameters(&self, net: &Network, t: &mut ParamTable) {
            Stream.parameters(net, t);
        }

        fn body(&self, g: &mut Graph<'_, '_>, input: Value) -> Result<Value, Error> {
            let first = g.conv("conv_in", input)?;
            block_names().try_fold(first, |x, block| plain_block(g, &block, x))
        }

        fn tail(
            &self,
            g: &mut Graph<'_, '_>,
            input: Value,
            features: Value,
        ) -> Result<BufferId, Error> {
            Stream.tail(g, input, features)
        }

        fn tiling(&self, net: &Network) -> Tiling {
            Stream.tiling(net)
        }

        fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
            Stream.recognise(shapes)
        }
    }

    /// The gradients of a step, and those of the input.
    fn gradients(architecture: &dyn Architecture) -> (Vec<f32>, Vec<f32>) {
        let mut net = Network::new("stream", 2).unwrap();
        net.set("layer_scale", 0.5).unwrap();
        net.set("detail_gain", 0.5).unwrap();
        let (batch, lq) = (2, (13, 19));
        let spec = StepSpec {
            float_input: true,
            input_gradient: true,
            ..StepSpec::new(batch, lq, vec![(LossKind::Mse, 1.0)])
        };
        let options = CpuOptions::new(2);
        let plan = training_plan_as(architecture, &net, &spec, &options).unwrap();
        let ports = plan.ports;
        let mut backend = CpuBackend::new(plan, options).unwrap();
        let mut rng = Rng::new(&[4]);
        let mut image = |values: usize| -> Vec<f32> {
            (0..values).map(|_| rng.range(0.0, 1.0) as f32).collect()
        };
        let values = batch * lq.0 * lq.1 * 3;
        let start = net.params().start_values(3);
        write_floats(&mut backend, ports.parameters.unwrap(), &start).unwrap();
        write_floats(&mut backend, ports.input.unwrap(), &image(values)).unwrap();
        write_floats(&mut backend, ports.target.unwrap(), &image(4 * values)).unwrap();
        backend
            .micro_step(&Scalars {
                lr: 0.0,
                step: 1,
                clip: f64::INFINITY,
                ema_decay: 0.0,
                micro_scale: 1.0,
                loss_scale: 1.0,
                accumulate: false,
            })
            .unwrap();
        let mut all = vec![0.0; net.params().trainable()];
        read_floats(&mut backend, ports.gradients.unwrap(), &mut all).unwrap();
        let mut d_input = vec![0.0; values];
        for part in ports.input_gradients.into_iter().flatten() {
            let mut more = vec![0.0; values];
            read_floats(&mut backend, part, &mut more).unwrap();
            d_input.iter_mut().zip(&more).for_each(|(d, m)| *d += m);
        }
        (all, d_input)
    }

    #[test]
    fn the_fused_block_agrees_with_plain_operations() {
        let (fused, plain) = (gradients(&Stream), gradients(&PlainStream));
        for (a, b) in [(&fused.0, &plain.0), (&fused.1, &plain.1)] {
            let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
            let size = norm(&mut b.iter().copied());
            assert!(difference < 3e-6 * size, "{difference:e} of {size:e}");
        }
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 110_092), (4, 221_068)] {
            assert_eq!(paragon::published_count("stream", scale), count);
        }
    }
}
