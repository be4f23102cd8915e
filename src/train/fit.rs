//! Fitting a run into a budget: the level of recomputation, the split of an iteration into
//! micro-batches and the slots of the ring are chosen so that the samples of every iteration and
//! the patch stay what was asked. Depends on the memory table. It promises that a request which
//! fits is unchanged, that otherwise the least costly change which fits is chosen, and that memory
//! which nobody has stated (what the machine has, or what happens to be free) never changes the
//! numbers of a run.

use super::{DevicePlace, RunBudget, RunMemory, TrainConfig};
use crate::loader::LoaderBound;
use crate::model::Recompute;
use crate::support::text::bytes_text;
use anyhow::{Result, bail};
use serde::Serialize;

/// LQ patches that are suggested when nothing else helps.
const PATCHES: [usize; 7] = [192, 128, 96, 64, 48, 32, 16];
/// Fewest slots that still let the loader work while a step runs.
const FEWEST_SLOTS: usize = 2;

/// What may be chosen without changing what is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FitChoice {
    /// Patches in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an iteration.
    pub accum_iter: usize,
    /// What is kept between forward and backward.
    pub recompute: Recompute,
    /// Batches in the ring.
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

/// What is to be fitted, and into what.
#[derive(Clone)]
pub struct Fit<'a> {
    /// The run as asked.
    pub config: &'a TrainConfig,
    /// Where it runs.
    pub place: DevicePlace,
    /// The level asked for; nothing to take the cheapest that fits.
    pub recompute: Option<Recompute>,
    /// Slots asked for.
    pub slots: usize,
    /// What there is: the budget that was stated, or the limit of the machine where it is smaller
    /// or nothing was stated.
    pub budget: RunBudget,
    /// The budget that was stated. An iteration is split for its sake alone: a split rounds sums in
    /// another order, and the same command must give the same network whatever memory a machine
    /// has.
    pub stated: RunBudget,
    /// The limit that the host's part of `budget` comes from, in words, where it was not stated.
    pub host_limit: Option<String>,
    /// Whether anything but the level may be chosen.
    pub may_split: bool,
    /// The split of an earlier process of this run, which gives its bits.
    pub earlier: Option<(usize, usize)>,
    /// The loader's memory for a patch, a micro-batch and slots.
    pub loader: &'a dyn Fn(&TrainConfig, usize) -> Result<LoaderBound>,
    /// Bytes of validation.
    pub validation: u64,
}

/// A run that fits.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// What was chosen.
    pub choice: FitChoice,
    /// The configuration with the chosen split.
    pub config: TrainConfig,
    /// Its memory.
    pub memory: RunMemory,
    /// What was chosen and why, where it is not what was asked.
    pub why: Option<String>,
}

/// One rung of the ladder of remedies.
#[derive(Clone, Debug, Serialize)]
pub struct Remedy {
    /// What to do.
    pub remedy: String,
    /// Bytes on the device (0 on the CPU).
    pub device_bytes: u64,
    /// Bytes on the host.
    pub host_bytes: u64,
    /// Whether the run would fit.
    pub fits: bool,
}

impl Fit<'_> {
    /// The levels that may be used, cheapest first.
    fn levels(&self) -> Vec<Recompute> {
        self.recompute
            .map_or(vec![Recompute::Block, Recompute::Full], |level| vec![level])
    }

    /// Micro-batches that divide the iteration, from the one asked for downwards.
    fn splits(&self) -> impl Iterator<Item = (usize, usize)> {
        let effective = self.config.effective_batch();
        (1..=self.config.batch_size)
            .rev()
            .filter(move |b| effective.is_multiple_of(*b))
            .map(move |b| (b, effective / b))
    }

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

    fn with(&self, choice: FitChoice, lq_size: usize) -> TrainConfig {
        TrainConfig {
            batch_size: choice.batch_size,
            accum_iter: choice.accum_iter,
            lq_size,
            ..self.config.clone()
        }
    }

    /// The memory of a choice.
    fn measure(&self, choice: FitChoice, lq_size: usize) -> Result<RunMemory> {
        let config = self.with(choice, lq_size);
        let plan = self
            .place
            .plan(&config, choice.recompute, self.validation > 0)?;
        Ok(RunMemory::new(
            &config,
            &self.place,
            &plan,
            &(self.loader)(&config, choice.slots)?,
            self.validation,
        ))
    }

    /// False where the batches alone are too much: no need to make a plan.
    fn may_hold(&self, choice: FitChoice, budget: &RunBudget) -> Result<bool> {
        let loader = (self.loader)(&self.with(choice, self.config.lq_size), choice.slots)?;
        let staged =
            !self.place.is_device() || budget.device.is_none_or(|most| loader.slot_bytes <= most);
        Ok(staged && budget.host.is_none_or(|most| loader.total() <= most))
    }

    /// Takes what was asked if it fits; else recomputes more, then splits the iteration into
    /// smaller micro-batches, then takes fewer slots.
    ///
    /// # Errors
    /// When nothing fits, or nothing may be changed: the ladder of remedies.
    pub fn choose(&self) -> Result<Fitted> {
        let lq = self.config.lq_size;
        let asked = self.asked();
        let as_asked = self.measure(asked, lq)?;
        let mut splits = vec![(asked.batch_size, asked.accum_iter)];
        if self.may_split {
            // an earlier process of this run had to split: the same split again gives its bits
            let earlier = self.earlier.filter(|e| e.0 < asked.batch_size);
            splits = earlier.into_iter().chain(self.splits()).collect();
        }
        // the split is that of the stated budget, which the machine has no part in; then what the
        // machine has decides the rest
        let split = self
            .first(&splits, &self.stated)?
            .map(|(choice, _)| (choice.batch_size, choice.accum_iter));
        if let Some(split) = split
            && let Some((choice, memory)) = self.first(&[split], &self.budget)?
        {
            let why = (choice != asked).then(|| self.why(choice, &memory, &as_asked));
            return Ok(Fitted {
                choice,
                config: self.with(choice, lq),
                memory,
                why,
            });
        }
        let rungs: Vec<String> = self
            .ladder()?
            .iter()
            .map(|r| format!("\n  {}", rung_text(r, self.place.is_device())))
            .collect();
        let fit_off = if self.may_split { "" } else { " (--fit off)" };
        let limit = self
            .host_limit
            .as_ref()
            .map_or(String::new(), |limit| format!(", the limit of {limit}"));
        // what a stated budget would have split is refused where only the machine is too small
        let by_itself = if self.may_split && split.is_some() {
            " Iterations are split without being asked only for a budget that is stated (--host-memory, --vram), since a split changes how \
             sums are rounded and so the network."
        } else {
            ""
        };
        bail!(
            "this run does not fit{fit_off}: {}{limit}; nothing was started.{by_itself} What would help, smallest harm first:{}",
            self.budget.compare(&as_asked),
            rungs.concat()
        )
    }

    /// The first of the splits, and with it the most slots and the cheapest level, that a budget
    /// holds.
    fn first(
        &self,
        splits: &[(usize, usize)],
        budget: &RunBudget,
    ) -> Result<Option<(FitChoice, RunMemory)>> {
        let asked = self.asked().slots;
        let mut ring = vec![asked];
        if self.may_split {
            ring.extend(
                [asked / 2, FEWEST_SLOTS]
                    .into_iter()
                    .filter(|&slots| (FEWEST_SLOTS..asked).contains(&slots)),
            );
        }
        for slots in ring {
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
                    let memory = self.measure(choice, self.config.lq_size)?;
                    if budget.holds(&memory) {
                        return Ok(Some((choice, memory)));
                    }
                }
            }
        }
        Ok(None)
    }

    fn why(&self, choice: FitChoice, memory: &RunMemory, as_asked: &RunMemory) -> String {
        let asked = self.asked();
        let mut text = format!("fitted: {choice}");
        if self.budget.holds(as_asked) {
            text += ": the split of the run that is resumed, for the same bits";
        } else {
            text += &format!(
                "; as asked ({asked}) it would take {}",
                self.budget.compare(as_asked)
            );
            text += &format!(" and now takes {}", self.budget.compare(memory));
        }
        if choice.batch_size == asked.batch_size {
            text + ". The result is the same bits"
        } else {
            text + ". The same samples an iteration; sums are rounded in another order than with the split asked for"
        }
    }

    /// The remedies, smallest harm first, each with those before it, up to one that fits.
    ///
    /// # Errors
    /// Only on a bug in the plan's builder.
    pub fn ladder(&self) -> Result<Vec<Remedy>> {
        let lq = self.config.lq_size;
        let mut choice = self.asked();
        let mut rungs = Vec::new();
        let mut push = |remedy: String, choice: FitChoice, lq: usize| -> Result<bool> {
            let memory = self.measure(choice, lq)?;
            let fits = self.budget.holds(&memory);
            rungs.push(Remedy {
                remedy,
                device_bytes: memory.device_bytes,
                host_bytes: memory.host_bytes,
                fits,
            });
            Ok(fits)
        };
        let mut done = push(format!("as asked: {choice}"), choice, lq)?;
        if !done && choice.recompute != Recompute::Full {
            choice.recompute = Recompute::Full;
            done = push("--recompute full (the same bits)".into(), choice, lq)?;
        }
        if !done {
            let mut last = choice;
            for (batch_size, accum_iter) in self.splits() {
                last = FitChoice {
                    batch_size,
                    accum_iter,
                    ..choice
                };
                if self.budget.holds(&self.measure(last, lq)?) {
                    break;
                }
            }
            if last != choice {
                choice = last;
                let text = format!(
                    "--batch-size {} --accum-iter {} (the same samples an iteration)",
                    choice.batch_size, choice.accum_iter
                );
                done = push(text, choice, lq)?;
            }
        }
        if !done && choice.slots > FEWEST_SLOTS {
            choice.slots = FEWEST_SLOTS;
            done = push(
                format!("--slots {FEWEST_SLOTS} (the loader may fall behind)"),
                choice,
                lq,
            )?;
        }
        for smaller in PATCHES.into_iter().filter(|&p| p < lq) {
            if !done {
                done = push(
                    format!("--lq-size {smaller} (another training)"),
                    choice,
                    smaller,
                )?;
            }
        }
        Ok(rungs)
    }
}

/// A rung as a line.
fn rung_text(rung: &Remedy, on_device: bool) -> String {
    let device = if on_device {
        format!("{} device, ", bytes_text(rung.device_bytes))
    } else {
        String::new()
    };
    let verdict = if rung.fits { "fits" } else { "too much" };
    format!(
        "{:62} {device}{} host: {verdict}",
        rung.remedy,
        bytes_text(rung.host_bytes)
    )
}
