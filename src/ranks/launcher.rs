//! Which program started this process as one of several ranks, recognised from the environment
//! variables that launchers set. Depends on nothing. Promises that a process which no launcher has
//! started, or which is the only one, is never taken for a rank.

/// The programs that start ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LauncherKind {
    /// PyTorch's `torchrun`, which is no MPI launcher: its agent hosts a store.
    Torchrun,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// Hydra (`mpirun` of MPICH and Intel MPI), or `srun --mpi=pmi2`.
    Pmi,
    /// A launcher that speaks PMIx: `prun`, or `srun --mpi=pmix`.
    Pmix,
    /// `mpirun` of MVAPICH.
    Mvapich,
    /// `srun` of SLURM without an interface for MPI.
    Slurm,
}

impl LauncherKind {
    /// The launcher for the user.
    pub fn name(self) -> &'static str {
        match self {
            LauncherKind::Torchrun => "torchrun",
            LauncherKind::OpenMpi => "mpirun of Open MPI",
            LauncherKind::Pmi => "a PMI launcher (mpirun of MPICH or Intel MPI, srun --mpi=pmi2)",
            LauncherKind::Pmix => "a PMIx launcher (srun --mpi=pmix, prun)",
            LauncherKind::Mvapich => "mpirun of MVAPICH",
            LauncherKind::Slurm => "srun",
        }
    }

    /// What carries messages between its processes, for the user.
    pub(super) fn channel(self) -> &'static str {
        match self {
            LauncherKind::Torchrun => "the store of torchrun",
            _ => "MPI",
        }
    }
}

/// What a launcher says about this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// Which launcher.
    pub kind: LauncherKind,
    /// Number of this rank, from 0.
    pub rank: usize,
    /// Number of ranks; `None` where the launcher does not say it (some PMIx launchers).
    pub size: Option<usize>,
    /// Number of this rank among those of its host; `None` where the launcher does not say it.
    pub local_rank: Option<usize>,
}

/// The environment variables by which a launcher numbers the processes that it starts. Everything
/// that recognises a launcher reads them from here.
pub struct Variables {
    /// The number of a process, from 0.
    pub rank: &'static str,
    /// How many processes there are that MPI connects; `None` where the launcher does not say it.
    pub size: Option<&'static str>,
    /// How many there are for work that needs no MPI; `None` where that is not taken from this launcher.
    pub tasks: Option<&'static str>,
    /// The number of a process among those of its host, from 0.
    pub local_rank: &'static str,
}

impl LauncherKind {
    /// The variables of this launcher.
    ///
    /// For SLURM the size is that of the step: a batch script, which runs alone, has `SLURM_NTASKS` and
    /// `SLURM_PROCID` as well.
    pub const fn variables(self) -> Variables {
        match self {
            LauncherKind::Torchrun => Variables {
                rank: "RANK",
                size: Some("WORLD_SIZE"),
                tasks: Some("WORLD_SIZE"),
                local_rank: "LOCAL_RANK",
            },
            LauncherKind::OpenMpi => Variables {
                rank: "OMPI_COMM_WORLD_RANK",
                size: Some("OMPI_COMM_WORLD_SIZE"),
                tasks: Some("OMPI_COMM_WORLD_SIZE"),
                local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
            },
            LauncherKind::Pmi => Variables {
                rank: "PMI_RANK",
                size: Some("PMI_SIZE"),
                tasks: Some("PMI_SIZE"),
                local_rank: "MPI_LOCALRANKID",
            },
            LauncherKind::Pmix => Variables {
                rank: "PMIX_RANK",
                size: None,
                tasks: None,
                local_rank: "SLURM_LOCALID",
            },
            LauncherKind::Mvapich => Variables {
                rank: "MV2_COMM_WORLD_RANK",
                size: Some("MV2_COMM_WORLD_SIZE"),
                tasks: None,
                local_rank: "MV2_COMM_WORLD_LOCAL_RANK",
            },
            LauncherKind::Slurm => Variables {
                rank: "SLURM_PROCID",
                size: Some("SLURM_STEP_NUM_TASKS"),
                tasks: Some("SLURM_NTASKS"),
                local_rank: "SLURM_LOCALID",
            },
        }
    }
}

/// In the order in which they are looked for: a launcher that starts another one comes after it.
const ORDER: [LauncherKind; 6] = [
    LauncherKind::Torchrun,
    LauncherKind::OpenMpi,
    LauncherKind::Pmi,
    LauncherKind::Pmix,
    LauncherKind::Mvapich,
    LauncherKind::Slurm,
];

/// The launcher of this process, from a lookup of environment variables; `None` for a plain start,
/// and for a launcher that started one process only. A launcher counts only if the variable of the
/// rank, and that of the size where there is one, hold numbers.
pub fn recognise(variable: &dyn Fn(&str) -> Option<String>) -> Option<Launcher> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    let found = ORDER.into_iter().find_map(|kind| {
        let names = kind.variables();
        let rank = number(names.rank)?;
        let size = match names.size {
            Some(size) => Some(number(size)?),
            None => LauncherKind::Slurm.variables().size.and_then(number),
        };
        let local_rank = number(names.local_rank);
        // Scripts export RANK and WORLD_SIZE for other reasons too.
        let by_torchrun =
            variable("TORCHELASTIC_RUN_ID").is_some() || (local_rank.is_some() && size > Some(1));
        (kind != LauncherKind::Torchrun || by_torchrun).then_some(Launcher {
            kind,
            rank,
            size,
            local_rank,
        })
    });
    found.filter(|launcher| launcher.size != Some(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<Launcher> {
        recognise(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn every_launcher_is_recognised_and_the_first_one_counts() {
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("PMIX_RANK", "2"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "9"),
        ];
        let launcher = |kind, rank, size, local_rank| Launcher {
            kind,
            rank,
            size,
            local_rank,
        };
        let found = with(&mpi);
        assert_eq!(
            found,
            Some(launcher(LauncherKind::OpenMpi, 2, Some(4), Some(1)))
        );
        let found = with(&[
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "3"),
            ("MPI_LOCALRANKID", "1"),
        ]);
        let expected = launcher(LauncherKind::Pmi, 1, Some(3), Some(1));
        assert_eq!(found, Some(expected));
        assert_eq!(
            with(&mpi[3..]),
            Some(launcher(LauncherKind::Pmix, 2, Some(9), None))
        );
        assert_eq!(
            with(&[("PMIX_RANK", "0")]),
            Some(launcher(LauncherKind::Pmix, 0, None, None))
        );
        let found = with(&[("MV2_COMM_WORLD_RANK", "0"), ("MV2_COMM_WORLD_SIZE", "2")]);
        let expected = launcher(LauncherKind::Mvapich, 0, Some(2), None);
        assert_eq!(found, Some(expected));
        let found = with(&[
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
        ]);
        let expected = launcher(LauncherKind::Slurm, 3, Some(4), Some(1));
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn a_process_that_is_alone_is_no_rank() {
        for variables in [
            &[][..],
            // a batch script of SLURM
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")],
            &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")],
            &[("PMI_RANK", "0"), ("PMI_SIZE", "1")],
            &[
                ("RANK", "0"),
                ("WORLD_SIZE", "1"),
                ("LOCAL_RANK", "0"),
                ("TORCHELASTIC_RUN_ID", "x"),
            ],
            // numbers that belong to something else
            &[("RANK", "3"), ("WORLD_SIZE", "8")],
            &[("PMI_RANK", "zero"), ("PMI_SIZE", "4")],
        ] {
            assert_eq!(with(variables), None, "{variables:?}");
        }
    }

    #[test]
    fn torchrun_comes_before_what_started_it() {
        let of_torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            // the same for all with --virtual-local-rank
            ("LOCAL_RANK", "0"),
            ("TORCHELASTIC_RUN_ID", "none"),
            // torchrun started by one mpirun on each host
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
        ];
        let expected = Launcher {
            kind: LauncherKind::Torchrun,
            rank: 5,
            size: Some(8),
            local_rank: Some(0),
        };
        assert_eq!(with(&of_torchrun), Some(expected));
    }
}
