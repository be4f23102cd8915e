//! The cards of a run on several ranks: which rank takes which, that they are not shared, and whether
//! gradients go from card to card through NCCL. Depends on the device of the run and on `ranks`.
//! Promises that all ranks decide alike.

use crate::backend::Backend;
use crate::backend::cuda::{Joining, NCCL_VARIABLE, Nccl, RankSum, device_count, nccl_is_off};
use crate::plan::Plan;
use crate::ranks::{Exchange, Ranks};
use crate::support::isa::Isa;
use crate::support::parts::Parts;
use crate::train::{DeviceChoice, Level, OpenedDevice, Report, Travel};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The device that this rank opens.
///
/// # Errors
/// There is no card for it on its host.
pub(super) fn of_rank(choice: DeviceChoice, ranks: &Ranks) -> Result<DeviceChoice> {
    // without a driver there are no cards; opening one says why
    let cards = device_count().unwrap_or(0);
    choice.of_rank(ranks.local_rank(), ranks.on_this_host(), cards)
}

/// What a rank computes on, and the instruction set that decides its bits: cards of one kind round
/// alike, whatever processor their host has.
pub(super) fn kind(opened: &OpenedDevice) -> (String, String) {
    match opened.device() {
        Some(card) => (card.kind(), "that of the card".into()),
        None => ("the CPU".into(), Isa::detect().to_string()),
    }
}

/// Refuses two ranks of a host that have opened the same card.
///
/// # Errors
/// Names the two ranks, or those of the exchange.
pub(super) fn check_apart(ranks: &Ranks, opened: &OpenedDevice) -> Result<()> {
    let own = match opened.device() {
        Some(card) => card.identity()?,
        None => String::new(),
    };
    let cards = ranks.gather(&own)?;
    for (rank, card) in cards
        .iter()
        .enumerate()
        .filter(|(_, card)| !card.is_empty())
    {
        let same = |other: &usize| cards[*other] == *card && ranks.host(*other) == ranks.host(rank);
        if let Some(other) = (0..rank).find(same) {
            bail!(
                "{} and {} have the same card: start one rank for each card of a host, let the launcher show every rank its own (srun \
                 --gpus-per-task=1), or give --device cpu",
                ranks.name(other),
                ranks.name(rank)
            );
        }
    }
    Ok(())
}

/// What a rank says about its NCCL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Offer {
    /// Its version, and the library in words.
    Has(i32, String),
    /// Why it has none.
    Lacks(String),
}

/// Loads NCCL where every rank has the same version of it; `None`: gradients travel through host
/// memory, and one line says why. Ranks on the CPU never look for it.
///
/// # Errors
/// The library that the user named cannot be loaded, or those of the exchange.
pub(super) fn nccl(
    ranks: &Ranks,
    opened: &OpenedDevice,
    report: &Report<'_>,
) -> Result<Option<Arc<Nccl>>> {
    if opened.device().is_none() {
        return Ok(None);
    }
    let loaded = Nccl::load();
    let named = std::env::var(NCCL_VARIABLE).is_ok_and(|name| !name.is_empty());
    let offer = match &loaded {
        Ok(nccl) => Offer::Has(nccl.version(), nccl.description()),
        Err(error) if named && !nccl_is_off() => {
            bail!("{NCCL_VARIABLE} names a library that cannot be used: {error:#}")
        }
        Err(error) => Offer::Lacks(format!("{error:#}")),
    };
    let offers = ranks.gather(&offer)?;
    let names: Vec<String> = (0..offers.len()).map(|rank| ranks.name(rank)).collect();
    match obstacle(&offers, &names) {
        None => {
            let nccl = loaded.context("NCCL")?;
            let text = format!(
                "gradients go from card to card through {}",
                nccl.description()
            );
            report(Level::Info, &text);
            Ok(Some(nccl))
        }
        Some(reason) => {
            let text = format!("gradients travel through host memory, because {reason}");
            let level = if nccl_is_off() {
                Level::Info
            } else {
                Level::Warning
            };
            report(level, &text);
            Ok(None)
        }
    }
}

/// Why the ranks cannot use NCCL together; `None` if they can.
fn obstacle(offers: &[Offer], names: &[String]) -> Option<String> {
    let mut first = None;
    for (offer, name) in offers.iter().zip(names) {
        match (offer, first) {
            (Offer::Lacks(reason), _) => return Some(format!("{name} has no NCCL ({reason})")),
            (Offer::Has(version, what), None) => first = Some((*version, what, name)),
            (Offer::Has(version, what), Some((expected, expected_what, first_name))) => {
                if *version != expected {
                    return Some(format!(
                        "{name} has {what} and {first_name} {expected_what}; give all hosts the same version"
                    ));
                }
            }
        }
    }
    None
}

/// Loads the plan on the card, and connects it with those of the other ranks where `nccl` is given.
///
/// # Errors
/// The arena cannot be allocated, or the ranks cannot be connected.
pub(super) fn backend(
    opened: &OpenedDevice,
    plan: Plan,
    trainable: usize,
    connecting: Option<(&Ranks, &Arc<Nccl>)>,
) -> Result<(Box<dyn Backend>, Option<RankSum>)> {
    let Some((ranks, nccl)) = connecting else {
        return Ok((opened.backend(plan)?, None));
    };
    let own = if ranks.is_first() {
        nccl.unique_id()?
    } else {
        Vec::new()
    };
    let joining = Joining {
        nccl,
        id: ranks.bytes_of_first(&own)?,
        rank: ranks.rank(),
        parts: Parts::new(ranks.ranks(), trainable),
        timeout: ranks.timeout(),
    };
    let (backend, sum) = opened.backend_of_rank(plan, joining, &|| untroubled(ranks))?;
    Ok((backend, Some(sum)))
}

/// Fails if another rank is in trouble.
///
/// # Errors
/// Those of [`Exchange::exchange`].
pub(super) fn untroubled(exchange: &dyn Exchange) -> Result<()> {
    if exchange.is_troubled() {
        exchange.check()
    } else {
        Ok(())
    }
}

/// How the ranks of a run share it.
pub(super) fn travel(ranks: Option<&Ranks>, nccl: Option<&Arc<Nccl>>) -> Travel {
    Travel {
        ranks: ranks.map_or(1, Exchange::ranks),
        by_nccl: nccl.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_use_nccl_only_together() {
        let has = |version| Offer::Has(version, format!("NCCL {version}"));
        let names = ["rank 0 (a)".to_string(), "rank 1 (b)".to_string()];
        let reason = |offers: &[Offer]| obstacle(offers, &names);
        assert_eq!(reason(&[has(22105), has(22105)]), None);
        let text = reason(&[has(22105), Offer::Lacks("no file".into())]).unwrap();
        assert!(
            text.contains("rank 1 (b)") && text.contains("no file"),
            "{text}"
        );
        let text = reason(&[has(22105), has(21800)]).unwrap();
        assert!(
            text.contains("rank 1 (b) has NCCL 21800 and rank 0 (a) NCCL 22105"),
            "{text}"
        );
    }
}
