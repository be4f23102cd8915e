//! Sums over pixels in two stages: every block of a kernel writes its partial sums, `reduce_sums`
//! adds them in block order in f64, to those of the slices before, and makes gradients of the
//! totals. No atomics, so the same bits in every run. A launch costs more than such a job, so the
//! jobs of many operations wait until the end of a micro-batch and share one. Depends on the
//! collected launches alone.

use super::launch::{Arg, Launch, Lowering, Turn, int};
use crate::plan::{BufferId, ParamRange, Slice};
use anyhow::{Context, Result, bail, ensure};

/// Neighbouring sums that a block adds: SUM_LANES of kernels/sums.cuh.
const LANES: usize = 32;
/// Jobs of a launch at most: SUM_JOBS.
const JOBS: usize = 12;
/// Of eight bytes, of one job: `struct SumJob`.
const WORDS: usize = 8;

/// What becomes of the totals.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// They stay, f64: for a launch of the operation's own.
    Totals,
    /// Written to (or, in later micro-batches, added to) the gradients of as many parameters from
    /// here on.
    Gradients(Arg),
    /// The same, of a Nano block, whose gamma has no sums.
    NanoBlock { parameters: Arg, gradients: Arg },
    /// Their mean is written (or added) to the metrics.
    Loss(Arg),
}

/// The sums of one operation: where partials and totals lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    /// f32 `[blocks][count]`; of a loss f64 `[blocks]`.
    pub partials: Arg,
    /// f64 `[count]`: behind the partials in the workspace, or where the slices of a micro-batch
    /// carry them.
    pub totals: Arg,
    count: usize,
    blocks: usize,
    /// One sum, with f64 partials, that is a loss over `count` values.
    loss: bool,
}

/// Workspace bytes for `count` sums of `blocks` blocks whose totals stay.
pub(super) fn workspace(count: usize, blocks: usize) -> u64 {
    partial_bytes(count, blocks) as u64 + 8 * count as u64
}

/// Bytes of the blocks' partial sums: all that sums need whose totals go elsewhere.
pub(super) fn partial_bytes(count: usize, blocks: usize) -> usize {
    (4 * count * blocks).next_multiple_of(8)
}

/// The first element of ranges that lie one behind the other, as sums do that become gradients.
///
/// # Errors
/// When they do not.
pub(super) fn adjacent(ranges: &[ParamRange]) -> Result<usize> {
    let apart = ranges
        .windows(2)
        .any(|pair| pair[0].offset + pair[0].len != pair[1].offset);
    ensure!(!apart, "parameters of one operation lie apart: {ranges:?}");
    Ok(ranges.first().context("sums of no parameters")?.offset)
}

impl Sums {
    /// Sums whose places are known.
    pub fn new(partials: Arg, totals: Arg, count: usize, blocks: usize) -> Sums {
        Sums {
            partials,
            totals,
            count,
            blocks,
            loss: false,
        }
    }

    /// The only sums of an operation: partials at the start of its workspace, totals behind them or
    /// where slices carry them.
    pub fn of(
        l: &Lowering<'_>,
        workspace: BufferId,
        slice: Slice,
        count: usize,
        blocks: usize,
    ) -> Sums {
        let totals = match slice.carry {
            Some(carry) => l.at(carry),
            None => l.at_bytes(workspace, partial_bytes(count, blocks)),
        };
        Sums::new(l.at(workspace), totals, count, blocks)
    }

    /// A loss: an f64 of each block, and their mean over `values`.
    pub fn of_loss(
        l: &Lowering<'_>,
        workspace: BufferId,
        slice: Slice,
        values: usize,
        blocks: usize,
    ) -> Result<Sums> {
        let totals = slice.carry.map_or(Arg::Null, |carry| l.at(carry));
        ensure!(
            slice.last || slice.carry.is_some(),
            "a loss of slices has no place to wait"
        );
        Ok(Sums {
            partials: l.at(workspace),
            totals,
            count: values,
            blocks,
            loss: true,
        })
    }

    /// After the last slice: adds the partials up and makes of the totals what `to` says, at the
    /// end of the micro-batch. Slices before it add to the totals now.
    pub fn later(&self, l: &mut Lowering<'_>, slice: Slice, to: To) -> Result<()> {
        if !slice.last {
            return totals(l, slice, &[*self]);
        }
        self.check_late(l)?;
        let job = (l.op(), self.job(slice, to));
        l.waiting.jobs.push(job);
        Ok(())
    }

    fn check_late(&self, l: &Lowering<'_>) -> Result<()> {
        let Arg::At(workspace, _) = self.partials else {
            bail!("sums without a place")
        };
        let lives = l.plan.deferred_sums.contains(&workspace);
        ensure!(
            lives,
            "{} does not live until it is added up",
            l.plan.buffer(workspace).name
        );
        Ok(())
    }

    fn job(&self, slice: Slice, to: To) -> Job {
        Job {
            sums: *self,
            before: if slice.first { Arg::Null } else { self.totals },
            to,
        }
    }
}

/// Adds partials to their totals: those of the last slice aside, since nobody but a launch aside
/// needs them.
pub(super) fn totals(l: &mut Lowering<'_>, slice: Slice, sums: &[Sums]) -> Result<()> {
    if slice.last {
        sums.iter().try_for_each(|s| s.check_late(l))?;
    }
    let jobs: Vec<_> = sums
        .iter()
        .map(|s| (l.op(), s.job(slice, To::Totals)))
        .collect();
    launch(l, &jobs, if slice.last { Turn::Aside } else { Turn::Next })
}

/// What is to be done with some sums.
#[derive(Clone, Copy, Debug)]
struct Job {
    sums: Sums,
    /// Totals that the partials are added to.
    before: Arg,
    to: To,
}

impl Job {
    fn grid(&self) -> usize {
        if self.sums.loss {
            1
        } else {
            self.sums.count.div_ceil(LANES)
        }
    }

    /// `struct SumJob`; `end`: where the blocks of the job end in the grid.
    fn words(&self, end: usize) -> Result<[Arg; WORDS]> {
        let Sums {
            partials,
            totals,
            count,
            blocks,
            loss,
            ..
        } = self.sums;
        let (kind, to, parameters) = match self.to {
            To::Totals if loss => (3, totals, Arg::Null),
            To::Totals => (0, totals, Arg::Null),
            To::Gradients(to) => (1, to, Arg::Null),
            To::NanoBlock {
                parameters,
                gradients,
            } => (2, gradients, parameters),
            To::Loss(to) => (4, to, Arg::Null),
        };
        Ok([
            partials,
            self.before,
            to,
            parameters,
            Arg::Int(kind),
            int(count)?,
            int(blocks)?,
            int(end)?,
        ])
    }
}

/// What waits for the end of a micro-batch.
#[derive(Default)]
pub(super) struct Waiting {
    /// With the operation that each belongs to.
    jobs: Vec<(usize, Job)>,
}

impl Lowering<'_> {
    /// Launches what waits.
    pub fn add_up(&mut self) -> Result<()> {
        let Waiting { jobs } = std::mem::take(&mut self.waiting);
        jobs.chunks(JOBS)
            .try_for_each(|jobs| launch(self, jobs, Turn::Next))
    }
}

/// One launch for up to [`JOBS`] jobs.
fn launch(l: &mut Lowering<'_>, jobs: &[(usize, Job)], turn: Turn) -> Result<()> {
    let (mut args, mut end) = (vec![l.scalars()?], 0);
    for (_, job) in jobs {
        end += job.grid();
        args.extend(job.words(end)?);
    }
    args.resize(1 + JOBS * WORDS, Arg::Null);
    let op = jobs
        .first()
        .map(|&(op, _)| op)
        .filter(|&first| jobs.iter().all(|&(op, _)| op == first));
    l.append(Launch {
        turn,
        ..Launch::new(op, "reduce_sums", [end, 1, 1], 256, 256 * 8, args)?
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::CudaSizing;
    use super::*;
    use crate::model::{Network, StepSpec, training_plan};
    use crate::plan::{LossKind, Precision};

    #[test]
    fn jobs_share_launches_that_come_last() {
        let spec = StepSpec::new(1, (16, 16), vec![(LossKind::L1, 1.0)]);
        let plan = training_plan(
            &Network::new("nano", 2).unwrap(),
            &spec,
            &CudaSizing {
                precision: Precision::F32,
            },
        )
        .unwrap();
        let (late, slice) = (plan.deferred_sums[0], Slice::whole(1));
        let mut l = Lowering::new(&plan);
        for at in 0..JOBS + 2 {
            l.begin(at);
            let sums = Sums::of(&l, late, slice, LANES + 1, 3);
            sums.later(&mut l, slice, To::Totals).unwrap();
            l.aside("aside", [1; 3], 32, 0, vec![]).unwrap();
            l.early("early", [1; 3], 32, 0, vec![]).unwrap();
            l.launch("first", [1; 3], 32, 0, vec![]).unwrap();
        }
        let launches = l.finish().unwrap();
        let names: Vec<&str> = launches.iter().map(|l| l.kernel).collect();
        let expected = [
            ["early"; JOBS + 2].as_slice(),
            &["aside", "first"].repeat(JOBS + 2),
            &["reduce_sums"; 2],
        ]
        .concat();
        assert_eq!(names, expected);
        let sums = &launches[3 * (JOBS + 2)..];
        assert_eq!(
            sums.iter().map(|l| l.grid[0] as usize).collect::<Vec<_>>(),
            [2 * JOBS, 4]
        );
        assert!(
            sums.iter()
                .all(|l| l.op.is_none() && l.args.len() == 1 + JOBS * WORDS)
        );
        assert_eq!(launches[0].op, Some(0));
        assert_eq!(
            sums[1].args[2 * WORDS],
            Arg::Int(4),
            "where the second job ends"
        );
    }

    #[test]
    fn parameters_that_lie_apart_are_refused() {
        let range = |offset, len| ParamRange { offset, len };
        assert_eq!(adjacent(&[range(3, 2), range(5, 1)]).unwrap(), 3);
        assert!(adjacent(&[range(3, 2), range(6, 1)]).is_err() && adjacent(&[]).is_err());
    }
}
