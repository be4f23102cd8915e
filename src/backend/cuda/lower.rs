//! A plan to its launches: one call for every operation, to the file of its family. Depends on the families.

use super::launch::{Launch, Lowering, Program};
use super::{conv, nano, optimizer, pixels, structural, up_head};
use crate::plan::{Op, Plan};
use anyhow::Result;
use std::ops::Range;

/// The launches of a plan made with [`super::CudaSizing`].
///
/// # Errors
/// When an operation has no kernel for its shape, or a launch would be larger than a device allows.
pub fn lower(plan: &Plan) -> Result<Program> {
    Ok(Program { micro: lower_range(plan, plan.micro.clone())?, update: lower_range(plan, plan.update.clone())? })
}

/// The launches of some operations of a plan. Sums that the plan has added up late are so at the end of the range.
///
/// # Errors
/// As [`lower`].
pub fn lower_range(plan: &Plan, range: Range<usize>) -> Result<Vec<Launch>> {
    let mut l = Lowering::new(plan);
    for at in range.clone() {
        operation(&mut l, plan, at, &range)?;
    }
    l.finish()
}

fn operation(l: &mut Lowering<'_>, plan: &Plan, at: usize, range: &Range<usize>) -> Result<()> {
    l.begin(at);
    // a loss is computed on the way where its operation is lowered, too
    let on_the_way = |end: usize| plan.loss_on_the_way(end).filter(|_| range.contains(&end) && range.contains(&(end + 1)));
    match &plan.ops[at] {
        Op::Unpack(_) if plan.unpacks_on_the_way(at) && range.contains(&(at + 1)) => Ok(()),
        Op::Unpack(o) => pixels::unpack(l, o),
        Op::PixelLoss(o) => {
            let end = at.checked_sub(1).filter(|&end| on_the_way(end).is_some());
            let blocks = end.and_then(|end| if let Op::UpHead(o) = &plan.ops[end] { Some(up_head::loss_blocks(o)) } else { None });
            pixels::loss(l, o, blocks)
        }
        Op::Update(o) => optimizer::update(l, o),
        Op::Conv(o) => {
            let before = at.checked_sub(1).filter(|&before| range.contains(&before) && plan.unpacks_on_the_way(before));
            let unpack = before.and_then(|before| if let Op::Unpack(o) = &plan.ops[before] { Some(o) } else { None });
            conv::forward(l, o, unpack)
        }
        Op::ConvBack(o) => conv::backward(l, o),
        Op::NanoBlock(o) => nano::forward(l, o),
        Op::NanoBlockBack(o) => nano::backward(l, o),
        Op::UpHead(o) => up_head::forward(l, o, on_the_way(at)),
        Op::UpHeadBack(o) => up_head::backward(l, o),
        Op::StructuralLoss(o) => structural::loss(l, o),
    }
}
