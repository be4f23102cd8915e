//! `paragon plan --max`: the largest batch for each patch size and level of recomputation that fits a
//! budget. Depends on `train`'s fitting.

use super::flags::{LARGEST_BATCH_SEARCHED, print, print_json};
use anyhow::{Result, bail};
use paragon::model::Recompute;
use paragon::train::{Fit, RunMemory, TrainConfig};
use serde::Serialize;

/// Patch sizes of the table.
const MAX_PATCHES: [usize; 7] = [64, 96, 128, 160, 192, 224, 256];

/// One cell of the table.
#[derive(Serialize)]
struct Largest {
    lq_size: usize,
    recompute: Recompute,
    /// 0 where not even one patch fits.
    batch_size: usize,
    /// Even the largest batch that is tried fits the budget.
    at_least: bool,
}

/// `--max`: the table of largest batches.
pub fn largest(json: bool, fit: &Fit<'_>) -> Result<()> {
    if fit.budget.host.is_none() && fit.budget.device.is_none() {
        bail!("--max needs something to fill: give --vram (with --device cuda) or --host-memory");
    }
    let levels = fit
        .recompute
        .map_or(vec![Recompute::Block, Recompute::Full], |level| vec![level]);
    let mut cells = Vec::new();
    for lq_size in MAX_PATCHES {
        for &recompute in &levels {
            let holds = |batch_size: usize| -> Result<bool> {
                let config = TrainConfig {
                    lq_size,
                    batch_size,
                    accum_iter: 1,
                    ..fit.config.clone()
                };
                let room = fit.validation.room.bytes;
                let plan = fit.place.plan(&config, recompute, room, &fit.travel)?;
                let mut memory = RunMemory::new(
                    &config,
                    &fit.place,
                    &plan,
                    &(fit.loader)(&config, fit.slots)?,
                    &fit.validation,
                );
                memory.add_ranks(&config, &fit.travel, false);
                Ok(fit.budget.holds(&memory))
            };
            // the largest batch that fits is in low..high
            let (mut low, mut high) = (0, 1);
            while high <= LARGEST_BATCH_SEARCHED && holds(high)? {
                (low, high) = (high, high * 2);
            }
            let at_least = low == LARGEST_BATCH_SEARCHED;
            while !at_least && high - low > 1 {
                let middle = low + (high - low) / 2;
                *(if holds(middle)? { &mut low } else { &mut high }) = middle;
            }
            cells.push(Largest {
                lq_size,
                recompute,
                batch_size: low,
                at_least,
            });
        }
    }
    if json {
        return print_json(&cells);
    }
    let net = &fit.config.network;
    print(format_args!(
        "{} x{}: largest batch that fits, patches at once",
        net.arch, net.scale
    ))?;
    print(format_args!(
        "{:>8}{}",
        "LQ",
        levels
            .iter()
            .map(|l| format!("{:>12}", l.to_string()))
            .collect::<String>()
    ))?;
    for row in cells.chunks(levels.len()) {
        let cell = |c: &Largest| {
            format!(
                "{:>12}",
                format!("{}{}", c.batch_size, if c.at_least { "+" } else { "" })
            )
        };
        print(format_args!(
            "{:>8}{}",
            row[0].lq_size,
            row.iter().map(cell).collect::<String>()
        ))?;
    }
    Ok(())
}
