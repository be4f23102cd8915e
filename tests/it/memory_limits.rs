//! Limits on memory: in a control group every command stays within the limit, or refuses to start
//! and names the limit. The amount of free memory never changes the numbers of a run. Control
//! groups need root and a writable hierarchy; without them the tests print `SKIP`.
#![cfg(target_os = "linux")]

use crate::{cli_common, shard_common};

use cli_common::{Ran, model, run, text};
use shard_common::{config, make, picture, pictures};
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;

/// A control group of version 1 or 2 with a limit on memory, removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, limit: u64) -> Option<Group> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = |controller: &str| {
            groups.lines().find_map(|line| {
                line.split_once(controller)
                    .map(|(_, path)| path.trim_start_matches('/'))
            })
        };
        let places = [
            (
                own(":memory:").map(|path| Path::new("/sys/fs/cgroup/memory").join(path)),
                "memory.limit_in_bytes",
            ),
            (
                own("0::").map(|path| Path::new("/sys/fs/cgroup").join(path)),
                "memory.max",
            ),
        ];
        for (parent, file) in places {
            let Some(group) =
                parent.map(|parent| parent.join(format!("{name}-{}", std::process::id())))
            else {
                continue;
            };
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Group(group);
            if fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        println!("SKIP {name}: cannot create a control group with a memory limit here");
        None
    }

    /// Runs `paragon` within the group. The test fails if the kernel kills the process for lack of
    /// memory.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ran {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"",
            self.0.display()
        );
        let output: Output = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_paragon"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(
            output.status.signal(),
            None,
            "{arguments:?} was killed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The processes of the group have ended, but the kernel may need a moment to register that.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Images, a small set of LQ 16, and a network.
fn place() -> (tempfile::TempDir, PathBuf, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, set) = (dir.path().join("data"), dir.path().join("set"));
    pictures(&data, 4);
    make(&config(&data, &set)).unwrap();
    let model = model(dir.path());
    (dir, data, set, model)
}

/// Checks that the command succeeded, or refused with the name of the limit; it was not killed.
#[track_caller]
fn inside_or_refused(ran: &Ran, what: &str) {
    assert!(
        ran.code == Some(0) || ran.code == Some(1),
        "{what}: {ran:?}"
    );
    assert!(
        ran.code == Some(0) || ran.stderr.contains("control group"),
        "{what}: the refusal names no limit: {}",
        ran.stderr
    );
}

#[test]
fn in_256_mib_every_command_stays_inside() {
    let Some(group) = Group::new("in_256_mib_every_command_stays_inside", 256 * MIB) else {
        return;
    };
    let (dir, data, set, model) = place();
    let at = |name: &str| dir.path().join(name);
    // Images of 24 megapixels, several threads.
    let large = at("large");
    fs::create_dir(&large).unwrap();
    for i in 0..3 {
        picture(6000, 4000, i)
            .save(large.join(format!("{i}.png")))
            .unwrap();
    }
    let ran = group.run(&[
        "shard",
        text(&large),
        "--out",
        text(&at("large-set")),
        "--lq-size",
        "64",
        "--threads",
        "2",
    ]);
    inside_or_refused(&ran, "shard");
    let out = at("run");
    let train = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--iterations",
        "3",
        "--batch-size",
        "4",
        "--warmup",
        "0",
    ];
    group
        .run(&[&train[..], &["--val", text(&data), "--val-every", "2"]].concat())
        .ok();
    group.run(&["eval", text(&data), "-m", text(&model)]).ok();
    let ran = group.run(&[
        "upscale",
        text(&large.join("0.png")),
        text(&at("twice.png")),
        "-m",
        text(&model),
    ]);
    inside_or_refused(&ran, "upscale");
}

#[test]
fn a_training_that_does_not_fit_is_refused_with_the_limit() {
    let Some(group) = Group::new(
        "a_training_that_does_not_fit_is_refused_with_the_limit",
        120 * MIB,
    ) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (data, set, out) = (
        dir.path().join("data"),
        dir.path().join("set"),
        dir.path().join("run"),
    );
    fs::create_dir(&data).unwrap();
    picture(400, 400, 1).save(data.join("a.png")).unwrap();
    run(&[
        "shard",
        text(&data),
        "--out",
        text(&set),
        "--lq-size",
        "128",
    ])
    .ok();
    // The published recipe needs 160 MiB, or 135 MiB with full recomputation, which changes no bit.
    let train = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--iterations",
        "2",
        "--warmup",
        "0",
        "--val",
        "none",
    ];
    let ran = group.run(&train).refused(
        1,
        &[
            "control group",
            "nothing was started",
            "--batch-size 8 --accum-iter 2",
        ],
    );
    assert!(!out.join("states").exists(), "{}", ran.stderr);
    // The advice of the error message helps.
    group
        .run(&[&train[..], &["--batch-size", "4", "--accum-iter", "4"]].concat())
        .ok();
}

#[test]
fn the_same_command_gives_the_same_network_in_any_group() {
    let (dir, _, set, _) = place();
    let mut networks = Vec::new();
    for limit in [96 * MIB, 1024 * MIB] {
        let Some(group) = Group::new(&format!("the_same_network_in_{}", limit / MIB), limit) else {
            return;
        };
        let out = dir.path().join(limit.to_string());
        let train = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "4",
            "--batch-size",
            "8",
            "--warmup",
            "0",
        ];
        group.run(&train).ok();
        networks.push(fs::read(out.join("model.safetensors")).unwrap());
    }
    assert!(
        networks[0] == networks[1],
        "the limit of the group has changed the network"
    );
}

#[test]
fn the_same_command_gives_the_same_network_on_one_core_and_on_many() {
    let (dir, _, set, _) = place();
    let network = |name: &str, one_core: bool, more: &[&str]| {
        let out = dir.path().join(name);
        let train = [
            "train",
            "--shards",
            text(&set),
            "--out",
            text(&out),
            "--iterations",
            "3",
            "--batch-size",
            "4",
            "--warmup",
            "0",
        ];
        let mut command = cli_common::paragon(&[&train[..], more].concat());
        if one_core {
            let first = || {
                // SAFETY: a set of processors is plain data; the system call is allowed between
                // fork and exec.
                unsafe {
                    let mut cores: libc::cpu_set_t = std::mem::zeroed();
                    if libc::sched_getaffinity(0, size_of_val(&cores), &mut cores) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    let Some(core) =
                        (0..libc::CPU_SETSIZE as usize).find(|&core| libc::CPU_ISSET(core, &cores))
                    else {
                        return Ok(());
                    };
                    libc::CPU_ZERO(&mut cores);
                    libc::CPU_SET(core, &mut cores);
                    let done = libc::sched_setaffinity(0, size_of_val(&cores), &cores) == 0;
                    if done {
                        Ok(())
                    } else {
                        Err(std::io::Error::last_os_error())
                    }
                }
            };
            // SAFETY: see above
            unsafe { command.pre_exec(first) };
        }
        let ran: Ran = command.output().unwrap().into();
        ran.ok();
        fs::read(out.join("model.safetensors")).unwrap()
    };
    let all = network("all", false, &[]);
    assert!(network("one", true, &[]) == all, "one visible core");
    // The number of threads that 64 visible cores would give.
    assert!(
        network("many", false, &["--threads", "64"]) == all,
        "64 threads"
    );
}

/// With too small an address space the system refuses memory: the command must report that and not
/// abort.
#[test]
fn a_limit_on_the_address_space_is_obeyed() {
    let (dir, _, set, _) = place();
    let out = dir.path().join("run");
    let arguments = [
        "train",
        "--shards",
        text(&set),
        "--out",
        text(&out),
        "--iterations",
        "2",
        "--batch-size",
        "4096",
        "--warmup",
        "0",
    ];
    let mut command = cli_common::paragon(&arguments);
    let limit = || {
        let limit = libc::rlimit {
            rlim_cur: 400 * MIB,
            rlim_max: 400 * MIB,
        };
        // SAFETY: a system call that is allowed between fork and exec
        if unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: see above
    unsafe { command.pre_exec(limit) };
    let ran: Ran = command.output().unwrap().into();
    ran.refused(1, &["ulimit -v", "nothing was started"]);
}
