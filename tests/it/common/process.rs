//! Tests that need a process, or their turn, for themselves. All integration tests share one
//! program and run side by side in it, so a test that measures or changes something of the whole
//! process (memory, threads, descriptors, loaded libraries) runs again as the only test of a child
//! process. Depends on the standard library alone.

use std::process::Command;
#[cfg(target_os = "linux")]
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Set in the child process, to the name of its test.
const VARIABLE: &str = "PARAGON_TEST_OWN_PROCESS";

/// The command that runs one test of this program and no other. `test` is the test's full path:
/// `concat!(module_path!(), "::name")`.
pub fn rerun(test: &str) -> Command {
    // the test harness leaves the program's own name out
    let (_, name) = test.split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// Gives the calling test a process of its own. Returns true inside that process, where the test
/// goes on. In the program of all tests it runs the process to its end, fails where the test
/// failed there, and returns false: the caller has nothing more to do. `test` is as for [`rerun`].
#[track_caller]
pub fn in_own_process(test: &str) -> bool {
    if std::env::var_os(VARIABLE).is_some_and(|running| running == test) {
        return true;
    }
    let output = rerun(test).env(VARIABLE, test).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    // what the test printed, without the harness's own lines: its result must not count twice
    stdout
        .lines()
        .filter(|line| {
            !["running ", "test "]
                .iter()
                .any(|start| line.starts_with(start))
        })
        .for_each(|line| println!("{line}"));
    assert!(
        output.status.success() && stdout.contains("test result: ok. 1 passed"),
        "{test} failed in a process of its own: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// A turn that one test at a time can have, for tests whose time or memory suffers from each
/// other. Tests that do not ask for a turn still run beside the one that has it.
#[cfg(target_os = "linux")] // where its callers measure memory and time
pub fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // a failed test must not fail those after it
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
