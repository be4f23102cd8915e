//! The state files of a run: which there are, and which is the newest intact one. Depends on
//! `state`. Promises that an error of the system is never mistaken for a damaged state: an older
//! state must not replace one that is only unreadable for the moment.

use super::State;
use super::folder::states_folder;
use crate::support::failure::{retry, system_cause};
use anyhow::{Context, Result};
use std::io;
use std::path::{Path, PathBuf};

/// The state files of a run with their iterations, newest first; none if there is no folder.
///
/// # Errors
/// The folder cannot be read, so that it is not known whether it holds a state.
pub fn list_states(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = states_folder(run);
    let entries = match retry(|| std::fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => {
            entries.with_context(|| format!("cannot read the folder {}", folder.display()))?
        }
    };
    let mut list: Vec<(u64, PathBuf)> = entries
        .into_iter()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let number = name.strip_prefix("state_")?.strip_suffix(".safetensors")?;
            Some((number.parse().ok()?, e.path()))
        })
        .collect();
    list.sort_by_key(|(iteration, _)| std::cmp::Reverse(*iteration));
    Ok(list)
}

/// Whether a system error means that the path cannot be a state: a broken or circular link, a
/// socket, a device.
fn cannot_be_a_state(error: &io::Error) -> bool {
    crate::sys::is_error(error, crate::sys::ErrorClass::NoFile)
}

/// The newest intact state of a run, and what is wrong with every newer one.
///
/// # Errors
/// A system error: a state that cannot be read may be intact, and continuing from an older one
/// would throw away the iterations between.
pub fn newest_state(run: &Path) -> Result<(Option<State>, Vec<String>)> {
    let mut damaged = Vec::new();
    for (_, path) in list_states(run)? {
        match State::read(&path) {
            Ok(state) => return Ok((Some(state), damaged)),
            Err(error) if system_cause(&error).is_none_or(cannot_be_a_state) => {
                damaged.push(format!("{error:#}"))
            }
            Err(error) => {
                return Err(error.context(
                    "the newest state cannot be read because of a system error, so it may be intact",
                ));
            }
        }
    }
    Ok((None, damaged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::OpenLine;
    use crate::train::folder::state_path;
    use crate::train::state::tests::config;

    #[test]
    #[cfg(unix)] // makes a link to a device and a FIFO
    fn only_a_regular_file_of_the_right_length_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let states = dir.path().join("states");
        std::fs::create_dir(&states).unwrap();
        let net = config().network.params();
        let (all, some) = (vec![0.5; net.len()], vec![0.0; net.trainable()]);
        let state = State::new(
            3,
            3,
            9,
            OpenLine::default(),
            config(),
            [all.clone(), some.clone(), some, all],
        );
        state.write(&state_path(dir.path(), 3)).unwrap();
        // Newer paths that are no states: an endless device, a pipe without a writer, a folder, a
        // broken link, a huge hole, garbage.
        crate::sys::symlink_file(Path::new("/dev/zero"), &state_path(dir.path(), 9)).unwrap();
        assert!(
            std::process::Command::new("mkfifo")
                .arg(state_path(dir.path(), 8))
                .status()
                .unwrap()
                .success()
        );
        std::fs::create_dir(state_path(dir.path(), 7)).unwrap();
        crate::sys::symlink_file(Path::new("nothing"), &state_path(dir.path(), 6)).unwrap();
        std::fs::copy(state_path(dir.path(), 3), state_path(dir.path(), 5)).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(state_path(dir.path(), 5))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        std::fs::write(state_path(dir.path(), 4), [0xFF; 64]).unwrap();
        let (found, damaged) = newest_state(dir.path()).unwrap();
        assert_eq!(found.unwrap().head.iteration, 3);
        assert_eq!(damaged.len(), 6, "{damaged:?}");
        assert!(
            damaged[0].contains("no regular file") && damaged[4].contains("1099511627776 bytes"),
            "{damaged:?}"
        );
    }
}
