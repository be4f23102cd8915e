//! From a plan to its launches: every operation is lowered by the file of its family; here are
//! the pairs that one kernel computes at once. Depends on the families.

use super::choices::Choices;
use super::launch::{Launch, Program};
use super::lowering::Lowering;
use super::plain::norm;
use super::{conv, operation, pixels, reconstruct, reduce, structural};
use crate::plan::{Op, PlanData};
use anyhow::{Result, ensure};
use std::ops::Range;

/// The launches of a plan made with [`super::CudaSizing`], with what the card decides.
///
/// # Errors
/// When an operation has no kernel for its shape, or a launch would be larger than a device allows.
pub fn lower(plan: &PlanData, choices: Choices) -> Result<Program> {
    Ok(Program {
        micro: lower_range_for(plan, plan.micro.clone(), choices)?,
        update: lower_range_for(plan, plan.update.clone(), choices)?,
    })
}

/// The launches of a range of a plan's operations, with the choices that suit no card in particular.
/// Deferred sums are flushed at its end.
///
/// # Errors
/// As [`lower`].
pub fn lower_range(plan: &PlanData, range: Range<usize>) -> Result<Vec<Launch>> {
    lower_range_for(plan, range, Choices::default())
}

/// As [`lower_range`] with these choices.
///
/// # Errors
/// As [`lower`].
pub fn lower_range_for(
    plan: &PlanData,
    range: Range<usize>,
    choices: Choices,
) -> Result<Vec<Launch>> {
    ensure!(
        range.start <= range.end && range.end <= plan.ops.len(),
        "operations {range:?} of a plan of {}",
        plan.ops.len()
    );
    check_extents(&plan.ops[range.clone()])?;
    let (mut l, mut at) = (Lowering::new(plan, choices)?, range.start);
    while at < range.end {
        l.begin(at);
        if at + 1 < range.end && fused(&mut l, plan, at)? {
            at += 2;
        } else {
            operation::of(&plan.ops[at]).lower(&mut l)?;
            at += 1;
        }
    }
    reduce::flush(&mut l)?;
    l.finish()
}

/// Refuses operations that are too large for the kernels, which count the values of an activation
/// or image in signed 32 bits.
fn check_extents(ops: &[Op]) -> Result<()> {
    for op in ops {
        let values = op.largest_extent();
        ensure!(
            values <= i32::MAX as u64,
            crate::backend::Error::Unsupported(format!(
                "\"{}\" would have {values} values at once and the CUDA kernels count up to {}; give a smaller batch, patch or tile",
                op.label(),
                i32::MAX
            ))
        );
    }
    Ok(())
}

/// Lowers an operation and the next one as one launch, where a kernel does both; returns false
/// where none does.
fn fused(l: &mut Lowering<'_>, plan: &PlanData, at: usize) -> Result<bool> {
    if plan.fusion(at).is_none() {
        return Ok(false);
    }
    match (&plan.ops[at], &plan.ops[at + 1]) {
        (Op::Unpack(unpack), Op::Conv(conv)) if conv::is_tuned(conv) => {
            l.begin(at + 1);
            conv::forward(l, conv, Some(unpack))?;
        }
        (Op::Reconstruct(end), Op::PixelLoss(loss)) => {
            reconstruct::forward(l, end, Some(loss))?;
            l.begin(at + 1);
            pixels::defer_loss(l, loss, reconstruct::loss_blocks(end, l.choices.sum_blocks))?;
        }
        (Op::PixelLoss(pixel), Op::StructuralLoss(loss)) => {
            l.begin(at + 1);
            structural::loss(l, loss, Some(pixel))?;
            l.begin(at);
            pixels::defer_shares(l, pixel, structural::finest_patches(loss))?;
        }
        (Op::RmsNorm(norm), Op::Conv(conv)) if norm::joins_conv(plan, at, norm, conv) => {
            l.begin(at + 1);
            norm::lower_with_conv(l, at + 1, norm, conv)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::CudaSizing;
    use super::*;
    use crate::model::{InferenceSpec, Network, inference_plan};
    use crate::plan::Precision;

    /// Whether a tile of an image can be enlarged by 8.
    fn lowered(side: usize) -> Result<Program> {
        let spec = InferenceSpec {
            batch: 1,
            lq: (side, side),
            float_input: false,
        };
        let sizing = CudaSizing {
            precision: Precision::F32,
        };
        let plan = inference_plan(&Network::new("nano", 8)?, &spec, &sizing)?;
        lower(&plan, Choices::default())
    }

    #[test]
    fn a_tile_that_kernels_cannot_index_is_refused() {
        // 3 x (3344 x 8)^2 values are just below 2^31
        lowered(3344).unwrap();
        let error = lowered(3345).unwrap_err();
        let kind = error.downcast_ref();
        assert!(
            matches!(kind, Some(crate::backend::Error::Unsupported(text)) if text.contains("smaller")),
            "{error:#}"
        );
    }
}
