//! Plans of the stages of a network that looks at the whole image. Depends on the graph and on the
//! plan of inference. Promises that the stages together compute what [`inference_plan`] computes.
//!
//! [`inference_plan`]: super::inference_plan

use super::{InferenceSpec, append_input, forward_plan};
use crate::model::architecture::Stage;
use crate::model::{Error, Network};
use crate::plan::{self, Plan, Ports, Sizing};
use anyhow::Result;

/// The settings of the plan of a stage.
#[derive(Clone, Copy, Debug)]
pub struct StageSpec {
    /// Number of the stage, from 0.
    pub number: usize,
    /// Tile height and width in LQ pixels.
    pub lq: (usize, usize),
    /// Take the image as a float buffer instead of u8, in the stages that read it: the first and the
    /// last.
    pub float_input: bool,
}

/// The plan of a stage of a network on one tile. The stage begins with the port `features` and their
/// `means`, unless it is the first, and ends with the port `output`: features, or in the last stage
/// the enlarged image.
///
/// # Errors
/// A network without such a stage, or sizes that no plan can be made for; the chain holds an
/// [`Error`].
pub fn stage_plan(net: &Network, spec: &StageSpec, sizing: &dyn Sizing) -> Result<Plan> {
    let stages = net.stages().filter(|stages| spec.number < stages.count);
    let stages = stages.ok_or_else(|| {
        let text = format!("{} has no stage {}", net.arch, spec.number);
        Error::from(plan::Error::Invalid(text))
    })?;
    let (first, last) = (spec.number == 0, spec.number == stages.count - 1);
    let inference = InferenceSpec {
        batch: 1,
        lq: spec.lq,
        float_input: spec.float_input,
    };
    forward_plan(net, &inference, first || last, sizing, |g, batch| {
        let stage = if first {
            let input = append_input(g, batch);
            Stage::First { input }
        } else if last {
            let (input, start) = (append_input(g, batch), g.stage_start(stages.channels));
            Stage::Last { input, start }
        } else {
            let (number, start) = (spec.number, g.stage_start(stages.channels));
            Stage::Middle { number, start }
        };
        let (input, start) = match stage {
            Stage::First { input } => (Some(input), None),
            Stage::Middle { start, .. } => (None, Some(start)),
            Stage::Last { input, start } => (Some(input), Some(start)),
        };
        Ok(Ports {
            input: input.map(|input| input.buffer),
            features: start.map(|start| start.features.buffer),
            means: start.map(|start| start.means),
            output: Some(net.architecture().stage(g, stage)?),
            ..Ports::default()
        })
    })
}
