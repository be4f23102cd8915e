//! Compact (SRVGGNetCompact, from Real-ESRGAN, by Xintao Wang et al.): docs/networks.md has its
//! mathematics. Only the values before each activation are stored; the convolution that reads them
//! applies it.

use crate::model::architecture::{Alias, Architecture, Found, Recipe, Row, Shapes, Tiling, plain};
use crate::model::graph::{Graph, Value};
use crate::model::settings::{InFile, Setting, SettingKind, SettingSpec};
use crate::model::{Error, Init, Network, ParamTable};
use crate::plan::{Activation, BufferId, LossKind};

/// See the module's documentation.
pub(in crate::model) struct Compact;

const FEATURES: &str = "num_feat";
const CONVS: &str = "num_conv";
const ACTIVATION: &str = "act_type";

static ROW: Row = Row {
    name: "compact",
    aliases: &[
        plain("srvggnetcompact"),
        plain("realesrgan_compact"),
        Alias {
            name: "ultracompact",
            sets: &[(FEATURES, 64), (CONVS, 8)],
        },
        Alias {
            name: "superultracompact",
            sets: &[(FEATURES, 24), (CONVS, 8)],
        },
    ],
    about: "Compact (SRVGGNetCompact): plain convolutions with PReLU",
    scales: &[1, 2, 3, 4, 8],
    settings: &[
        SettingSpec {
            name: FEATURES,
            kind: SettingKind::Whole {
                default: 64,
                range: (1, 256),
            },
            in_file: InFile::Shapes,
            doc: "Channels of every convolution inside",
        },
        SettingSpec {
            name: CONVS,
            kind: SettingKind::Whole {
                default: 16,
                range: (1, 64),
            },
            in_file: InFile::Shapes,
            doc: "Convolutions between the first and the last",
        },
        SettingSpec {
            name: ACTIVATION,
            kind: SettingKind::Choice(&["prelu", "relu", "leakyrelu"]),
            in_file: InFile::Metadata,
            doc: "Activation after each convolution but the last",
        },
    ],
    quick: Recipe {
        lr: 5e-4,
        loss: LossKind::Charbonnier,
        settings: &[],
    },
};

/// Slope of LeakyReLU where x is negative.
const LEAKY_SLOPE: f32 = 0.1;

impl Architecture for Compact {
    fn row(&self) -> &'static Row {
        &ROW
    }

    fn parameters(&self, net: &Network, t: &mut ParamTable) {
        let (features, convs) = (net.whole(FEATURES), net.whole(CONVS));
        for i in 0..=convs {
            let cin = if i == 0 { 3 } else { features };
            t.conv(&format!("body.{}", 2 * i), features, cin, 3);
            if net.choice(ACTIVATION) == "prelu" {
                let (name, start) = (format!("body.{}.weight", 2 * i + 1), Init::Constant(0.25));
                t.add(name, &[features], start, true);
            }
        }
        let last = format!("body.{}", 2 * convs + 2);
        t.conv(&last, 3 * net.scale * net.scale, features, 3);
    }

    fn tail(&self, g: &mut Graph<'_, '_>, input: Value, _: Value) -> Result<BufferId, Error> {
        let convs = g.net().whole(CONVS);
        let mut x = input;
        for i in 0..=convs {
            let z = g.conv(&format!("body.{}", 2 * i), x)?;
            let activation = match g.net().choice(ACTIVATION) {
                "relu" => Activation::Relu,
                "leakyrelu" => Activation::LeakyRelu { slope: LEAKY_SLOPE },
                _ => Activation::PRelu {
                    slopes: g.param(&format!("body.{}.weight", 2 * i + 1))?,
                },
            };
            x = g.activate(z, activation);
        }
        let last = g.conv(&format!("body.{}", 2 * convs + 2), x)?;
        Ok(g.shuffle(last, Some(input)))
    }

    fn tiling(&self, net: &Network) -> Tiling {
        Tiling::in_blocks(net.whole(CONVS) + 2)
    }

    fn recognise(&self, shapes: &dyn Shapes) -> Option<Found> {
        let &[features, 3, 3, 3] = shapes.shape("body.0.weight")? else {
            return None;
        };
        let has = |i: usize| shapes.shape(&format!("body.{}.bias", 2 * i));
        let convs = (0..)
            .take_while(|&i| has(i).is_some())
            .count()
            .checked_sub(2)?;
        let &[out] = has(convs + 1)? else {
            return None;
        };
        let scale = (out / 3).isqrt();
        let mut settings = vec![
            (FEATURES, Setting::Whole(features)),
            (CONVS, Setting::Whole(convs)),
        ];
        if shapes.shape("body.1.weight").is_some() {
            settings.push((ACTIVATION, Setting::Choice("prelu".into())));
        }
        let scale = (3 * scale * scale == out).then_some(scale);
        Some(Found { scale, settings })
    }
}
