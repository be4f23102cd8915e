//! Why ranks cannot go on together. Depends on nothing. Promises that a message names the ranks.

use std::fmt;

/// Text of [`RankError`]s whose cause is another rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RankError {
    /// Nothing was heard from these ranks for too long.
    Lost {
        /// The ranks with their hosts.
        names: Vec<String>,
        /// The limit, seconds.
        seconds: u64,
        /// Whether the limit is the one of a training that was asked to stop.
        stopping: bool,
    },
    /// Another rank has failed.
    Failed {
        /// The rank with its host.
        name: String,
        /// Its error.
        text: String,
        /// The code with which it exits, and all other ranks with it.
        code: u8,
    },
    /// Another rank has ended while this one still needed it.
    Left {
        /// The rank with its host.
        name: String,
    },
    /// What carries the messages (MPI, the store of torchrun) reported an error, or does not return.
    Library(String),
}

impl RankError {
    /// The code with which a rank exits that ends with an error: that of the rank that failed first. Launchers
    /// combine the codes of all ranks, each in its own way.
    pub fn exit_code(error: &anyhow::Error) -> u8 {
        match RankError::of(error) {
            Some(RankError::Failed { code, .. }) => *code,
            _ => 1,
        }
    }

    /// The error among the causes of another one.
    pub fn of(error: &anyhow::Error) -> Option<&RankError> {
        error.chain().find_map(|cause| cause.downcast_ref())
    }
}

impl fmt::Display for RankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RankError::Lost {
                names,
                seconds,
                stopping,
            } => write!(
                f,
                "nothing was heard from {} for {seconds} s ({}): the process has died or is stopped, or the network between the hosts is cut",
                names.join(", "),
                if *stopping {
                    "as this rank was asked to stop"
                } else {
                    "--rank-timeout"
                }
            ),
            // that rank prints its error itself
            RankError::Failed { name, .. } => write!(f, "{name} has failed and says why"),
            RankError::Left { name } => {
                write!(f, "{name} has ended while other ranks still train")
            }
            RankError::Library(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for RankError {}
