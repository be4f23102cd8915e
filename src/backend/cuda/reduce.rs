//! Sums over pixels in two stages: every block of a kernel writes its partial sums; `reduce_sums`
//! adds them in block order as two f32, adds the totals of earlier slices, and turns the totals into
//! gradients. There are no atomics, so every run gives the same bits. A launch costs more than such
//! a job, so the jobs of many operations are deferred to the end of a micro-batch and share one.
//! Depends on the lowering's state alone.

use super::arguments::{Address, Gradient, Parameter, Partial, Total};
use super::constants::{LOSS_ADDED, LOSS_TO_METRICS, LOSS_TO_TOTAL, SUM_JOBS, SUM_LANES};
use super::constants::{TO_ADDED, TO_GRADIENTS, TO_NANO_BLOCK, TO_TOTALS, TO_VALUES};
use super::launch::{Launch, Order, Shape};
use super::lowering::{Lowering, PendingSums, int};
use super::signatures::{REDUCE_SUMS, ReduceSumsArguments, SumJob};
use crate::plan::{BufferId, ParamRange, Slice};
use anyhow::{Context, Result, bail, ensure};

/// Shared memory of a block that adds an f64, or two f32, for each of its 256 threads, bytes.
pub(super) const BLOCK_SUM_BYTES: usize = 8 * super::constants::BLOCK_THREADS;

/// What the totals become after the last slice.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// The gradients of as many parameters from this one on: written, or added in later
    /// micro-batches.
    Gradients(Address<Gradient>),
    /// The same for a Nano block, whose gamma has no sums of its own.
    NanoBlock {
        /// The block's first parameter.
        parameters: Address<Parameter>,
        /// Its gradient.
        gradients: Address<Gradient>,
    },
}

/// What the totals of sums that are added up at once become after the last slice.
#[derive(Clone, Copy, Debug)]
pub(super) enum Finish {
    /// The gradients of as many parameters from this one on: written, or added in later
    /// micro-batches.
    Gradients(Address<Gradient>),
    /// f32 values, written in every micro-batch.
    Values(Address<Gradient>),
    /// Added to what another operation of the micro-batch left there.
    Added(Address<Gradient>),
    /// Kept for a later launch.
    Totals(Address<Total>),
}

/// The sums of one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    /// `[blocks][count]`
    pub partials: Address<Partial>,
    /// `[count]`: after the partials in the workspace, or where a micro-batch's slices carry them.
    pub totals: Address<Total>,
    /// Sums of each block.
    pub count: usize,
    /// Blocks that write partial sums.
    pub blocks: usize,
}

/// The sum of a loss, whose mean goes to the metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct LossSum {
    /// `[blocks]`
    pub partials: Address<f64>,
    /// Where slices carry the sum; null without slices.
    pub total: Address<f64>,
    /// `[0]` is the loss.
    pub metrics: Address<f64>,
    /// Values that the mean is over; 1 if the partial sums are shares of the mean.
    pub values: usize,
    /// Blocks that write a partial sum.
    pub blocks: usize,
}

impl LossSum {
    /// Of partial sums at the start of a workspace. The slices of a loss carry its total.
    pub fn new(
        l: &Lowering<'_>,
        workspace: BufferId,
        carry: Option<BufferId>,
        metrics: BufferId,
        (values, blocks): (usize, usize),
    ) -> LossSum {
        LossSum {
            partials: l.doubles_at(workspace, 0),
            total: carry.map_or(Address::NULL, |carry| l.doubles_at(carry, 0)),
            metrics: l.doubles_at(metrics, 0),
            values,
            blocks,
        }
    }
}

/// Workspace bytes for `count` sums of `blocks` blocks, and for their totals.
pub(super) fn workspace(count: usize, blocks: usize) -> u64 {
    partial_bytes(count, blocks) as u64 + 8 * count as u64
}

/// Bytes of the blocks' partial sums alone, for sums whose totals are not kept in the workspace.
pub(super) fn partial_bytes(count: usize, blocks: usize) -> usize {
    (4 * count * blocks).next_multiple_of(8)
}

/// Offset of the first range; all ranges must be contiguous, because their sums are written as one
/// block.
///
/// # Errors
/// When they are not contiguous, or there are none.
pub(super) fn contiguous(ranges: &[ParamRange]) -> Result<usize> {
    let gaps = ranges
        .windows(2)
        .any(|pair| pair[0].offset + pair[0].len != pair[1].offset);
    ensure!(
        !gaps,
        "the parameters of one operation are not contiguous: {ranges:?}"
    );
    Ok(ranges.first().context("sums of no parameters")?.offset)
}

/// Where `count` sums of an operation's workspace have their partials and totals: partials at its
/// start, totals after them or where slices carry them.
pub(super) fn sums_in(
    l: &Lowering<'_>,
    workspace: BufferId,
    slice: Slice,
    count: usize,
    blocks: usize,
) -> Sums {
    let totals = match slice.carry {
        Some(carry) => l.totals_at(carry, 0),
        None => l.totals_at(workspace, partial_bytes(count, blocks)),
    };
    Sums {
        partials: l.partials_at(workspace, 0),
        totals,
        count,
        blocks,
    }
}

/// Defers the last slice's job to the end of the micro-batch; a slice before it adds to the totals
/// at once.
///
/// # Errors
/// When the plan does not keep the partial sums until then.
pub(super) fn defer(l: &mut Lowering<'_>, sums: &Sums, slice: Slice, to: To) -> Result<()> {
    if !slice.last {
        return add_to_totals(l, slice, &[*sums]);
    }
    check_lifetime(l, sums.partials)?;
    let job = sums_job(sums, slice)?;
    let job = match to {
        To::Gradients(gradients) => SumJob {
            kind: TO_GRADIENTS,
            gradients,
            ..job
        },
        To::NanoBlock {
            parameters,
            gradients,
        } => SumJob {
            kind: TO_NANO_BLOCK,
            parameters,
            gradients,
            ..job
        },
    };
    let op = l.op();
    l.pending.jobs.push((op, job));
    Ok(())
}

/// As [`defer`] for a loss.
///
/// # Errors
/// When the plan does not keep the partial sums until then, or has no place to carry the sum of a
/// slice.
pub(super) fn defer_loss(l: &mut Lowering<'_>, sum: &LossSum, slice: Slice) -> Result<()> {
    let job = loss_job(sum, slice, LOSS_TO_METRICS)?;
    let op = l.op();
    if !slice.last {
        return launch(l, &[(op, job)], Order::InOrder);
    }
    check_lifetime(l, sum.partials)?;
    l.pending.jobs.push((op, job));
    Ok(())
}

/// Adds up a loss at once, and after the last slice adds it to what another loss of the micro-batch
/// left in the metrics. The partials need not be kept.
///
/// # Errors
/// When the plan has no place to carry the sum of a slice.
pub(super) fn add_loss(l: &mut Lowering<'_>, sum: &LossSum, slice: Slice) -> Result<()> {
    flush(l)?;
    let job = loss_job(sum, slice, LOSS_ADDED)?;
    let op = l.op();
    launch(l, &[(op, job)], Order::InOrder)
}

/// The job of a loss that after the last slice goes to the metrics as `kind` says.
fn loss_job(sum: &LossSum, slice: Slice, kind: i32) -> Result<SumJob> {
    ensure!(
        slice.last || slice.carry.is_some(),
        "the loss of a slice has no place to be carried in"
    );
    Ok(SumJob {
        loss_partials: sum.partials,
        loss_before: if slice.first {
            Address::NULL
        } else {
            sum.total
        },
        loss_total: if slice.last { sum.metrics } else { sum.total },
        kind: if slice.last { kind } else { LOSS_TO_TOTAL },
        ..job(sum.values, sum.blocks)?
    })
}

/// Adds partials to their totals at once. After the last slice this runs concurrently: only a
/// concurrent launch of the same operation reads the totals.
///
/// # Errors
/// When the plan does not keep the partial sums until the end of the micro-batch.
pub(super) fn add_to_totals(l: &mut Lowering<'_>, slice: Slice, sums: &[Sums]) -> Result<()> {
    let mut jobs = Vec::new();
    for sums in sums {
        if slice.last {
            check_lifetime(l, sums.partials)?;
        }
        let job = SumJob {
            kind: TO_TOTALS,
            totals: sums.totals,
            ..sums_job(sums, slice)?
        };
        jobs.push((l.op(), job));
    }
    let order = if slice.last {
        Order::Concurrent
    } else {
        Order::InOrder
    };
    launch(l, &jobs, order)
}

/// Adds up the sums of an operation right after the launch that makes them: to the totals that
/// slices carry, and after the last slice to what `Finish` says. The partials need not be kept.
///
/// # Errors
/// When a number does not fit a kernel's arguments.
pub(super) fn finish(l: &mut Lowering<'_>, slice: Slice, sums: &[(Sums, Finish)]) -> Result<()> {
    ensure!(
        slice.last || slice.carry.is_some(),
        "the sums of a slice have no place to be carried in"
    );
    let mut jobs = Vec::new();
    for (sums, to) in sums {
        let mut job = sums_job(sums, slice)?;
        match *to {
            _ if !slice.last => (job.kind, job.totals) = (TO_TOTALS, sums.totals),
            Finish::Totals(totals) => (job.kind, job.totals) = (TO_TOTALS, totals),
            Finish::Gradients(to) => (job.kind, job.gradients) = (TO_GRADIENTS, to),
            Finish::Values(to) => (job.kind, job.gradients) = (TO_VALUES, to),
            Finish::Added(to) => (job.kind, job.gradients) = (TO_ADDED, to),
        }
        jobs.push((l.op(), job));
    }
    jobs.chunks(SUM_JOBS)
        .try_for_each(|jobs| launch(l, jobs, Order::InOrder))
}

/// Launches all pending jobs.
///
/// # Errors
/// When a number does not fit a kernel's arguments.
pub(super) fn flush(l: &mut Lowering<'_>) -> Result<()> {
    let PendingSums { jobs } = std::mem::take(&mut l.pending);
    jobs.chunks(SUM_JOBS)
        .try_for_each(|jobs| launch(l, jobs, Order::InOrder))
}

/// Whether the partials stay as they are until the end of the micro-batch.
fn check_lifetime<T>(l: &Lowering<'_>, partials: Address<T>) -> Result<()> {
    let Some((workspace, _)) = partials.place() else {
        bail!("sums without partials")
    };
    ensure!(
        l.plan.deferred_sums.contains(&workspace),
        "{} is not kept until its sums are added up",
        l.plan.buffer(workspace).name
    );
    Ok(())
}

/// A job of nothing.
const NO_JOB: SumJob = SumJob {
    partials: Address::NULL,
    loss_partials: Address::NULL,
    before: Address::NULL,
    totals: Address::NULL,
    loss_before: Address::NULL,
    loss_total: Address::NULL,
    gradients: Address::NULL,
    parameters: Address::NULL,
    kind: TO_TOTALS,
    count: 0,
    blocks: 0,
    end: 0,
};

fn job(count: usize, blocks: usize) -> Result<SumJob> {
    Ok(SumJob {
        count: int(count)?,
        blocks: int(blocks)?,
        ..NO_JOB
    })
}

fn sums_job(sums: &Sums, slice: Slice) -> Result<SumJob> {
    Ok(SumJob {
        partials: sums.partials,
        before: if slice.first {
            Address::NULL
        } else {
            sums.totals
        },
        ..job(sums.count, sums.blocks)?
    })
}

/// Blocks of a job in the grid of `reduce_sums`.
fn job_blocks(job: &SumJob) -> i32 {
    if [LOSS_TO_TOTAL, LOSS_TO_METRICS, LOSS_ADDED].contains(&job.kind) {
        1
    } else {
        job.count
            .cast_unsigned()
            .div_ceil(SUM_LANES as u32)
            .cast_signed()
    }
}

/// One launch for up to [`SUM_JOBS`] jobs.
fn launch(l: &mut Lowering<'_>, jobs: &[(usize, SumJob)], order: Order) -> Result<()> {
    let mut arguments = ReduceSumsArguments {
        scalars: l.scalars()?,
        jobs: [NO_JOB; SUM_JOBS],
    };
    let mut end = 0i32;
    for (to, (_, job)) in arguments.jobs.iter_mut().zip(jobs) {
        end = end
            .checked_add(job_blocks(job))
            .context("too many sums for one launch")?;
        *to = SumJob { end, ..*job };
    }
    let op = jobs
        .first()
        .map(|&(op, _)| op)
        .filter(|&first| jobs.iter().all(|&(op, _)| op == first));
    let shape = Shape::of(usize::try_from(end)?, BLOCK_SUM_BYTES);
    let launch = Launch::new(op, &REDUCE_SUMS, l.half_precision(), shape, arguments)?;
    l.append(Launch { order, ..launch });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::CudaSizing;
    use super::super::choices::Choices;
    use super::super::signatures::{UNPACK, UnpackArguments};
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
        let (kept, slice) = (plan.deferred_sums[0], Slice::whole(1));
        let to = To::Gradients(Address::NULL);
        let nothing = UnpackArguments {
            lq: Address::NULL,
            codes: Address::NULL,
            output: Address::NULL,
            images: 0,
            h: 0,
            w: 0,
        };
        let one = Shape::of(1, 0);
        let mut l = Lowering::new(&plan, Choices::default()).unwrap();
        for at in 0..SUM_JOBS + 2 {
            l.begin(at);
            let sums = sums_in(&l, kept, slice, SUM_LANES + 1, 3);
            defer(&mut l, &sums, slice, to).unwrap();
            l.launch_concurrent(&UNPACK, one, nothing).unwrap();
            l.launch_early(&UNPACK, one, nothing).unwrap();
            l.launch(&UNPACK, one, nothing).unwrap();
        }
        flush(&mut l).unwrap();
        let launches = l.finish().unwrap();
        let found: Vec<_> = launches.iter().map(|l| (l.kernel, l.order)).collect();
        let (in_order, concurrent) = (("unpack", Order::InOrder), ("unpack", Order::Concurrent));
        let expected = [
            [concurrent; SUM_JOBS + 2].as_slice(),
            &[concurrent, in_order].repeat(SUM_JOBS + 2),
            &[("reduce_sums", Order::InOrder); 2],
        ]
        .concat();
        assert_eq!(found, expected);
        let sums = &launches[3 * (SUM_JOBS + 2)..];
        let blocks: Vec<_> = sums.iter().map(|l| l.grid[0] as usize).collect();
        assert_eq!(blocks, [2 * SUM_JOBS, 4]);
        assert!(sums.iter().all(|l| l.op.is_none()));
        assert_eq!(launches[0].op, Some(0));
        // where the second job ends
        let end = std::mem::offset_of!(ReduceSumsArguments, jobs)
            + size_of::<SumJob>()
            + std::mem::offset_of!(SumJob, end);
        let word = sums[1].arguments.words(|_| 0)[end / 8];
        assert_eq!((word >> (8 * (end % 8))) as u32, 4);
    }

    #[test]
    fn pending_sums_are_not_forgotten() {
        let spec = StepSpec::new(1, (16, 16), vec![(LossKind::L1, 1.0)]);
        let sizing = CudaSizing {
            precision: Precision::F32,
        };
        let plan = training_plan(&Network::new("nano", 2).unwrap(), &spec, &sizing).unwrap();
        let mut l = Lowering::new(&plan, Choices::default()).unwrap();
        let sums = sums_in(&l, plan.deferred_sums[0], Slice::whole(1), 1, 1);
        let to = To::Gradients(Address::NULL);
        defer(&mut l, &sums, Slice::whole(1), to).unwrap();
        assert!(l.finish().is_err());
    }

    #[test]
    fn parameters_with_gaps_are_refused() {
        let range = |offset, len| ParamRange { offset, len };
        assert_eq!(contiguous(&[range(3, 2), range(5, 1)]).unwrap(), 3);
        assert!(contiguous(&[range(3, 2), range(6, 1)]).is_err() && contiguous(&[]).is_err());
    }
}
