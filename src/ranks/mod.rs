//! Several processes that train one network together: how they were started, how they reach each
//! other, and what they have to agree on. Depends on an MPI library that is loaded at run time, and
//! on nothing of the training. Promises that every rank ends within a stated time if another one
//! fails, dies or cannot be reached, and that sums do not depend on the number of ranks.

mod channel;
mod error;
mod launcher;
mod link;
// without `open`, which is for Unix, little of it is used
#[cfg_attr(not(unix), allow(dead_code, unused_imports))]
mod mpi;
mod store;
mod sum;
mod word;

pub use channel::Mail;
pub use error::RankError;
pub use launcher::{Launcher, LauncherKind, Variables, recognise};
pub use mpi::LIBRARY_VARIABLE;
pub use sum::{OrderedSum, Words};

use anyhow::{Context, Result, ensure};
use link::Link;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Default of `--rank-timeout`, seconds.
pub const USUAL_TIMEOUT: u64 = 120;
/// Smallest `--rank-timeout`, seconds: ranks exchange a word a second.
pub const LEAST_TIMEOUT: u64 = 5;
/// Largest `--rank-timeout`, seconds: a day.
pub const MOST_TIMEOUT: u64 = 86_400;
/// Memory that an MPI library, or the connections to the store of torchrun, take in a process, bytes: an
/// allowance. Open MPI 4.1.4 and
/// MPICH 4.0.2 took 3 MiB with ranks of one host; libraries for fast networks keep buffers of their
/// own.
pub const LIBRARY_BYTES: u64 = 32 << 20;

/// Why a process is alone although a launcher has started several: [`LIBRARY_VARIABLE`] is `off`. `None`
/// for every other process.
pub fn switched_off() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok();
    off_under(&variable)
}

fn off_under(variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    if variable(LIBRARY_VARIABLE).is_none_or(|value| value != "off") {
        return None;
    }
    let launcher = recognise(variable)?;
    Some(format!(
        "{} has started several processes, and {LIBRARY_VARIABLE}=off makes each of them train alone: give each a folder of its own (--out), or \
         unset {LIBRARY_VARIABLE} and they train one network together",
        launcher.kind.name()
    ))
}

/// The exchange of messages between ranks: MPI, the store of torchrun, or another engine such as NCCL.
pub trait Exchange {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn ranks(&self) -> usize;
    /// Sends and receives; returns when all of it has arrived. All ranks call it the same number of
    /// times.
    ///
    /// # Errors
    /// [`RankError`]: another rank has failed, is lost or cannot be reached.
    fn exchange(&self, mail: Mail) -> Result<Mail>;

    /// Whether the next exchange would fail, because another rank has failed or is lost.
    fn is_troubled(&self) -> bool {
        false
    }

    /// The longest time without a word from another rank.
    fn timeout(&self) -> Duration {
        Duration::from_secs(USUAL_TIMEOUT)
    }

    /// Fails if the next exchange would.
    ///
    /// # Errors
    /// Those of [`Exchange::exchange`].
    fn check(&self) -> Result<()> {
        self.exchange(Mail::default()).map(drop)
    }
}

/// A process that is alone. It adds gradients as several ranks do.
pub struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn exchange(&self, mail: Mail) -> Result<Mail> {
        Ok(mail)
    }
}

/// The host and the process of a rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name of the host.
    pub host: String,
    /// Number of the process.
    pub process: u32,
}

/// This process as one of several ranks.
pub struct Ranks {
    link: Link,
    members: Vec<Member>,
    /// What the launcher says about this rank among those of its host.
    local_rank: Option<usize>,
    timeout: Duration,
}

impl Exchange for Ranks {
    fn rank(&self) -> usize {
        self.link.rank
    }

    fn ranks(&self) -> usize {
        self.link.size
    }

    fn exchange(&self, mail: Mail) -> Result<Mail> {
        Ok(self.link.exchange(mail)?)
    }

    fn is_troubled(&self) -> bool {
        self.link.is_troubled()
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Ranks {
    /// Joins the other ranks if a launcher has started this process as one of several; `None` for a
    /// plain start, which never loads MPI and looks for no store. `seconds` is the longest time without a word from another
    /// rank.
    ///
    /// # Errors
    /// MPI cannot be loaded or started, or does not belong to the launcher; the store of torchrun cannot be
    /// reached.
    pub fn join(seconds: u64) -> Result<Option<Ranks>> {
        if std::env::var(LIBRARY_VARIABLE).is_ok_and(|value| value == "off") {
            return Ok(None);
        }
        let timeout = link::check_timeout(seconds)?;
        let Some(launcher) = recognise(&|name| std::env::var(name).ok()) else {
            return Ok(None);
        };
        let link = Link::open(launcher, timeout)
            .with_context(|| format!("rank {} cannot join the others", launcher.rank))?;
        if link.size == 1 {
            link.leave()?;
            return Ok(None);
        }
        let mut ranks = Ranks {
            link,
            members: Vec::new(),
            local_rank: launcher.local_rank,
            timeout,
        };
        let own = Member {
            host: crate::sys::host_name(),
            process: std::process::id(),
        };
        ranks.members = ranks.gather(&own)?;
        let names = (0..ranks.ranks()).map(|rank| ranks.name(rank)).collect();
        ranks.link.set_names(names);
        Ok(Some(ranks))
    }

    /// Says to the other ranks when this flag is set, and sets it when that of another rank is: all ranks
    /// stop together, and rank 0 does not finish a validation first.
    pub fn share_stop(&self, stop: Arc<AtomicBool>) {
        self.link.share_stop(stop);
    }

    /// Whether this is rank 0, which writes and prints.
    pub fn is_first(&self) -> bool {
        self.link.rank == 0
    }

    /// A rank for the user: `rank 2 (node7, process 4711)`.
    pub fn name(&self, rank: usize) -> String {
        let Member { host, process } = &self.members[rank];
        format!("rank {rank} ({host}, process {process})")
    }

    /// Number of ranks on the host of this one.
    pub fn on_this_host(&self) -> usize {
        let own = &self.members[self.link.rank].host;
        self.members.iter().filter(|m| m.host == *own).count()
    }

    /// Number of this rank among those of its host, from 0: what the launcher says, otherwise
    /// counted by the names of the hosts.
    pub fn local_rank(&self) -> usize {
        self.local_rank.unwrap_or_else(|| {
            let own = self.host(self.link.rank);
            let before = self.members[..self.link.rank].iter();
            before.filter(|member| member.host == own).count()
        })
    }

    /// Name of a rank's host.
    pub fn host(&self, rank: usize) -> &str {
        &self.members[rank].host
    }

    /// Number of hosts.
    pub fn hosts(&self) -> usize {
        let hosts: std::collections::BTreeSet<&str> =
            self.members.iter().map(|m| m.host.as_str()).collect();
        hosts.len()
    }

    /// What carries the messages: the name, version and file of the MPI library, or where the store of torchrun is.
    pub fn library(&self) -> &str {
        &self.link.description
    }

    /// Threads that compute on this rank by default: the cores of the host, shared by its ranks. A
    /// launcher that binds a rank to some cores has shared them already.
    pub fn threads(&self) -> usize {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        let online = crate::sys::online_cores().unwrap_or(usable);
        let bound = crate::sys::usable_cores().is_some_and(|cores| cores < online);
        share_of_cores(usable, online, bound, self.on_this_host())
    }

    /// The values of all ranks, by rank.
    ///
    /// # Errors
    /// Those of [`Exchange::exchange`].
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<Vec<T>> {
        let texts = self.gather_bytes(&serde_json::to_vec(own)?)?;
        texts
            .iter()
            .map(|text| Ok(serde_json::from_slice(text)?))
            .collect()
    }

    /// The value that rank 0 makes, on every rank. If it fails there, the error is returned there
    /// alone; [`Ranks::fail`] then informs the others.
    ///
    /// # Errors
    /// Those of `make` and of [`Exchange::exchange`].
    pub fn of_first<T: Serialize + DeserializeOwned>(
        &self,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let own = if self.is_first() {
            serde_json::to_vec(&make()?)?
        } else {
            Vec::new()
        };
        Ok(serde_json::from_slice(&self.bytes_of_first(&own)?)?)
    }

    /// The bytes of rank 0, on every rank.
    ///
    /// # Errors
    /// Those of [`Exchange::exchange`].
    pub fn bytes_of_first(&self, own: &[u8]) -> Result<Vec<u8>> {
        let all = self.gather_bytes(if self.is_first() { own } else { &[] })?;
        all.into_iter().next().context("there is no rank 0")
    }

    /// The bytes of all ranks, by rank: first their lengths, then the bytes.
    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.gather_values(&[own.len() as u64], &vec![1; self.ranks()])?;
        let lengths: Vec<usize> = lengths.iter().map(|length| length[0] as usize).collect();
        let words: Vec<usize> = lengths.iter().map(|bytes| bytes.div_ceil(8)).collect();
        let mut padded = vec![0u64; own.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut padded)[..own.len()].copy_from_slice(own);
        let all = self.gather_values(&padded, &words)?;
        let texts = all.iter().zip(&lengths);
        Ok(texts
            .map(|(words, &length)| bytemuck::cast_slice::<u64, u8>(words)[..length].to_vec())
            .collect())
    }

    /// The values of all ranks, by rank; `lengths` has the number of each rank's values.
    fn gather_values(&self, own: &[u64], lengths: &[usize]) -> Result<Vec<Vec<u64>>> {
        let others = || (0..self.ranks()).filter(|&rank| rank != self.rank());
        let mut places = Vec::new();
        let mut end = 0;
        for &length in lengths {
            places.push(end..end + 2 * length);
            end += 2 * length;
        }
        let out = bytemuck::cast_slice::<u64, f32>(own).to_vec();
        let whole = 0..out.len();
        let mail = self.exchange(Mail {
            sends: others().map(|rank| (rank, whole.clone())).collect(),
            out,
            into: vec![0.0; end],
            receives: others().map(|rank| (rank, places[rank].clone())).collect(),
        })?;
        let read = |rank: usize| {
            if rank == self.rank() {
                return own.to_vec();
            }
            let pairs = mail.into[places[rank].clone()].chunks_exact(2);
            pairs
                .map(|pair| u64::from(pair[0].to_bits()) | u64::from(pair[1].to_bits()) << 32)
                .collect()
        };
        Ok((0..self.ranks()).map(read).collect())
    }

    /// Refuses ranks that were started differently: each gives a list of facts, a name and a value
    /// each. The message names the rank, its host and what differs.
    ///
    /// # Errors
    /// A rank has another fact than rank 0, or those of [`Exchange::exchange`].
    pub fn agree(&self, facts: &[(String, String)]) -> Result<()> {
        let all = self.gather(&facts.to_vec())?;
        for (rank, theirs) in all.iter().enumerate().skip(1) {
            let differing = differences(&all[0], theirs);
            ensure!(
                differing.is_empty(),
                "{} was not started like {}:\n{}\nall ranks need the same program, command and shards",
                self.name(rank),
                self.name(0),
                differing.join("\n")
            );
        }
        Ok(())
    }

    /// Says to all ranks that this one ends with an error and exits with `code`. Returns whether it should
    /// print the error: not if another rank does.
    pub fn fail(&self, error: &anyhow::Error, code: u8) -> bool {
        match RankError::of(error) {
            // Every rank notices these, and the first one that is left prints.
            Some(RankError::Failed { .. } | RankError::Left { .. }) => self.is_first(),
            Some(RankError::Lost { names, .. }) => {
                let lost = |rank: usize| names.contains(&self.name(rank));
                (0..self.rank()).all(lost)
            }
            Some(RankError::Library(_)) => true,
            None => {
                let said_by_first = self.link.fail(format!("{error:#}"), code);
                self.is_first() || !said_by_first
            }
        }
    }

    /// Ends the channel together with the other ranks, or after a failure the whole job.
    ///
    /// # Errors
    /// Another rank was lost meanwhile.
    pub fn leave(&self) -> Result<()> {
        Ok(self.link.leave()?)
    }
}

/// Rows that name what differs between two lists of facts.
fn differences(first: &[(String, String)], other: &[(String, String)]) -> Vec<String> {
    let value = |facts: &[(String, String)], name: &str| {
        let found = facts.iter().find(|(known, _)| known == name);
        found.map_or_else(|| "nothing".to_string(), |(_, value)| value.clone())
    };
    let mut names: Vec<&String> = first.iter().chain(other).map(|(name, _)| name).collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.as_str()));
    names
        .into_iter()
        .filter(|name| value(first, name) != value(other, name))
        .map(|name| {
            format!(
                "  {name}: {}, not {}",
                value(other, name),
                value(first, name)
            )
        })
        .collect()
}

/// Cores for a rank: `usable` by this process, `online` in the host, of which the launcher may have
/// `bound` this process to some, and `ranks` on the host.
fn share_of_cores(usable: usize, online: usize, bound: bool, ranks: usize) -> usize {
    let share = if bound {
        usable.min(online / ranks)
    } else {
        usable / ranks
    };
    share.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_host_share_its_cores() {
        // 16 cores; 4 ranks that may use all of them, or 2 sockets of 8, or one core each
        assert_eq!(share_of_cores(16, 16, false, 4), 4);
        assert_eq!(share_of_cores(8, 16, true, 4), 4);
        assert_eq!(share_of_cores(1, 16, true, 2), 1);
        // a quota of 4 cores on a host of 64
        assert_eq!(share_of_cores(4, 64, false, 2), 2);
        assert_eq!(share_of_cores(2, 2, false, 5), 1);
    }

    #[test]
    fn processes_of_a_launcher_that_train_alone_are_explained() {
        let with = |list: &'static [(&str, &str)]| {
            off_under(&|name| {
                let found = list.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.to_string())
            })
        };
        let text = with(&[("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("PARAGON_MPI", "off")]);
        assert!(text.is_some_and(|text| text.contains("--out") && text.contains("mpirun")));
        assert_eq!(with(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), None);
        assert_eq!(with(&[("PARAGON_MPI", "off")]), None);
    }

    #[test]
    fn what_differs_is_named() {
        let facts = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect()
        };
        let first = facts(&[("--lr", "1e-4"), ("shards", "1"), ("--loss", "l1:1")]);
        let other = facts(&[("--lr", "2e-4"), ("shards", "1"), ("--seed", "3")]);
        assert_eq!(
            differences(&first, &other),
            [
                "  --lr: 2e-4, not 1e-4",
                "  --loss: nothing, not l1:1",
                "  --seed: 3, not nothing"
            ]
        );
        assert!(differences(&first, &first).is_empty());
    }
}
