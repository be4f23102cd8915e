//! Names the networks of other programs by their tensors, so that a model which cannot be used here
//! is refused by its name. Depends on the tensors' names alone; a network of paragon is never
//! named by it.

use super::names::Tensors;
use crate::model::architecture::ARCHITECTURES;
use crate::model::{Error, Network};
use crate::support::text::brief;

/// Networks, and keys of their tensors that no other one has: all keys of a row must be there.
/// Rows are tried in this order, since some networks have all layers of another one.
const NETWORKS: &[(&str, &[&str])] = &[
    ("ESRGAN (RRDBNet)", &["1.sub.0.RDB1.conv1.0.weight"]),
    ("ESRGAN+", &["1.sub.0.RDB1.conv1x1.weight"]),
    ("ESRGAN (RRDBNet)", &["body.0.rdb1.conv1.weight"]),
    (
        "ESRGAN (BSRGAN, RealSR)",
        &["RRDB_trunk.0.RDB1.conv1.weight"],
    ),
    (
        "RealPLKSR",
        &[
            "feats.1.lk.conv.weight",
            "feats.1.refine.weight",
            "feats.1.norm.weight",
        ],
    ),
    (
        "RealPLKSR",
        &[
            "feats.1.lk.conv.weight",
            "feats.1.refine.weight",
            "feats.1.layer_norm.weight",
        ],
    ),
    (
        "PLKSR",
        &["feats.1.lk.conv.weight", "feats.1.refine.weight"],
    ),
    (
        "PLKSR",
        &["feats.1.lk.convs.0.weight", "feats.1.refine.weight"],
    ),
    (
        "PLKSR",
        &["feats.1.lk.mn_conv.weight", "feats.1.refine.weight"],
    ),
    (
        "OmniSR",
        &["residual_layer.0.residual_layer.0.layer.0.fn.0.weight"],
    ),
    ("RCAN", &["body.0.body.0.body.3.conv_du.0.weight"]),
    ("RCAN", &["body.0.rcab.0.rcab.3.attention.1.weight"]),
    ("HAT", &["layers.0.residual_group.overlap_attn.qkv.weight"]),
    (
        "ATD",
        &["layers.0.residual_group.layers.0.attn_atd.wq.weight"],
    ),
    (
        "SRFormer",
        &["layers.0.residual_group.blocks.0.attn.aligned_relative_position_index"],
    ),
    (
        "Swin2SR",
        &["layers.0.residual_group.blocks.0.attn.logit_scale"],
    ),
    (
        "SwinIR",
        &["layers.0.residual_group.blocks.0.attn.relative_position_bias_table"],
    ),
    (
        "CRAFT",
        &["layers.0.residual_group.hf_blocks.0.attn.temperature"],
    ),
    (
        "DRCT",
        &["layers.0.swin1.attn.qkv.weight", "layers.0.adjust1.weight"],
    ),
    (
        "RGT",
        &[
            "layers.0.blocks.0.attn.attns.0.rpe_biases",
            "layers.0.blocks.0.gamma",
        ],
    ),
    ("DAT", &["layers.0.blocks.0.attn.attns.0.rpe_biases"]),
    (
        "GRL",
        &["layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale"],
    ),
    ("DITN", &["UFONE.0.ITLs.0.attn.temperature"]),
    ("FDAT", &["groups.0.blocks.0.inter.cg.1.weight"]),
    ("RTMoSR", &["body.0.fc1.alpha"]),
    ("MoSR", &["gblocks.0.weight", "gblocks.1.fc1.weight"]),
    (
        "MoESR",
        &[
            "in_to_dim.weight",
            "blocks.0.blocks.0.conv.dwconv_hw.weight",
        ],
    ),
    ("SeemoRe", &["body.0.local_block.norm_1.weight"]),
    ("SAFMN", &["feats.0.safm.mfr.0.weight"]),
    ("SAFMN (BCIE)", &["feats.0.layers.0.safm.mfr.0.weight"]),
    ("SPAN+ (SPANPlus)", &["feats.0.eval_conv.weight"]),
    (
        "EDSR",
        &["head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"],
    ),
    (
        "EDSR",
        &[
            "conv_first.weight",
            "body.0.conv1.weight",
            "conv_after_body.weight",
        ],
    ),
    ("Real-CUGAN", &["unet1.conv1.conv.0.weight"]),
    ("SwiftSRGAN", &["initial.cnn.depthwise.weight"]),
    ("SCUNet", &["m_head.0.weight", "m_body.0.conv1_1.weight"]),
    ("DRUNet", &["m_head.weight", "m_down1.0.res.0.weight"]),
    (
        "NAFNet",
        &["intro.weight", "ending.weight", "middle_blks.0.beta"],
    ),
    ("GFPGAN", &["stylegan_decoder.style_mlp.1.weight"]),
    ("RetinexFormer", &["body.0.estimator.conv1.weight"]),
    (
        "the earlier ParagonSR2 Nano (November 2025)",
        &["body.0.blocks.0.context.dwconv_h.weight"],
    ),
];

/// Most keys that a message names.
const NAMED: usize = 4;

/// Refuses tensors that are of a network of another program. With `unknown`, tensors that no
/// network here has a name of are refused as well.
///
/// # Errors
/// [`Error::OtherNetwork`] by its name, [`Error::Unrecognised`].
pub(super) fn check(tensors: &Tensors, unknown: bool) -> Result<(), Error> {
    let has = |key: &str| tensors.contains_key(key);
    let known = NETWORKS
        .iter()
        .find(|(_, keys)| keys.iter().all(|key| has(key)));
    if let Some((name, _)) = known {
        return Err(Error::OtherNetwork {
            looks_like: (*name).to_string(),
        });
    }
    // Compact for other images than RGB, which its `recognise` refuses
    let first = tensors.get("body.0.weight").map(|tensor| tensor.shape());
    if let (Some(&[_, channels, 3, 3]), true) = (first, has("body.2.weight"))
        && channels != 3
    {
        return Err(Error::OtherNetwork {
            looks_like: format!("Compact for images of {channels} channels, not 3 (RGB)"),
        });
    }
    if !unknown {
        return Ok(());
    }
    let ours = ARCHITECTURES.into_iter().any(|architecture| {
        let row = architecture.row();
        let net = row
            .scales
            .first()
            .map(|&scale| Network::new(row.name, scale));
        let table = net.and_then(Result::ok).map(|net| net.params());
        table.is_some_and(|table| tensors.keys().any(|name| table.get(name).is_some()))
    });
    if ours {
        return Ok(());
    }
    let mut names: Vec<String> = tensors.keys().take(NAMED).map(brief).collect();
    if tensors.len() > NAMED {
        names.push("...".to_string());
    }
    Err(Error::Unrecognised {
        tensors: names.join(", "),
    })
}
