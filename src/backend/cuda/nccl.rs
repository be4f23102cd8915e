//! NCCL, loaded at run time: the functions of it that move gradients between the cards of several
//! ranks, behind one small interface. This file has all unsafe code for it. Depends on libloading
//! and the error of backends. Promises that nothing of NCCL is needed to build the program, and that
//! a program without it goes on.

use crate::backend::Error;
use anyhow::{Context, Result, bail};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

/// The environment variable that names the library to load, or `off`.
pub const NCCL_VARIABLE: &str = "PARAGON_NCCL";
/// Device memory that NCCL takes for its channels and buffers, bytes: an allowance, which was not
/// measured. NCCL makes a buffer of 4 MiB for each peer of a channel; published figures for eight
/// cards run from 200 to 500 MiB.
pub const NCCL_DEVICE_BYTES: u64 = 384 << 20;
/// Host memory that NCCL takes, pinned buffers for other hosts included, bytes: an allowance.
pub const NCCL_HOST_BYTES: u64 = 256 << 20;

/// Bytes of the number that the ranks of one communicator have in common.
pub const NCCL_ID_BYTES: usize = 128;
/// The first version with `ncclSend` and `ncclRecv`.
const LEAST_VERSION: c_int = 2700;
/// `ncclFloat32`.
const FLOAT: c_int = 7;
/// `ncclInProgress`, which is no error.
const IN_PROGRESS: c_int = 7;
/// Errors whose reason may be another process: of CUDA, of the system, and of a remote process.
const MAY_BE_REMOTE: [c_int; 3] = [1, 2, 6];

/// Whether the environment says that NCCL is not to be used.
pub fn nccl_is_off() -> bool {
    std::env::var(NCCL_VARIABLE).is_ok_and(|value| value == "off")
}

/// The number of a communicator, as C passes it.
#[derive(Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; NCCL_ID_BYTES]);

type Handle = *mut c_void;

/// The functions of NCCL that are used.
struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// The loaded library. It is never closed: threads of it may run until the process ends.
pub struct Nccl {
    functions: Functions,
    /// As the library states it: 22105 for 2.21.5.
    version: c_int,
    /// The file that was loaded.
    name: String,
}

/// A message of f32 values between the memory of this card and that of another rank's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Transfer {
    /// The other rank.
    pub peer: usize,
    /// Address in the memory of this card.
    pub at: u64,
    /// Number of values.
    pub values: usize,
}

impl Nccl {
    /// Loads the library that the environment names, or the one that the system finds.
    ///
    /// # Errors
    /// There is none, or it is too old; the text is the reason alone.
    pub fn load() -> Result<Arc<Nccl>> {
        if nccl_is_off() {
            bail!("{NCCL_VARIABLE}=off");
        }
        let named = std::env::var(NCCL_VARIABLE).ok();
        let names = match named.filter(|name| !name.is_empty()) {
            Some(name) => vec![name],
            // the name without a version belongs to packages for developers
            None => vec!["libnccl.so.2".into(), "libnccl.so".into()],
        };
        open(&names).map(Arc::new)
    }

    /// `NCCL 2.21.5 (libnccl.so.2)`.
    pub fn description(&self) -> String {
        format!("NCCL {} ({})", version_text(self.version), self.name)
    }

    /// The version as the library states it.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// A new number for a communicator. The rank that asks for it has to stay until all have joined.
    ///
    /// # Errors
    /// NCCL reports one.
    pub fn unique_id(&self) -> Result<Vec<u8>> {
        let mut id = UniqueId([0; NCCL_ID_BYTES]);
        // SAFETY: the call writes the number, to a variable that outlives it
        let code = unsafe { (self.functions.unique_id)(&mut id) };
        self.checked(code, "prepare to connect the ranks")?;
        Ok(id.0.to_vec())
    }

    /// Joins the other ranks with the card that is current in the calling thread; returns when all
    /// have done so.
    ///
    /// # Errors
    /// NCCL reports one, or the number has another length than those of [`Nccl::unique_id`].
    pub(super) fn join(
        self: &Arc<Self>,
        id: &[u8],
        rank: usize,
        ranks: usize,
    ) -> Result<Communicator> {
        let id: [u8; NCCL_ID_BYTES] = id.try_into().context("the number of the communicator")?;
        let (rank, ranks) = (c_int::try_from(rank)?, c_int::try_from(ranks)?);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the call writes the handle, to a variable that outlives it
        let code = unsafe { (self.functions.init_rank)(&mut handle, ranks, UniqueId(id), rank) };
        self.checked(code, "connect the cards of the ranks")?;
        Ok(Communicator {
            nccl: self.clone(),
            handle,
        })
    }

    /// Turns a code of NCCL into an error with its text.
    fn checked(&self, code: c_int, action: &str) -> Result<()> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: the function returns a constant text for every number, or null
        let text = unsafe {
            let text = (self.functions.error_string)(code);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        Err(Error::Nccl {
            action: action.to_string(),
            code,
            text: text.unwrap_or_else(|| "an error without a text".into()),
            remote: MAY_BE_REMOTE.contains(&code),
        }
        .into())
    }
}

/// A version as people write it.
fn version_text(version: c_int) -> String {
    // until 2.8 there were a thousand numbers for a minor version
    let (major, minor) = if version < 10_000 {
        (1000, 100)
    } else {
        (10_000, 100)
    };
    format!(
        "{}.{}.{}",
        version / major,
        version % major / minor,
        version % minor
    )
}

/// The ranks' cards, connected. It has to be ended by [`Communicator::close`] or
/// [`Communicator::abort`]; dropping it leaves it to the end of the process.
pub(super) struct Communicator {
    nccl: Arc<Nccl>,
    handle: Handle,
}

// SAFETY: NCCL allows a communicator to be used by any thread, one at a time
unsafe impl Send for Communicator {}

impl Communicator {
    /// Queues messages to and from other ranks on a stream, all of which go on together.
    ///
    /// # Errors
    /// NCCL refuses a message.
    ///
    /// # Safety
    /// The addresses are of this card's memory with that many values, which nothing frees before the
    /// work on the stream is done; places that are received into overlap no other.
    pub unsafe fn exchange(
        &self,
        stream: Handle,
        sends: &[Transfer],
        receives: &[Transfer],
    ) -> Result<()> {
        let f = &self.nccl.functions;
        // SAFETY: the calls read their arguments only; the caller guarantees the memory
        let queued = unsafe {
            self.nccl.checked((f.group_start)(), "begin an exchange")?;
            let send = |t: &Transfer| {
                let at = t.at as *const c_void;
                let code = (f.send)(at, t.values, FLOAT, t.peer as c_int, self.handle, stream);
                let action = format!("send gradients to rank {}", t.peer);
                self.nccl.checked(code, &action)
            };
            let receive = |t: &Transfer| {
                let at = t.at as *mut c_void;
                let code = (f.receive)(at, t.values, FLOAT, t.peer as c_int, self.handle, stream);
                let action = format!("receive gradients from rank {}", t.peer);
                self.nccl.checked(code, &action)
            };
            let sent = sends.iter().try_for_each(send);
            sent.and_then(|()| receives.iter().try_for_each(receive))
        };
        // SAFETY: a group was begun above; it has to be ended after an error, too
        let ended = unsafe { (f.group_end)() };
        queued?;
        self.nccl.checked(ended, "exchange gradients")
    }

    /// Fails if an exchange that was queued has failed.
    ///
    /// # Errors
    /// Those of the exchange.
    pub fn state(&self) -> Result<()> {
        let mut state = 0;
        // SAFETY: the call writes one int, to a variable that outlives it
        let code = unsafe { (self.nccl.functions.async_error)(self.handle, &mut state) };
        self.nccl.checked(code, "say how an exchange goes on")?;
        self.nccl.checked(state, "exchange gradients")
    }

    /// Ends what is queued, also if other ranks never answer. May take long where other processes of
    /// the host do not do the same.
    pub fn abort(self) {
        // SAFETY: the communicator is used no more
        unsafe {
            (self.nccl.functions.abort)(self.handle);
        }
    }

    /// Ends after all that was queued is done. May take long where other ranks do not do the same.
    pub fn close(self) {
        // SAFETY: as for `abort`
        unsafe {
            (self.nccl.functions.destroy)(self.handle);
        }
    }
}

#[cfg(not(unix))]
fn open(names: &[String]) -> Result<Nccl> {
    let _ = (names, LEAST_VERSION);
    bail!("this program uses NCCL on Unix systems only")
}

#[cfg(unix)]
use unix::open;

#[cfg(unix)]
mod unix {
    use super::*;
    use anyhow::ensure;
    use libloading::Library;

    /// Opens the first library that is there.
    pub(super) fn open(names: &[String]) -> Result<Nccl> {
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: NCCL's initialisers have no requirements
            match unsafe { Library::new(name) } {
                Ok(library) => return take(library, name),
                Err(error) => reasons.push(format!("{:#}", anyhow::Error::from(error))),
            }
        }
        bail!(reasons.join("; "))
    }

    /// Takes the functions.
    fn take(library: Library, name: &str) -> Result<Nccl> {
        let mut version = 0;
        // SAFETY: the types are those of nccl.h, which are the same in all versions 2
        let functions = unsafe {
            let ask: unsafe extern "C" fn(*mut c_int) -> c_int =
                function(&library, name, c"ncclGetVersion")?;
            ensure!(ask(&mut version) == 0, "{name} does not say its version");
            ensure!(
                version >= LEAST_VERSION,
                "{name} is NCCL {}, and 2.7 or newer is needed",
                version_text(version)
            );
            Functions {
                unique_id: function(&library, name, c"ncclGetUniqueId")?,
                init_rank: function(&library, name, c"ncclCommInitRank")?,
                group_start: function(&library, name, c"ncclGroupStart")?,
                group_end: function(&library, name, c"ncclGroupEnd")?,
                send: function(&library, name, c"ncclSend")?,
                receive: function(&library, name, c"ncclRecv")?,
                async_error: function(&library, name, c"ncclCommGetAsyncError")?,
                abort: function(&library, name, c"ncclCommAbort")?,
                destroy: function(&library, name, c"ncclCommDestroy")?,
                error_string: function(&library, name, c"ncclGetErrorString")?,
            }
        };
        std::mem::forget(library);
        Ok(Nccl {
            functions,
            version,
            name: name.to_string(),
        })
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is the type of the function.
    unsafe fn function<F: Copy>(library: &Library, file: &str, name: &CStr) -> Result<F> {
        // SAFETY: the caller guarantees the type
        let found = unsafe { library.get::<F>(name.to_bytes_with_nul()) };
        Ok(*found.with_context(|| format!("{file} has no {}", name.to_string_lossy()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_know_them() {
        assert_eq!(version_text(22_105), "2.21.5");
        assert_eq!(version_text(2708), "2.7.8");
        assert_eq!(version_text(20_900), "2.9.0");
    }
}
