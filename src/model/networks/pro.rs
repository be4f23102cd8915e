//! ParagonSR2 Pro, by Philip Hofmann: docs/networks.md has its mathematics. Its blocks are four
//! residuals: a convolution, channel attention, window attention, and attention to a dictionary of
//! tokens.

use super::paragon::{self, FEATURES};
use crate::model::architecture::{Architecture, Found, Row, Shapes, Stage, Stages, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::{Error, Init, Network, ParamTable};
use crate::plan::BufferId;

/// See the module's documentation.
pub(in crate::model) struct Pro;

/// Groups of blocks, which add no skip of their own.
const GROUPS: usize = 6;
/// Blocks in a group.
const BLOCKS: usize = 6;
/// Values between the two products of the channel attention.
const SQUEEZED: usize = FEATURES / 16;
/// Tokens of a dictionary.
const TOKENS: usize = 64;
/// Values of a query and of a token's key.
const QUERY: usize = 16;
/// Windows that approximate tiles overlap by at each side: fewer than the blocks together see,
/// because no number of them would give the result of the whole image.
const APPROXIMATE_HALO: usize = 4;
/// Deviation of the tokens at the start.
const TOKEN_DEVIATION: f32 = 0.02;

static ROW: Row = Row {
    name: "paragonsr2_pro",
    aliases: &[plain("pro")],
    about: "ParagonSR2 Pro: window, channel and token attention, the largest",
    scales: paragon::SCALES,
    settings: paragon::WINDOW_SETTINGS,
    quick: paragon::QUICK,
};

impl Architecture for Pro {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        paragon::first_parameters(net, t, FEATURES);
        for block in paragon::block_names(GROUPS, BLOCKS) {
            let name = |layer: &str| format!("{block}.{layer}");
            paragon::norm_parameters(t, &name("norm1"));
            paragon::mix_parameters(t, &block);
            for (layer, out, input) in [("0", SQUEEZED, FEATURES), ("2", FEATURES, SQUEEZED)] {
                let name = name(&format!("channel_attn.fc.{layer}.weight"));
                t.add(name, &[out, input], Init::FanIn(input), true);
            }
            paragon::norm_parameters(t, &name("norm3"));
            paragon::attention_parameters(t, &name("window_attn"));
            paragon::norm_parameters(t, &name("norm4"));
            let tokens = Init::Normal(TOKEN_DEVIATION);
            let shape = [1, TOKENS, FEATURES];
            t.add(name("token_ca.token_dict"), &shape, tokens, true);
            t.linear(&name("token_ca.q_proj"), QUERY, FEATURES);
            t.linear(&name("token_ca.k_proj"), QUERY, FEATURES);
            t.linear(&name("token_ca.v_proj"), FEATURES, FEATURES);
            t.linear(&name("token_ca.out_proj"), FEATURES, FEATURES);
            for number in 1..=4 {
                paragon::layer_scale(net, t, name(&format!("scale{number}.gamma")), FEATURES);
            }
        }
        paragon::last_parameters(net, t, FEATURES);
    }

    fn tail(&self, g: &mut Graph<'_, '_>, input: Value, _: Value) -> Result<BufferId, Error> {
        paragon::tail_of_blocks(g, input, self.blocks())
    }

    fn block(&self, g: &mut Graph<'_, '_>, number: usize, x: Value) -> Result<Value, Error> {
        let x = mix(g, number, x)?;
        attend(g, number, x, None)
    }

    fn blocks(&self) -> usize {
        GROUPS * BLOCKS
    }

    fn tiling(&self, net: &Network) -> Tiling {
        let window = paragon::window(net);
        Tiling {
            halo: APPROXIMATE_HALO * window,
            align: window,
            wraps: true,
            // channel attention weighs channels by their means over the whole image
            whole_image: true,
        }
    }

    /// A stage begins with the channel attention of the block before, whose means are known by then,
    /// and ends where the next ones are taken.
    fn stages(&self, net: &Network) -> Option<Stages> {
        let window = paragon::window(net);
        Some(Stages {
            count: self.blocks() + 1,
            channels: FEATURES,
            tiling: Tiling::in_windows_of_stages(window),
        })
    }

    fn stage(&self, g: &mut Graph<'_, '_>, stage: Stage) -> Result<BufferId, Error> {
        let last = self.blocks() - 1;
        match stage {
            Stage::First { input } => {
                let x = g.conv("conv_in", input)?;
                Ok(mix(g, 0, x)?.buffer)
            }
            Stage::Middle { number, start } => {
                let x = attend(g, number - 1, start.features, Some(start.means))?;
                Ok(mix(g, number, x)?.buffer)
            }
            Stage::Last { input, start } => {
                let x = attend(g, last, start.features, Some(start.means))?;
                paragon::tail(g, input, x)
            }
        }
    }

    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
        paragon::recognise(shapes, "window_attn.qkv.weight")
    }
}

/// Appends the first residual of a block, a convolution.
fn mix(g: &mut Graph<'_, '_>, number: usize, x: Value) -> Result<Value, Error> {
    let block = paragon::block_name(number, BLOCKS);
    let mixed = g.rms_norm(&format!("{block}.norm1"), x, 1)?;
    let mixed = paragon::mix_channels(g, &block, mixed)?;
    add(g, &block, 1, (x, mixed))
}

/// Appends the other residuals of a block, the three kinds of attention. `means`: those of `x` over
/// the image that it is a part of.
fn attend(
    g: &mut Graph<'_, '_>,
    number: usize,
    x: Value,
    means: Option<BufferId>,
) -> Result<Value, Error> {
    let block = paragon::block_name(number, BLOCKS);
    let name = |layer: &str| format!("{block}.{layer}");
    let weighted = g.channel_attention(&name("channel_attn"), x, means)?;
    let x = add(g, &block, 2, (x, weighted))?;
    let seen = paragon::attend(g, number, (&name("norm3"), &name("window_attn")), x)?;
    let x = add(g, &block, 3, (x, seen))?;
    let known = g.rms_norm(&name("norm4"), x, 1)?;
    let known = g.token_attention(&name("token_ca"), known)?;
    add(g, &block, 4, (x, known))
}

/// Appends the sum of `x` and the scaled result of residual `number` of a block.
fn add(
    g: &mut Graph<'_, '_>,
    block: &str,
    number: usize,
    (x, part): (Value, Value),
) -> Result<Value, Error> {
    let gamma = g.param(&format!("{block}.scale{number}.gamma"))?;
    Ok(g.scaled_sum(&format!("{block}.sum{number}"), x, part, Some(gamma)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (scale, count) in [(2, 1_993_420), (4, 2_436_556)] {
            assert_eq!(paragon::published_count("pro", scale), count);
        }
    }
}
