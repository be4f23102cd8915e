//! The losses: the user's list of weighted kinds, and the two operations that it is split into, one
//! over single values and one over windows of an image. Depends on nothing.

use serde::{Deserialize, Serialize};

/// A loss as the user names it. The names in traiNNer-redux's option files (`l1loss` ...) are
/// accepted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LossKind {
    /// mean |p - t|
    #[serde(rename = "l1", alias = "l1loss")]
    #[cfg_attr(feature = "cli", value(name = "l1", alias = "l1loss"))]
    L1,
    /// mean sqrt((p - t)^2 + 1e-12)
    #[serde(rename = "charbonnier", alias = "charbonnierloss")]
    #[cfg_attr(
        feature = "cli",
        value(name = "charbonnier", alias = "charbonnierloss")
    )]
    Charbonnier,
    /// mean (p - t)^2
    #[serde(rename = "mse", alias = "mseloss")]
    #[cfg_attr(feature = "cli", value(name = "mse", alias = "mseloss"))]
    Mse,
    /// 1 - SSIM of the luma, mean over images
    #[serde(rename = "ssim", alias = "ssimloss")]
    #[cfg_attr(feature = "cli", value(name = "ssim", alias = "ssimloss"))]
    Ssim,
    /// 1 - multi-scale SSIM of the luma, mean over images
    #[serde(rename = "mssim", alias = "mssimloss")]
    #[cfg_attr(feature = "cli", value(name = "mssim", alias = "mssimloss"))]
    MsSsim,
}

impl LossKind {
    /// Every kind, in the order of the help.
    pub const ALL: [LossKind; 5] = [
        LossKind::L1,
        LossKind::Charbonnier,
        LossKind::Mse,
        LossKind::Ssim,
        LossKind::MsSsim,
    ];

    /// The name on the command line; an option file writes it with `loss` appended.
    pub fn name(self) -> &'static str {
        match self {
            LossKind::L1 => "l1",
            LossKind::Charbonnier => "charbonnier",
            LossKind::Mse => "mse",
            LossKind::Ssim => "ssim",
            LossKind::MsSsim => "mssim",
        }
    }

    /// The kind of this name, with or without `loss` appended, in any case.
    pub fn from_name(name: &str) -> Option<LossKind> {
        let name = name.to_ascii_lowercase();
        let short = name.strip_suffix("loss").unwrap_or(&name);
        LossKind::ALL.into_iter().find(|kind| kind.name() == short)
    }
}

/// A loss of single values: a mean over all values of the micro-batch. p is the prediction, t the
/// target, both in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelLossKind {
    /// mean |p - t|
    L1,
    /// mean sqrt((p - t)^2 + 1e-12)
    Charbonnier,
    /// mean (p - t)^2
    Mse,
}

/// A loss of whole images: 1 - the mean over the micro-batch of each image's similarity, which is
/// in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StructuralLossKind {
    /// Mean SSIM of the luma, with the prediction clamped to [0, 1] (Wang et al., "Image quality
    /// assessment: from error visibility to structural similarity", 2004).
    Ssim,
    /// SSIM of the same luma at five scales, without the luminance term (Wang et al., "Multiscale
    /// structural similarity for image quality assessment", 2003).
    MultiScale,
}

/// Weighted terms of a [`PixelLoss`](super::PixelLoss).
pub type PixelTerms = Vec<(PixelLossKind, f32)>;
/// Weighted terms of a [`StructuralLoss`](super::StructuralLoss).
pub type StructuralTerms = Vec<(StructuralLossKind, f32)>;

/// Splits the user's list into the terms of the two operations; each keeps the list's order.
pub fn split_losses(losses: &[(LossKind, f32)]) -> (PixelTerms, StructuralTerms) {
    let (mut pixel, mut structural) = (Vec::new(), Vec::new());
    for &(kind, weight) in losses {
        match kind {
            LossKind::L1 => pixel.push((PixelLossKind::L1, weight)),
            LossKind::Charbonnier => pixel.push((PixelLossKind::Charbonnier, weight)),
            LossKind::Mse => pixel.push((PixelLossKind::Mse, weight)),
            LossKind::Ssim => structural.push((StructuralLossKind::Ssim, weight)),
            LossKind::MsSsim => structural.push((StructuralLossKind::MultiScale, weight)),
        }
    }
    (pixel, structural)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_user_and_of_the_framework_are_understood() {
        for kind in LossKind::ALL {
            let name = serde_json::to_value(kind).unwrap();
            let name = name.as_str().unwrap();
            for name in [name.to_string(), format!("{name}loss")] {
                assert_eq!(
                    serde_json::from_value::<LossKind>(name.clone().into()).unwrap(),
                    kind
                );
                assert_eq!(LossKind::from_name(&name), Some(kind));
            }
        }
        assert_eq!(serde_json::to_value(LossKind::MsSsim).unwrap(), "mssim");
    }

    #[test]
    fn the_split_keeps_weights_and_order() {
        let (pixel, structural) = split_losses(&[
            (LossKind::MsSsim, 0.1),
            (LossKind::Mse, 0.2),
            (LossKind::L1, 0.3),
            (LossKind::Ssim, 0.4),
        ]);
        assert_eq!(pixel, [(PixelLossKind::Mse, 0.2), (PixelLossKind::L1, 0.3)]);
        assert_eq!(
            structural,
            [
                (StructuralLossKind::MultiScale, 0.1),
                (StructuralLossKind::Ssim, 0.4)
            ]
        );
    }
}
