//! SPAN (Swift Parameter-free Attention Network, by Cheng Wan et al., NTIRE 2024):
//! docs/networks.md has its mathematics. Its Conv3XC convolutions keep their eight tensors in files
//! and in the optimizer; a step computes each with the one 3x3 convolution that they compose to.

use crate::model::architecture::{Alias, Architecture, Found, Recipe, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::settings::{InFile, Setting, SettingKind, SettingSpec};
use crate::model::{Error, Init, Network, ParamTable};
use crate::plan::{Activation, BufferId, GateKind, LossKind};

/// See the module's documentation.
pub(in crate::model) struct Span;

const FEATURES: &str = "feature_channels";
const NORM: &str = "norm";
const BLOCKS: usize = 6;

/// Mean colour that `norm` subtracts, and the factor after it.
const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];
const FACTOR: f32 = 255.0;

const fn sized(name: &'static str, sets: &'static [(&'static str, usize)]) -> Alias {
    Alias { name, sets }
}

static ROW: Row = Row {
    name: "span",
    aliases: &[
        sized("span_s", &[(FEATURES, 48)]),
        sized("span_f32", &[(FEATURES, 32)]),
        sized("span_f48", &[(FEATURES, 48)]),
        sized("span_f64", &[(FEATURES, 64)]),
        sized("span_f96", &[(FEATURES, 96)]),
        plain("span_f52"),
    ],
    about: "SPAN: parameter-free attention, for real time",
    scales: &[1, 2, 3, 4, 8],
    settings: &[
        SettingSpec {
            name: FEATURES,
            kind: SettingKind::Whole {
                default: 52,
                range: (1, 256),
            },
            in_file: InFile::Shapes,
            doc: "Channels of every convolution inside",
        },
        SettingSpec {
            name: NORM,
            kind: SettingKind::Flag(false),
            in_file: InFile::Shapes,
            doc: "Subtract the mean colour from the input, and multiply by 255, first",
        },
    ],
    quick: Recipe {
        lr: 5e-4,
        loss: LossKind::Charbonnier,
        settings: &[],
    },
};

/// The Conv3XC convolutions with their input channels, in the order of the file.
fn convolutions(features: usize) -> Vec<(String, usize)> {
    let blocks = (1..=BLOCKS).flat_map(|k| (1..=3).map(move |c| format!("block_{k}.c{c}_r")));
    let inner = blocks.chain(["conv_2".to_string()]);
    let first = [("conv_1".to_string(), 3)];
    let inner = inner.map(|name| (name, features));
    first.into_iter().chain(inner).collect()
}

impl Architecture for Span {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        let features = net.whole(FEATURES);
        for (name, cin) in convolutions(features) {
            let name = |layer: &str| format!("{name}.{layer}");
            t.conv(&name("sk"), features, cin, 1);
            t.conv(&name("conv.0"), 2 * cin, cin, 1);
            t.conv(&name("conv.1"), 2 * features, 2 * cin, 3);
            t.conv(&name("conv.2"), features, 2 * features, 1);
        }
        t.conv("conv_cat", features, 4 * features, 1);
        t.conv("upsampler.0", 3 * net.scale * net.scale, features, 3);
        for (name, cin) in convolutions(features) {
            let name = format!("{name}.eval_conv");
            t.add(
                format!("{name}.weight"),
                &[features, cin, 3, 3],
                Init::Derived,
                false,
            );
            t.add(format!("{name}.bias"), &[features], Init::Derived, false);
        }
        if !net.flag(NORM) {
            t.add("no_norm", &[1], Init::Derived, false);
        }
    }

    fn prepare(&self, g: &mut Graph<'_, '_>) -> Result<(), Error> {
        let features = g.net().whole(FEATURES);
        let mut all = convolutions(features).into_iter();
        all.try_for_each(|(name, cin)| g.compose(&name, cin, features))
    }

    fn tail(&self, g: &mut Graph<'_, '_>, input: Value, _: Value) -> Result<BufferId, Error> {
        let features = g.net().whole(FEATURES);
        let mut x = input;
        if g.net().flag(NORM) {
            let (mean, factor) = (MEAN, FACTOR);
            x = g.activate(x, Activation::Normalize { mean, factor });
        }
        let first = g.composed_conv("conv_1", x, features)?;
        let (mut x, mut outputs, mut inner) = (first, Vec::new(), first);
        for k in 1..=BLOCKS {
            let conv = |g: &mut Graph<'_, '_>, c: usize, x: Value| {
                g.composed_conv(&format!("block_{k}.c{c}_r"), x, features)
            };
            let o1 = conv(g, 1, x)?;
            inner = g.activate(o1, Activation::Silu);
            let o2 = conv(g, 2, inner)?;
            let o2 = g.activate(o2, Activation::Silu);
            let o3 = conv(g, 3, o2)?;
            x = g.gate(&format!("block_{k}"), GateKind::Attention, o3, Some(x));
            outputs.push(x);
        }
        let last = g.composed_conv("conv_2", x, features)?;
        let inner = g.applied("block_6.act1", inner);
        let all = g.concat("concatenation", &[first, last, outputs[0], inner]);
        let merged = g.conv("conv_cat", all)?;
        let shuffled = g.conv("upsampler.0", merged)?;
        Ok(g.shuffle(shuffled, None))
    }

    fn tiling(&self, _: &Network) -> Tiling {
        // conv_1, three convolutions a block, conv_2 and the upsampler's
        Tiling::in_blocks(1 + 3 * BLOCKS + 1 + 1)
    }

    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
        let &features = shapes.shape("block_1.c1_r.sk.weight")?.first()?;
        let scale = shapes.shape("upsampler.0.bias").and_then(|shape| {
            let scale = (shape.first()? / 3).isqrt();
            (3 * scale * scale == *shape.first()?).then_some(scale)
        });
        let norm = shapes.shape("no_norm").is_none();
        let settings = vec![
            (FEATURES, Setting::Whole(features)),
            (NORM, Setting::Flag(norm)),
        ];
        Some(Found { scale, settings })
    }

    fn derive(&self, net: &Network, table: &ParamTable, values: &mut [f32]) {
        let features = net.whole(FEATURES);
        for (name, cin) in convolutions(features) {
            compose(table, &name, (cin, features), values);
        }
    }
}

/// Computes `NAME.eval_conv` from the eight tensors of a Conv3XC from a to b channels, in f64.
fn compose(table: &ParamTable, name: &str, (a, b): (usize, usize), values: &mut [f32]) {
    let range = |tensor: &str| {
        let found = table.get(&format!("{name}.{tensor}")).map(|p| p.range);
        found.map_or(0..0, |r| r.offset..r.offset + r.len)
    };
    let read = |tensor: &str| -> Vec<f64> {
        let values = values[range(tensor)].iter();
        values.map(|&v| f64::from(v)).collect()
    };
    let (skip, skip_bias) = (read("sk.weight"), read("sk.bias"));
    let (first, first_bias) = (read("conv.0.weight"), read("conv.0.bias"));
    let (middle, middle_bias) = (read("conv.1.weight"), read("conv.1.bias"));
    let (last, last_bias) = (read("conv.2.weight"), read("conv.2.bias"));
    // last after middle: [b, 2a, 9], then after first: [b, a, 9]
    let mut two = vec![0.0; b * 2 * a * 9];
    let mut bias: Vec<f64> = (0..b).map(|o| last_bias[o] + skip_bias[o]).collect();
    for o in 0..b {
        for m in 0..2 * b {
            let w = last[o * 2 * b + m];
            bias[o] += w * middle_bias[m];
            let row = &middle[m * 2 * a * 9..][..2 * a * 9];
            let out = &mut two[o * 2 * a * 9..][..2 * a * 9];
            out.iter_mut().zip(row).for_each(|(t, v)| *t += w * v);
        }
    }
    let mut weight = vec![0.0; b * a * 9];
    for o in 0..b {
        for k in 0..2 * a {
            let taps = &two[(o * 2 * a + k) * 9..][..9];
            bias[o] += taps.iter().sum::<f64>() * first_bias[k];
            for i in 0..a {
                let w = first[k * a + i];
                let out = &mut weight[(o * a + i) * 9..][..9];
                out.iter_mut().zip(taps).for_each(|(t, v)| *t += w * v);
            }
        }
        for i in 0..a {
            weight[(o * a + i) * 9 + 4] += skip[o * a + i];
        }
    }
    let mut write = |tensor: &str, from: &[f64]| {
        let out = values[range(tensor)].iter_mut();
        out.zip(from).for_each(|(o, &v)| *o = v as f32);
    };
    write("eval_conv.weight", &weight);
    write("eval_conv.bias", &bias);
}
