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
    for at in range {
        operation(&mut l, plan, at)?;
    }
    l.finish()
}

fn operation(l: &mut Lowering<'_>, plan: &Plan, at: usize) -> Result<()> {
    l.begin(at);
    match &plan.ops[at] {
        Op::Unpack(o) => pixels::unpack(l, o),
        Op::PixelLoss(o) => pixels::loss(l, o),
        Op::Update(o) => optimizer::update(l, o),
        Op::Conv(o) => conv::forward(l, o),
        Op::ConvBack(o) => conv::backward(l, o),
        Op::NanoBlock(o) => nano::forward(l, o),
        Op::NanoBlockBack(o) => nano::backward(l, o),
        Op::UpHead(o) => up_head::forward(l, o),
        Op::UpHeadBack(o) => up_head::backward(l, o),
        Op::StructuralLoss(o) => structural::loss(l, o),
    }
}
