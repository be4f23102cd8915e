//! Fits a run into its memory budget: chooses the level of recomputation, the split of an iteration
//! into micro-batches and the number of slots, so that the samples of every iteration and the patch
//! size stay as requested. Depends on the memory table. Promises that a request which fits is
//! unchanged, that otherwise the least costly change that fits is chosen, and that memory limits
//! which nobody has stated (those of the machine, or what happens to be free) never change the
//! weights that a run produces.

use super::{DevicePlace, RunBudget, RunMemory, TrainConfig, Travel, ValidationMemory};
use crate::loader::LoaderBound;
use crate::model::Recompute;
use crate::plan::{Op, Plan};
use crate::support::text::bytes_text;
use anyhow::{Result, bail};
use serde::Serialize;

/// Sides of LQ patches that are suggested if nothing else helps, pixels.
const PATCHES: [usize; 7] = [192, 128, 96, 64, 48, 32, 16];
/// Smallest number of slots with which the loader still works while a step runs.
const FEWEST_SLOTS: usize = 2;

/// The settings that may be chosen without changing the samples of an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FitChoice {
    /// Patches in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an iteration.
    pub accum_iter: usize,
    /// Level of recomputation: what is kept between forward and backward.
    pub recompute: Recompute,
    /// Slots of the loader: batches that exist at once.
    pub slots: usize,
}

impl std::fmt::Display for FitChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} x {} patches, recomputation {}, {} slots",
            self.accum_iter, self.batch_size, self.recompute, self.slots
        )
    }
}

/// A request for a run, and the memory it has to fit into.
#[derive(Clone)]
pub struct Fit<'a> {
    /// The configuration as requested.
    pub config: &'a TrainConfig,
    /// Where it runs.
    pub place: DevicePlace,
    /// The requested level of recomputation; `None` takes the cheapest that fits.
    pub recompute: Option<Recompute>,
    /// Requested slots of the loader.
    pub slots: usize,
    /// The memory there is: the stated budget, or the limit of the machine if that is smaller or no
    /// budget was stated.
    pub budget: RunBudget,
    /// The stated budget. Only this one may split an iteration: a split rounds sums in another
    /// order, and the same command must give the same network whatever memory a machine has.
    pub stated: RunBudget,
    /// The source of the host limit of `budget` in words, if it was not stated.
    pub host_limit: Option<String>,
    /// Whether settings other than the level of recomputation may be changed.
    pub may_split: bool,
    /// Batch size and accumulation that an earlier process of this run used. The same split gives
    /// the same bits.
    pub earlier: Option<(usize, usize)>,
    /// Computes the memory of the loader from a configuration and a number of slots.
    pub loader: &'a dyn Fn(&TrainConfig, usize) -> Result<LoaderBound>,
    /// The memory that validation takes.
    pub validation: ValidationMemory,
    /// The ranks that share the micro-batches of an iteration.
    pub travel: Travel,
}

/// A run that fits its budget.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The chosen settings.
    pub choice: FitChoice,
    /// The configuration with the chosen split.
    pub config: TrainConfig,
    /// The plan of its training step.
    pub plan: Plan,
    /// The memory it takes.
    pub memory: RunMemory,
    /// What was chosen and the reason, in words; `None` if it is what was requested.
    pub reason: Option<String>,
}

/// A planned choice.
struct Candidate {
    choice: FitChoice,
    plan: Plan,
    memory: RunMemory,
}

/// A change that makes a run smaller, on top of those listed before it.
#[derive(Clone, Debug, Serialize)]
pub struct Remedy {
    /// What to change, as flags.
    pub remedy: String,
    /// Bytes on the device (0 on the CPU).
    pub device_bytes: u64,
    /// Bytes on the host.
    pub host_bytes: u64,
    /// Whether the run would fit.
    pub fits: bool,
}

impl Fit<'_> {
    /// The levels of recomputation that may be used, cheapest first.
    fn levels(&self) -> Vec<Recompute> {
        self.recompute
            .map_or(vec![Recompute::Block, Recompute::Full], |level| vec![level])
    }

    /// Pairs of batch size and accumulation with the requested samples in an iteration, from the
    /// requested batch size downwards.
    fn splits(&self) -> impl Iterator<Item = (usize, usize)> {
        let (effective, ranks) = (self.config.effective_batch(), self.travel.ranks);
        (1..=self.config.batch_size)
            .rev()
            .filter(move |b| effective.is_multiple_of(*b))
            .map(move |b| (b, effective / b))
            .filter(move |(_, micro_batches)| micro_batches.is_multiple_of(ranks))
    }

    /// The request as a choice.
    fn asked(&self) -> FitChoice {
        let TrainConfig {
            batch_size,
            accum_iter,
            ..
        } = *self.config;
        FitChoice {
            batch_size,
            accum_iter,
            recompute: self.levels()[0],
            slots: self.slots,
        }
    }

    /// The configuration with a chosen split and a patch size.
    fn with(&self, choice: FitChoice, lq_size: usize) -> TrainConfig {
        TrainConfig {
            batch_size: choice.batch_size,
            accum_iter: choice.accum_iter,
            lq_size,
            ..self.config.clone()
        }
    }

    /// Plans a choice with LQ patches of `lq_size` pixels and computes its memory.
    fn candidate(&self, choice: FitChoice, lq_size: usize) -> Result<Candidate> {
        let config = self.with(choice, lq_size);
        let room = self.validation.room.bytes;
        let plan = self
            .place
            .plan(&config, choice.recompute, room, &self.travel)?;
        let mut memory = RunMemory::new(
            &config,
            &self.place,
            &plan,
            &(self.loader)(&config, choice.slots)?,
            &self.validation,
        );
        let adds = adds_whole_gradients(&plan, choice.accum_iter);
        memory.add_ranks(&config, &self.travel, adds);
        Ok(Candidate {
            choice,
            plan,
            memory,
        })
    }

    /// False if the batches alone exceed the budget, so that no plan is needed.
    fn may_hold(&self, choice: FitChoice, budget: &RunBudget) -> Result<bool> {
        let loader = (self.loader)(&self.with(choice, self.config.lq_size), choice.slots)?;
        let staged =
            !self.place.is_device() || budget.device.is_none_or(|most| loader.slot_bytes <= most);
        Ok(staged && budget.host.is_none_or(|most| loader.total() <= most))
    }

    /// Takes the request if it fits. Otherwise recomputes more, then splits the iteration into
    /// smaller micro-batches, then takes fewer slots.
    ///
    /// # Errors
    /// Nothing that may be chosen fits; the message lists what would help.
    pub fn choose(&self) -> Result<Fitted> {
        let lq = self.config.lq_size;
        let asked = self.asked();
        // Plans made so far, each choice once; the request is the first.
        let mut planned = vec![self.candidate(asked, lq)?];
        let mut splits = vec![(asked.batch_size, asked.accum_iter)];
        if self.may_split {
            // An earlier process of this run may have split its iterations. The same split is tried
            // first, for the same bits.
            let earlier = self
                .earlier
                .filter(|e| e.0 < asked.batch_size && e.1.is_multiple_of(self.travel.ranks));
            splits = earlier.into_iter().chain(self.splits()).collect();
        }
        // The stated budget alone decides the split; the memory of the machine decides the rest.
        let split = self
            .first_fit(&splits, &self.stated, &mut planned)?
            .map(|at| (planned[at].choice.batch_size, planned[at].choice.accum_iter));
        if let Some(split) = split
            && let Some(at) = self.first_fit(&[split], &self.budget, &mut planned)?
        {
            let reason = (planned[at].choice != asked)
                .then(|| self.reason(&planned[at], &planned[0].memory));
            let Candidate {
                choice,
                plan,
                memory,
            } = planned.swap_remove(at);
            return Ok(Fitted {
                choice,
                config: self.with(choice, lq),
                plan,
                memory,
                reason,
            });
        }
        bail!(self.refusal(&planned[0].memory, split.is_some())?)
    }

    /// The message for a run that does not fit.
    fn refusal(&self, as_asked: &RunMemory, split_fits: bool) -> Result<String> {
        let remedies: Vec<String> = self
            .ladder()?
            .iter()
            .map(|remedy| format!("\n  {}", remedy_text(remedy, self.place.is_device())))
            .collect();
        let fit_off = if self.may_split { "" } else { " (--fit off)" };
        let limit = self
            .host_limit
            .as_ref()
            .map_or(String::new(), |limit| format!(", the limit of {limit}"));
        // A stated budget would have split the iteration; the limit of the machine may not.
        let no_split = if self.may_split && split_fits {
            " Iterations are split automatically only for a stated budget (--host-memory, --vram), because a split changes how sums are \
             rounded and therefore the network."
        } else {
            ""
        };
        Ok(format!(
            "this run does not fit{fit_off}: {}{limit}; nothing was started.{no_split} What would help, smallest harm first:{}",
            self.budget.compare(as_asked),
            remedies.concat()
        ))
    }

    /// The first of the splits that a budget holds, with the largest number of slots and the
    /// cheapest level of recomputation that fit; an index into `planned`.
    fn first_fit(
        &self,
        splits: &[(usize, usize)],
        budget: &RunBudget,
        planned: &mut Vec<Candidate>,
    ) -> Result<Option<usize>> {
        let asked = self.asked().slots;
        let mut slot_counts = vec![asked];
        if self.may_split {
            slot_counts.extend(
                [asked / 2, FEWEST_SLOTS]
                    .into_iter()
                    .filter(|&slots| (FEWEST_SLOTS..asked).contains(&slots)),
            );
        }
        for slots in slot_counts {
            for &(batch_size, accum_iter) in splits {
                for recompute in self.levels() {
                    let choice = FitChoice {
                        batch_size,
                        accum_iter,
                        recompute,
                        slots,
                    };
                    if !self.may_hold(choice, budget)? {
                        continue;
                    }
                    let known = planned.iter().position(|c| c.choice == choice);
                    let at = known.unwrap_or(planned.len());
                    if known.is_none() {
                        planned.push(self.candidate(choice, self.config.lq_size)?);
                    }
                    if budget.holds(&planned[at].memory) {
                        return Ok(Some(at));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Why a choice differs from the request.
    fn reason(&self, chosen: &Candidate, as_asked: &RunMemory) -> String {
        let (asked, choice) = (self.asked(), chosen.choice);
        let mut text = format!("fitted: {choice}");
        if self.budget.holds(as_asked) {
            text += ": the split of the run that is resumed, for the same bits";
        } else {
            text += &format!(
                "; as requested ({asked}) it would take {}",
                self.budget.compare(as_asked)
            );
            text += &format!(" and now takes {}", self.budget.compare(&chosen.memory));
        }
        if choice.batch_size == asked.batch_size {
            text + ". The result is the same bits"
        } else {
            text + ". The same samples an iteration; sums are rounded in another order than with the requested split"
        }
    }

    /// The remedies, smallest harm first, up to the first that fits; each includes those before it.
    ///
    /// # Errors
    /// The request cannot be planned.
    pub fn ladder(&self) -> Result<Vec<Remedy>> {
        let lq = self.config.lq_size;
        let mut choice = self.asked();
        let mut remedies = Vec::new();
        let mut fit = self.clone();
        let mut push = |fit: &Fit<'_>, remedy: String, choice: FitChoice, lq: usize| {
            let memory = fit.candidate(choice, lq)?.memory;
            let fits = fit.budget.holds(&memory);
            remedies.push(Remedy {
                remedy,
                device_bytes: memory.device_bytes,
                host_bytes: memory.host_bytes,
                fits,
            });
            Ok::<bool, anyhow::Error>(fits)
        };
        let mut done = push(&fit, format!("as requested: {choice}"), choice, lq)?;
        if !done && choice.recompute != Recompute::Full {
            choice.recompute = Recompute::Full;
            done = push(&fit, "--recompute full (the same bits)".into(), choice, lq)?;
        }
        if !done {
            let mut last = choice;
            for (batch_size, accum_iter) in self.splits() {
                last = FitChoice {
                    batch_size,
                    accum_iter,
                    ..choice
                };
                if self.budget.holds(&self.candidate(last, lq)?.memory) {
                    break;
                }
            }
            if last != choice {
                choice = last;
                let text = format!(
                    "--batch-size {} --accum-iter {} (the same samples an iteration)",
                    choice.batch_size, choice.accum_iter
                );
                done = push(&fit, text, choice, lq)?;
            }
        }
        if !done && choice.slots > FEWEST_SLOTS {
            choice.slots = FEWEST_SLOTS;
            done = push(
                &fit,
                format!("--slots {FEWEST_SLOTS} (the loader may fall behind)"),
                choice,
                lq,
            )?;
        }
        if !done && fit.validation.host > 0 {
            fit.validation = ValidationMemory::default();
            let text = "--val none (no validation), or smaller images to validate on";
            done = push(&fit, text.into(), choice, lq)?;
        }
        for smaller in PATCHES.into_iter().filter(|&p| p < lq) {
            if !done {
                done = push(
                    &fit,
                    format!("--lq-size {smaller} (another training)"),
                    choice,
                    smaller,
                )?;
            }
        }
        Ok(remedies)
    }
}

/// Whether a process that is alone has to add whole gradients, as ranks do, to get their bits: for
/// several micro-batches of a network whose kernels add two gradients to one parameter, where they
/// would be added to the sum one by one.
pub(super) fn adds_whole_gradients(plan: &Plan, micro_batches: usize) -> bool {
    let adds_twice = |op: &Op| matches!(op, Op::ScaledSumBack(sum) if sum.adds_gamma);
    micro_batches > 1 && plan.ops.iter().any(adds_twice)
}

/// A remedy as a line of a message.
fn remedy_text(remedy: &Remedy, on_device: bool) -> String {
    let device = if on_device {
        format!("{} device, ", bytes_text(remedy.device_bytes))
    } else {
        String::new()
    };
    let verdict = if remedy.fits { "fits" } else { "too much" };
    format!(
        "{:62} {device}{} host: {verdict}",
        remedy.remedy,
        bytes_text(remedy.host_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuOptions;
    use crate::train::state::tests::config;

    fn loader(config: &TrainConfig, slots: usize) -> Result<LoaderBound> {
        Ok(LoaderBound {
            slots,
            slot_bytes: (config.batch_size * config.lq_size * config.lq_size * 15) as u64,
            threads: 1,
            scratch_bytes: 1 << 20,
            degrade_bytes: 0,
            index_bytes: 1 << 10,
        })
    }

    /// The outcome for a stated budget and for one of the machine, host bytes.
    fn choose(
        config: &TrainConfig,
        stated: Option<u64>,
        machine: Option<u64>,
        fewest: bool,
    ) -> Result<Fitted> {
        let stated = RunBudget {
            host: stated,
            device: None,
        };
        Fit {
            config,
            place: DevicePlace::Cpu(CpuOptions::new(1)),
            recompute: fewest.then_some(Recompute::Full),
            slots: if fewest { FEWEST_SLOTS } else { 4 },
            budget: stated.within(RunBudget {
                host: machine,
                device: None,
            }),
            stated,
            host_limit: None,
            may_split: true,
            earlier: None,
            loader: &loader,
            validation: ValidationMemory::default(),
            travel: Travel::ALONE,
        }
        .choose()
    }

    #[test]
    fn only_a_stated_budget_splits_an_iteration() {
        let config = TrainConfig {
            batch_size: 8,
            lq_size: 32,
            ..config()
        };
        let as_requested = choose(&config, None, None, false).unwrap();
        assert!(as_requested.reason.is_none() && as_requested.config == config);
        let place = DevicePlace::Cpu(CpuOptions::new(1));
        let plan = place
            .plan(&config, as_requested.choice.recompute, 0, &Travel::ALONE)
            .unwrap();
        assert_eq!(as_requested.plan.arena_bytes, plan.arena_bytes);

        // The smallest memory with the same samples in an iteration.
        let smallest = TrainConfig {
            batch_size: 1,
            accum_iter: 8,
            ..config.clone()
        };
        let least = choose(&smallest, None, None, true).unwrap();
        let least = least.memory.host_bytes;
        let split = choose(&config, Some(least), None, false).unwrap();
        assert!(split.choice.batch_size < 8 && split.memory.host_bytes <= least);
        assert_eq!(split.config.effective_batch(), 8);
        assert!(split.reason.unwrap().contains("another order"));
        let error = choose(&config, None, Some(least), false).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("only for a stated budget") && error.contains("--accum-iter 8"),
            "{error}"
        );
        assert!(choose(&config, Some(1), None, false).is_err());
    }
}
