//! Tests that must run alone, in a process of their own or one at a time. All integration tests
//! share one program and run in parallel in it, so a test that measures or changes something of the
//! whole process (memory, threads, descriptors, loaded libraries) runs again as the only test of a
//! child process. Depends on the standard library only.

use std::process::Command;
#[cfg(target_os = "linux")]
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Set in the child process, to the name of its test.
const VARIABLE: &str = "PARAGON_TEST_OWN_PROCESS";

/// The command that runs only one test of this program. `test` is the full path of the test:
/// `concat!(module_path!(), "::name")`.
pub fn rerun(test: &str) -> Command {
    // The test harness leaves the name of the program out.
    let (_, name) = test.split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// Gives the calling test a process of its own. Returns true inside that process, where the test
/// continues. In the program of all tests, it runs that process to its end, fails if the test
/// failed there, and returns false: the caller must then return. `test` is as for [`rerun`].
#[track_caller]
pub fn in_own_process(test: &str) -> bool {
    if std::env::var_os(VARIABLE).is_some_and(|running| running == test) {
        return true;
    }
    let output = rerun(test).env(VARIABLE, test).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    // Prints the output of the test without the lines of the harness, so that its result does not
    // count twice.
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
        "{test} failed in its own process: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// A lock for tests whose times or memory would disturb each other. Tests that do not take it still
/// run in parallel with the one that holds it.
#[cfg(target_os = "linux")] // its callers measure memory and time there
pub fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A failed test must not fail the tests after it.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
