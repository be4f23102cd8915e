//! Helpers for tests of the command line: running the real binary, checking for a clear error,
//! damaged images, a full disk, a network to apply.

use paragon::model::Network;
use paragon::model::write_model;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The `paragon` command.
pub fn paragon<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paragon"));
    command.args(arguments);
    command
}

/// Exit code, stdout and stderr.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Ran {
            code: o.status.code(),
            stdout: text(o.stdout),
            stderr: text(o.stderr),
        }
    }
}

/// Runs `paragon` to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ran {
    paragon(arguments).output().unwrap().into()
}

impl Ran {
    /// Expects success.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Expects an exit code, one error that contains every word, and no panic.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> Ran {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter(|l| l.starts_with("error: "))
            .collect();
        assert!(
            !errors.is_empty() && (code == 1 || errors.len() == 1),
            "{}",
            self.stderr
        );
        for word in words {
            assert!(
                self.stderr.contains(word),
                "'{word}' is missing in: {}",
                self.stderr
            );
        }
        self
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Limits the files that a command writes to `bytes`. Writes then fail in the middle of a file, as
/// on a full disk.
#[cfg(unix)]
pub fn limit_files(command: &mut Command, bytes: u64) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: two system calls that are allowed between fork and exec; no memory of the parent
        // is used.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: see above
    unsafe { command.pre_exec(limit) }
}

/// A file with a Nano x2 whose start values give blocks and detail an effect on the output.
pub fn model(folder: &Path) -> PathBuf {
    let path = folder.join("nano.safetensors");
    let mut net = Network::new("nano", 2).unwrap();
    net.set("layer_scale", 0.5).unwrap();
    net.set("detail_gain", 0.3).unwrap();
    write_model(&path, &net, &net.params().start_values(5), None).unwrap();
    path
}

/// A PNG whose header states a size, with almost no data after it.
#[cfg(unix)]
pub fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(&body);
        bytes.extend(crc32fast::hash(&body).to_be_bytes());
    };
    chunk(
        b"IHDR",
        &[
            &width.to_be_bytes()[..],
            &height.to_be_bytes(),
            &[8, 2, 0, 0, 0],
        ]
        .concat(),
    );
    chunk(b"IDAT", &[0x78, 0x9c, 0x63, 0x00]);
    bytes
}

/// Anonymous memory of a process in bytes; `None` once it has ended.
pub fn anonymous(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Runs a command to its end; returns the largest anonymous memory, measured every millisecond.
pub fn run_watched(mut command: Command) -> (Ran, u64) {
    use std::process::Stdio;
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        // A process that has ended but has not been waited for has no such line.
        while let Some(now) = anonymous(pid) {
            peak = peak.max(now);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        peak
    });
    let ran = child.wait_with_output().unwrap().into();
    (ran, watcher.join().unwrap())
}

/// Runs a command with a terminal of 24 rows as its stderr; returns the text that it wrote there.
#[cfg(unix)]
pub fn on_terminal(command: &mut Command, term: &str, columns: u16) -> String {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::process::Stdio;
    let size = libc::winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: the call writes two descriptors and reads the size; null pointers leave name and
    // settings to the system.
    let opened = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::from_ref(&size).cast_mut(),
        )
    };
    assert_eq!(opened, 0);
    // SAFETY: this sets a flag of a descriptor that was just opened. A program that another test
    // starts must not inherit this side, or reading would not end before that program does.
    let closes = unsafe { libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC) };
    assert_eq!(closes, 0);
    // SAFETY: both descriptors were just opened and have no other owner.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let mut child = command
        .env("TERM", term)
        .stdout(Stdio::null())
        .stderr(theirs)
        .spawn()
        .unwrap();
    // This closes our copy of the terminal, so that reading ends with the child.
    command.stderr(Stdio::null());
    let mut shown = Vec::new();
    let mut chunk = [0; 4096];
    // Reading from a terminal whose other side is closed gives an error, not an end of file.
    while let Ok(n @ 1..) = ours.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..n]);
    }
    assert!(
        child.wait().unwrap().success(),
        "{}",
        String::from_utf8_lossy(&shown)
    );
    String::from_utf8_lossy(&shown).into_owned()
}
