//! The block of numbers that change from step to step: they lie in device memory, so that a
//! captured graph stays valid. Depends on the plan and on launches.

use super::arguments::Address;
use super::launch::{Launch, Shape};
use super::signatures::{DeviceScalars, SET_SCALARS, SetScalarsArguments};
use crate::backend::Scalars;
use crate::plan::{Op, OptimizerKind, PlanData, Update};

/// Size of the block of scalars.
pub const SCALARS_BYTES: u64 = size_of::<DeviceScalars>() as u64;

/// The launch that puts a step's scalars where the kernels read them; `None` for a plan without
/// them. What follows from betas, decay and step number is computed here in f64.
pub fn scalars_launch(plan: &PlanData, scalars: &Scalars) -> Option<Launch> {
    let buffer = plan.ports.scalars?;
    let arguments = SetScalarsArguments {
        out: Address::new(buffer, 0),
        values: values(plan, scalars),
    };
    // a launch of one block is never too large
    Launch::new(None, &SET_SCALARS, false, Shape::of(1, 0), arguments).ok()
}

fn values(plan: &PlanData, scalars: &Scalars) -> DeviceScalars {
    let update = plan.ops.iter().find_map(|op| {
        if let Op::Update(u) = op {
            Some(u)
        } else {
            None
        }
    });
    let decay = |u: &Update| {
        if u.optimizer == OptimizerKind::AdamW {
            u.weight_decay
        } else {
            0.0
        }
    };
    let (beta1, beta2, decay) = update.map_or((0.0, 0.0, 0.0), |u| (u.beta1, u.beta2, decay(u)));
    let step = scalars.step as f64;
    DeviceScalars {
        step_size: (scalars.lr / (1.0 - beta1.powf(step))) as f32,
        root_correction: (1.0 - beta2.powf(step)).sqrt() as f32,
        keep: (1.0 - scalars.lr * decay) as f32,
        ema_decay: scalars.ema_decay as f32,
        ema_rest: (1.0 - scalars.ema_decay) as f32,
        clip: scalars.clip as f32,
        loss_scale: scalars.loss_scale,
        micro_scale: scalars.micro_scale,
        accumulate: scalars.accumulate.into(),
        reserved: [0; 7],
    }
}
