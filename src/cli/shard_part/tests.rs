//! `--part auto` by variables that a test sets; the environment is not read.

use super::*;

/// The part by variables written as `NAME=VALUE NAME=VALUE`.
fn auto(parts: Option<u32>, variables: &str) -> Result<AutoPart> {
    auto_part(parts, &|name| {
        let mut pairs = variables.split(' ').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.into())
    })
}

#[test]
fn parts_are_read() {
    assert_eq!(parse_part("3/8"), Ok(PartFlag::Given(3, 8)));
    assert_eq!(parse_part("auto"), Ok(PartFlag::Auto(None)));
    assert_eq!(parse_part("auto/8"), Ok(PartFlag::Auto(Some(8))));
    for text in [
        "0/8",
        "9/8",
        "3",
        "/",
        "-1/2",
        "1/999999999",
        "auto/0",
        "auto/",
        "Auto",
        "",
    ] {
        assert!(parse_part(text).is_err(), "{text}");
    }
}

#[test]
fn every_scheduler_and_launcher_gives_its_part() {
    let slurm = "SLURM_ARRAY_TASK_MIN=10 SLURM_ARRAY_TASK_MAX=16 SLURM_ARRAY_TASK_STEP=2 SLURM_ARRAY_TASK_COUNT=4";
    for (parts, variables, part) in [
        (None, format!("SLURM_ARRAY_TASK_ID=14 {slurm}"), (3, 4)),
        (Some(4), format!("SLURM_ARRAY_TASK_ID=16 {slurm}"), (4, 4)),
        (
            None,
            format!("SLURM_ARRAY_TASK_ID=10 {slurm} SLURM_PROCID=0 SLURM_NTASKS=1"),
            (1, 4),
        ),
        (
            None,
            "SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_COUNT=3".into(),
            (1, 3),
        ),
        (Some(8), "PBS_ARRAY_INDEX=8".into(), (8, 8)),
        (None, "LSB_JOBINDEX=2 LSB_JOBINDEX_END=5".into(), (2, 5)),
        (
            None,
            "SGE_TASK_ID=7 SGE_TASK_FIRST=1 SGE_TASK_LAST=12 SGE_TASK_STEPSIZE=3".into(),
            (3, 4),
        ),
        (
            None,
            "AWS_BATCH_JOB_ARRAY_INDEX=0 AWS_BATCH_JOB_ARRAY_SIZE=2".into(),
            (1, 2),
        ),
        (Some(3), "JOB_COMPLETION_INDEX=2".into(), (3, 3)),
        (
            None,
            "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4".into(),
            (2, 4),
        ),
        (None, "PMI_RANK=3 PMI_SIZE=4".into(), (4, 4)),
        (None, "SLURM_PROCID=2 SLURM_NTASKS=3".into(), (3, 3)),
        (None, "RANK=0 WORLD_SIZE=1".into(), (1, 1)),
        // outside of arrays LSF and Grid Engine set these values
        (
            None,
            "LSB_JOBINDEX=0 SGE_TASK_ID=undefined PMI_RANK=0 PMI_SIZE=2".into(),
            (1, 2),
        ),
        // mpirun within an allocation of Slurm
        (
            None,
            "SLURM_PROCID=0 SLURM_NTASKS=4 OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=8".into(),
            (4, 8),
        ),
        (
            None,
            "PMI_RANK=1 PMI_SIZE=2 RANK=1 WORLD_SIZE=2".into(),
            (2, 2),
        ),
    ] {
        let found = auto(parts, &variables).expect(&variables);
        assert_eq!(found.part, part, "{variables}");
    }
    let found = auto(Some(3), "JOB_COMPLETION_INDEX=2").unwrap();
    let expected = "part 3/3, from JOB_COMPLETION_INDEX=2 of an indexed Kubernetes job";
    assert_eq!(found.origin, expected);
}

#[test]
fn what_is_missing_malformed_or_ambiguous_is_named() {
    for (parts, variables, words) in [
        (
            None,
            "",
            vec!["neither", "SLURM_ARRAY_TASK_ID", "RANK", "--part I/N"],
        ),
        (
            None,
            "SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_MIN=1",
            vec!["SLURM_ARRAY_TASK_COUNT is not"],
        ),
        (
            None,
            "SLURM_ARRAY_TASK_ID=3 SLURM_ARRAY_TASK_COUNT=4",
            vec!["SLURM_ARRAY_TASK_MIN is not"],
        ),
        (
            None,
            "SLURM_ARRAY_TASK_ID=7 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=7 SLURM_ARRAY_TASK_COUNT=3",
            vec!["gaps", "3 tasks from 1 to 7"],
        ),
        (
            None,
            "SLURM_ARRAY_TASK_ID=x SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_COUNT=3",
            vec!["SLURM_ARRAY_TASK_ID is `x`"],
        ),
        (
            None,
            "PBS_ARRAY_INDEX=2",
            vec!["PBS_ARRAY_INDEX=2", "auto/8"],
        ),
        (
            Some(4),
            "PBS_ARRAY_INDEX=0",
            vec!["PBS_ARRAY_INDEX is 0", "begins at 1"],
        ),
        (Some(4), "PBS_ARRAY_INDEX=5", vec!["part 5 of 4"]),
        (
            None,
            "JOB_COMPLETION_INDEX=0",
            vec!["JOB_COMPLETION_INDEX=0", "auto/8"],
        ),
        (None, "LSB_JOBINDEX=3", vec!["LSB_JOBINDEX_END is not"]),
        (None, "RANK=1", vec!["WORLD_SIZE is not"]),
        (None, "RANK=-1 WORLD_SIZE=2", vec!["RANK is `-1`"]),
        (None, "RANK=2 WORLD_SIZE=2", vec!["RANK=2", "part 3 of 2"]),
        (
            None,
            "SGE_TASK_ID=5 SGE_TASK_FIRST=1 SGE_TASK_LAST=9 SGE_TASK_STEPSIZE=0",
            vec!["steps of 0"],
        ),
        (
            None,
            "PMI_RANK=0 PMI_SIZE=2 RANK=1 WORLD_SIZE=2",
            vec!["PMI_RANK=0", "RANK=1", "disagree"],
        ),
        (
            None,
            "AWS_BATCH_JOB_ARRAY_INDEX=1 AWS_BATCH_JOB_ARRAY_SIZE=2 RANK=0 WORLD_SIZE=2",
            vec!["AWS_BATCH_JOB_ARRAY_INDEX=1", "RANK=0", "both set"],
        ),
        (Some(3), "PMI_RANK=0 PMI_SIZE=2", vec!["auto/3", "states 2"]),
    ] {
        let error = auto(parts, variables).expect_err(variables).to_string();
        for word in words {
            assert!(error.contains(word), "{variables}\n{error} lacks {word}");
        }
    }
}
