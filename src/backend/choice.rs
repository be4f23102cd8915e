//! The device that a user asks for, in the words of the command line.

use anyhow::{Result, ensure};
use std::str::FromStr;

/// The device that the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device, or the CPU if there is none.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number.map(DeviceChoice::Cuda).ok_or_else(|| {
                    format!("'{text}' is no device; known are auto, cpu, cuda and cuda:N")
                })
            }
        }
    }
}

impl DeviceChoice {
    /// The device of one of several ranks: the card of its number on its host (`local_rank` of
    /// `on_host`), or the only one that the launcher shows it. `cards`: how many the driver finds.
    ///
    /// # Errors
    /// There are fewer cards than ranks on the host, or all of them were given the same card.
    pub fn of_rank(self, local_rank: usize, on_host: usize, cards: usize) -> Result<DeviceChoice> {
        match self {
            DeviceChoice::Cpu => return Ok(DeviceChoice::Cpu),
            DeviceChoice::Auto if cards == 0 => return Ok(DeviceChoice::Cpu),
            DeviceChoice::Cuda(number) if number > 0 => {
                ensure!(
                    on_host == 1,
                    "--device cuda:{number} names one card for all {on_host} ranks of this host; give --device cuda, with which every rank takes the \
                     card of its number, and choose among the cards with CUDA_VISIBLE_DEVICES"
                );
                return Ok(self);
            }
            DeviceChoice::Auto | DeviceChoice::Cuda(_) => {}
        }
        // One card is the rank's own, or shared with others, which the ranks notice when they agree.
        if cards <= 1 {
            return Ok(DeviceChoice::Cuda(0));
        }
        ensure!(
            local_rank < cards,
            "rank number {local_rank} of this host (counted from 0) finds no card of its own: {on_host} ranks were started there and the driver finds \
             {cards} cards; start at most {cards} ranks on this host (mpirun --map-by ppr:{cards}:node, srun --ntasks-per-node={cards}, torchrun \
             --nproc-per-node={cards}), or give --device cpu"
        );
        Ok(DeviceChoice::Cuda(local_rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_takes_the_card_of_its_number_on_its_host() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        for (choice, local_rank, on_host, cards, expected) in [
            (Cuda(0), 0, 4, 4, Cuda(0)),
            (Cuda(0), 3, 4, 8, Cuda(3)),
            (Auto, 1, 2, 2, Cuda(1)),
            (Auto, 1, 2, 0, Cpu),
            (Cpu, 1, 2, 2, Cpu),
            // the launcher shows every rank one card
            (Cuda(0), 3, 4, 1, Cuda(0)),
            // opening it says that there is none
            (Cuda(0), 1, 2, 0, Cuda(0)),
            (Cuda(2), 0, 1, 4, Cuda(2)),
        ] {
            let found = choice.of_rank(local_rank, on_host, cards).unwrap();
            assert_eq!(found, expected, "{choice:?}, {local_rank} of {on_host}");
        }
        let error = Cuda(0).of_rank(2, 3, 2).unwrap_err().to_string();
        assert!(
            error.contains("3 ranks")
                && error.contains("2 cards")
                && error.contains("--device cpu"),
            "{error}"
        );
        let error = Cuda(1).of_rank(0, 2, 2).unwrap_err().to_string();
        assert!(error.contains("--device cuda,"), "{error}");
    }

    #[test]
    fn devices_are_named_as_users_write_them() {
        for (text, device) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        assert!(
            ["gpu", "cuda:", "cuda:-1", "cuda:x"]
                .iter()
                .all(|t| t.parse::<DeviceChoice>().is_err())
        );
    }
}
