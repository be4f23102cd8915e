//! SPAN's composed convolutions and the gradients of their tensors (kernels/plain_compose.cu).

use super::super::arguments::Address;
use super::super::launch::Shape;
use super::super::lowering::{Lowering, int};
use super::super::operation::CudaOperation;
use super::signatures::{
    COMPOSE_CONV, COMPOSE_CONV_BACK, COMPOSE_TWO, ComposeConvArguments, ComposeConvBackArguments,
    ComposeGradients, ComposeTwoArguments, ComposeWeights,
};
use crate::plan::{BufferId, ComposeConv, ComposeConvBack, ParamRange, Precision};
use anyhow::Result;

/// Values of the last two convolutions composed, `[b][2a][9]`.
fn two_len(o: &ComposeConv) -> usize {
    o.cout * 2 * o.cin * 9
}

fn weights(l: &Lowering<'_>, o: &ComposeConv) -> ComposeWeights {
    let at = |range: ParamRange| l.parameter(o.parameters, range.offset);
    let p = &o.params;
    ComposeWeights {
        skip: at(p.skip[0]),
        skip_bias: at(p.skip[1]),
        first: at(p.first[0]),
        first_bias: at(p.first[1]),
        middle: at(p.middle[0]),
        middle_bias: at(p.middle[1]),
        last: at(p.last[0]),
        last_bias: at(p.last[1]),
    }
}

/// Composes the last two convolutions at the start of a workspace and, with the gradient of the
/// composed one, their gradient after it.
fn two(
    l: &mut Lowering<'_>,
    o: &ComposeConv,
    workspace: BufferId,
    d_composed: Option<BufferId>,
) -> Result<()> {
    let arguments = ComposeTwoArguments {
        weights: weights(l, o),
        two: l.floats(workspace),
        d_composed: d_composed.map_or(Address::NULL, |d| l.floats(d)),
        d_two: match d_composed {
            Some(_) => l.floats_at(workspace, 4 * two_len(o)),
            None => Address::NULL,
        },
        cin: int(o.cin)?,
        cout: int(o.cout)?,
    };
    let shape = Shape::of(two_len(o).div_ceil(256), 0);
    l.launch(&COMPOSE_TWO, shape, arguments)
}

impl CudaOperation for ComposeConv {
    fn workspace(&self, _: Precision) -> u64 {
        4 * two_len(self) as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let workspace = l.workspace(self.workspace)?;
        two(l, self, workspace, None)?;
        let arguments = ComposeConvArguments {
            weights: weights(l, self),
            two: l.floats(workspace),
            output: l.floats(self.output),
            cin: int(self.cin)?,
            cout: int(self.cout)?,
        };
        let results = self.weight_len() + self.cout;
        l.launch(
            &COMPOSE_CONV,
            Shape::of(results.div_ceil(256), 0),
            arguments,
        )
    }
}

impl CudaOperation for ComposeConvBack {
    fn workspace(&self, _: Precision) -> u64 {
        8 * two_len(&self.forward) as u64
    }

    fn lower(&self, l: &mut Lowering<'_>) -> Result<()> {
        let o = &self.forward;
        let workspace = l.workspace(self.workspace)?;
        two(l, o, workspace, Some(self.d_output))?;
        let at = |range: ParamRange| l.gradient(self.gradients, range.offset);
        let p = &o.params;
        let arguments = ComposeConvBackArguments {
            weights: weights(l, o),
            gradients: ComposeGradients {
                skip: at(p.skip[0]),
                skip_bias: at(p.skip[1]),
                first: at(p.first[0]),
                first_bias: at(p.first[1]),
                middle: at(p.middle[0]),
                middle_bias: at(p.middle[1]),
                last: at(p.last[0]),
                last_bias: at(p.last[1]),
            },
            two: l.floats(workspace),
            d_two: l.floats_at(workspace, 4 * two_len(o)),
            d_composed: l.floats(self.d_output),
            scalars: l.scalars()?,
            cin: int(o.cin)?,
            cout: int(o.cout)?,
        };
        let all = [p.skip, p.first, p.middle, p.last];
        let results: usize = all.iter().flatten().map(|range| range.len).sum();
        let shape = Shape::of(results.div_ceil(256), 0);
        l.launch(&COMPOSE_CONV_BACK, shape, arguments)
    }
}
