//! The MPI library, loaded at run time: the functions of it that are needed, for each of the three
//! binary interfaces in use, behind one safe interface. This file has all unsafe code of the
//! module. Depends on libloading and `channel`. Promises that nothing of MPI is needed to build the program, and
//! that memory which MPI may still read or write is never freed.

use super::channel::{Channel, Flight, Mail, Tag, parts};
use super::launcher::LauncherKind;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::{CStr, c_char, c_int, c_void};

/// The environment variable that names the library to load, or `off`.
pub const LIBRARY_VARIABLE: &str = "PARAGON_MPI";
/// Largest message, f32 values: MPI counts bytes in a C int.
const MOST_VALUES: usize = 64 << 20;
/// `MPI_MAX_LIBRARY_VERSION_STRING` of the library with the longest one, bytes.
const VERSION_BYTES: usize = 8192;
/// `MPI_MAX_ERROR_STRING` of the library with the longest one, bytes.
const ERROR_BYTES: usize = 512;

/// A handle of MPI: a C int in MPICH and its relatives, a pointer elsewhere.
trait Handle: Copy + 'static {
    fn to_bits(self) -> usize;
    fn from_bits(bits: usize) -> Self;
}

impl Handle for c_int {
    fn to_bits(self) -> usize {
        self as u32 as usize
    }
    fn from_bits(bits: usize) -> Self {
        bits as u32 as c_int
    }
}

/// A pointer-sized handle, passed as the integer of the same size and register.
impl Handle for usize {
    fn to_bits(self) -> usize {
        self
    }
    fn from_bits(bits: usize) -> Self {
        bits
    }
}

/// The predefined handles and constants of one binary interface.
struct Constants<H> {
    world: H,
    byte: H,
    errors_return: H,
    /// `MPI_THREAD_FUNNELED`.
    funneled: c_int,
    /// `MPI_STATUS_IGNORE` as an address.
    status_ignore: usize,
}

/// The functions of MPI that are used.
struct Functions<H> {
    init_thread: unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int,
    set_errhandler: unsafe extern "C" fn(H, H) -> c_int,
    comm_rank: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    comm_size: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    send: unsafe extern "C" fn(*const c_void, c_int, H, c_int, c_int, H, *mut H) -> c_int,
    receive: unsafe extern "C" fn(*mut c_void, c_int, H, c_int, c_int, H, *mut H) -> c_int,
    test: unsafe extern "C" fn(*mut H, *mut c_int, *mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
}

/// An initialised library with handles of type `H`.
struct Session<H> {
    functions: Functions<H>,
    constants: Constants<H>,
    rank: usize,
    size: usize,
    description: String,
}

/// The names to try, those of the launcher's own MPI first.
fn names(launcher: LauncherKind) -> Vec<String> {
    if let Some(name) = std::env::var(LIBRARY_VARIABLE)
        .ok()
        .filter(|name| !name.is_empty())
    {
        return vec![name];
    }
    let open_mpi = ["libmpi.so.40"];
    // Intel MPI, MVAPICH and MPICH's own builds have the second name.
    let mpich = ["libmpich.so.12", "libmpi.so.12"];
    let standard = ["libmpi_abi.so.1", "libmpi_abi.so.0", "libmpi_abi.so"];
    let of_mpich = matches!(launcher, LauncherKind::Pmi | LauncherKind::Mvapich);
    let (first, second) = if of_mpich {
        (&mpich[..], &open_mpi[..])
    } else {
        (&open_mpi[..], &mpich[..])
    };
    let all = first.iter().chain(&standard).chain(second);
    all.map(|name| name.to_string()).collect()
}

/// Loads the MPI library and initialises it; returns when all ranks have done so.
///
/// # Errors
/// No library was found, it is of an unknown kind, or it cannot be initialised.
#[cfg(not(unix))]
pub fn open(launcher: LauncherKind) -> Result<Box<dyn Channel>> {
    let _ = names(launcher);
    bail!("ranks find each other by MPI, which this program uses on Unix systems only")
}

#[cfg(unix)]
pub use unix::open;

#[cfg(unix)]
mod unix {
    use super::*;
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    /// Loads the MPI library and initialises it; returns when all ranks have done so.
    ///
    /// # Errors
    /// No library was found, it is of an unknown kind, or it cannot be initialised.
    pub fn open(launcher: LauncherKind) -> Result<Box<dyn Channel>> {
        let (name, library) = load(&super::names(launcher), launcher)?;
        let version = version(&library)?;
        // Open MPI goes on with its package and build, MPICH with its configuration.
        let first = version.lines().next().unwrap_or_default();
        let first = first.split(", package:").next().unwrap_or_default();
        let first = first.replace(" Version:\t", " ");
        let first = first.trim();
        let description = format!("{first} ({name})");
        // A library with the standard interface may carry the old one too, under another name.
        if name.contains("mpi_abi") {
            let constants = Constants {
                world: 0x101,
                byte: 0x247,
                errors_return: 0x143,
                funneled: 1024,
                status_ignore: 0,
            };
            return Session::<usize>::begin(library, constants, description);
        }
        let of_mpich = ["MPICH", "Intel", "MVAPICH", "CRAY"];
        if of_mpich.iter().any(|known| version.contains(known)) {
            let constants = Constants {
                world: 0x4400_0000,
                byte: 0x4c00_010d,
                errors_return: 0x5400_0001,
                funneled: 1,
                status_ignore: 1,
            };
            return Session::<c_int>::begin(library, constants, description);
        }
        ensure!(
            version.contains("Open MPI"),
            "the MPI library {name} calls itself '{first}'; known are Open MPI, MPICH and its relatives, and libmpi_abi.so of the standard \
             interface. Name another one with {LIBRARY_VARIABLE}=FILE"
        );
        let constants = Constants {
            world: address(&library, c"ompi_mpi_comm_world")?,
            byte: address(&library, c"ompi_mpi_byte")?,
            errors_return: address(&library, c"ompi_mpi_errors_return")?,
            funneled: 1,
            status_ignore: 0,
        };
        Session::<usize>::begin(library, constants, description)
    }

    /// Opens the first library that is there, with its symbols visible to the plugins it loads.
    fn load(names: &[String], launcher: LauncherKind) -> Result<(String, Library)> {
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: MPI libraries run initialisers that have no requirements
            match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => return Ok((name.clone(), library)),
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    reasons.push(format!("{name}: {error:#}"));
                }
            }
        }
        let package = match launcher {
            LauncherKind::Pmi | LauncherKind::Mvapich => "libmpich12",
            _ => "libopenmpi3",
        };
        bail!(
            "this process was started as a rank by {}, and no MPI library can be loaded:\n  {}\ninstall the library of the MPI whose launcher is \
             used (Debian and Ubuntu: {package}; on clusters: module load), name its file with {LIBRARY_VARIABLE}=FILE, or start a single process \
             with {LIBRARY_VARIABLE}=off",
            launcher.name(),
            reasons.join("\n  ")
        )
    }

    fn missing(name: &CStr) -> String {
        format!(
            "the MPI library has no {}; name another one with {LIBRARY_VARIABLE}=FILE",
            name.to_string_lossy()
        )
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `F` is the type of the function.
    unsafe fn function<F: Copy>(library: &Library, name: &CStr) -> Result<F> {
        // SAFETY: the caller guarantees the type
        let found = unsafe { library.get::<F>(name.to_bytes_with_nul()) };
        Ok(*found.with_context(|| missing(name))?)
    }

    /// The address of a data symbol, which is the handle of a predefined object in Open MPI.
    fn address(library: &Library, name: &CStr) -> Result<usize> {
        // SAFETY: the symbol is not read, only its address is taken
        let found = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
        Ok(found.with_context(|| missing(name))?.as_raw_ptr() as usize)
    }

    /// The version of a library, which may be asked before it is initialised.
    fn version(library: &Library) -> Result<String> {
        type Version = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;
        let mut text = vec![0u8; VERSION_BYTES];
        let mut length = 0;
        // SAFETY: the type is that of MPI 3, and the text has room for the longest version
        unsafe {
            let ask: Version = function(library, c"MPI_Get_library_version")?;
            ensure!(
                ask(text.as_mut_ptr().cast(), &mut length) == 0,
                "the MPI library does not say its version"
            );
        }
        Ok(text_of(&text))
    }

    impl<H: Handle> Session<H> {
        /// Takes the functions, initialises MPI and asks for rank and size. The library is never
        /// closed: threads of it may run until the process ends.
        fn begin(
            library: Library,
            constants: Constants<H>,
            description: String,
        ) -> Result<Box<dyn Channel>> {
            // SAFETY: the types are those of the MPI standard with this library's handles
            let functions = unsafe {
                Functions {
                    init_thread: function(&library, c"MPI_Init_thread")?,
                    set_errhandler: function(&library, c"MPI_Comm_set_errhandler")?,
                    comm_rank: function(&library, c"MPI_Comm_rank")?,
                    comm_size: function(&library, c"MPI_Comm_size")?,
                    send: function(&library, c"MPI_Isend")?,
                    receive: function(&library, c"MPI_Irecv")?,
                    test: function(&library, c"MPI_Test")?,
                    error_string: function(&library, c"MPI_Error_string")?,
                    finalize: function(&library, c"MPI_Finalize")?,
                    abort: function(&library, c"MPI_Abort")?,
                }
            };
            std::mem::forget(library);
            let mut session = Session {
                functions,
                constants,
                rank: 0,
                size: 0,
                description,
            };
            session.init()?;
            Ok(Box::new(session))
        }

        fn init(&mut self) -> Result<()> {
            let (mut provided, mut rank, mut size) = (0, 0, 0);
            let (f, c) = (&self.functions, &self.constants);
            // SAFETY: MPI allows null for the arguments of the program; the other pointers are of
            // variables that outlive the calls
            unsafe {
                let null = std::ptr::null_mut();
                let started =
                    (f.init_thread)(null, std::ptr::null_mut(), c.funneled, &mut provided);
                self.checked(started, "start MPI")?;
                self.checked((f.set_errhandler)(c.world, c.errors_return), "set up MPI")?;
                self.checked((f.comm_rank)(c.world, &mut rank), "ask for the rank")?;
                self.checked((f.comm_size)(c.world, &mut size), "ask for the ranks")?;
            }
            ensure!(
                provided >= c.funneled,
                "{} does not allow a program with threads; use one that provides MPI_THREAD_FUNNELED",
                self.description
            );
            (self.rank, self.size) = (usize::try_from(rank)?, usize::try_from(size)?);
            Ok(())
        }
    }
}

/// The text of a C string in a buffer, up to its first zero.
fn text_of(buffer: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(buffer).map(CStr::to_string_lossy);
    text.map_or_else(|_| String::new(), |text| text.into_owned())
}

impl<H: Handle> Session<H> {
    /// Turns a code of MPI into an error with its text.
    fn checked(&self, code: c_int, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text = vec![0u8; ERROR_BYTES];
        let mut length = 0;
        // SAFETY: the text has room for the longest error string
        unsafe {
            (self.functions.error_string)(code, text.as_mut_ptr().cast(), &mut length);
        }
        bail!("MPI could not {what}: {}", text_of(&text))
    }
}

impl<H: Handle> Channel for Session<H> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn start(&mut self, mail: Mail, tag: Tag) -> Result<Flight> {
        mail.check()?;
        let tag = match tag {
            Tag::Exchange => 1,
            Tag::Word => 2,
        };
        let (f, c) = (&self.functions, &self.constants);
        let mut flight = Flight {
            mail: None,
            requests: Vec::new(),
        };
        let mail = flight.mail.insert(mail);
        for (peer, range) in &mail.receives {
            for part in parts(range, MOST_VALUES) {
                let mut request = H::from_bits(0);
                // SAFETY: the place is inside `into`, is used by this request alone, and stays
                // allocated until the request is complete, because a flight leaks what is not
                let code = unsafe {
                    let at = mail.into.as_mut_ptr().add(part.start).cast();
                    let bytes = (part.len() * 4) as c_int;
                    (f.receive)(
                        at,
                        bytes,
                        c.byte,
                        *peer as c_int,
                        tag,
                        c.world,
                        &mut request,
                    )
                };
                self.checked(code, &format!("receive from rank {peer}"))?;
                flight.requests.push(request.to_bits());
            }
        }
        for (peer, range) in &mail.sends {
            for part in parts(range, MOST_VALUES) {
                let mut request = H::from_bits(0);
                // SAFETY: as above; nobody writes to `out` meanwhile
                let code = unsafe {
                    let at = mail.out.as_ptr().add(part.start).cast();
                    let bytes = (part.len() * 4) as c_int;
                    (f.send)(
                        at,
                        bytes,
                        c.byte,
                        *peer as c_int,
                        tag,
                        c.world,
                        &mut request,
                    )
                };
                self.checked(code, &format!("send to rank {peer}"))?;
                flight.requests.push(request.to_bits());
            }
        }
        Ok(flight)
    }

    fn test(&mut self, flight: &mut Flight) -> Result<bool> {
        let mut at = 0;
        while at < flight.requests.len() {
            let mut request = H::from_bits(flight.requests[at]);
            let mut complete = 0;
            // SAFETY: the request was started by this library and is not complete
            let code = unsafe {
                let ignore = self.constants.status_ignore as *mut c_void;
                (self.functions.test)(&mut request, &mut complete, ignore)
            };
            self.checked(code, "exchange with other ranks")?;
            if complete != 0 {
                flight.requests.swap_remove(at);
            } else {
                at += 1;
            }
        }
        Ok(flight.requests.is_empty())
    }

    fn finalize(&mut self) {
        // SAFETY: MPI was initialised by this thread and is not used afterwards
        unsafe {
            (self.functions.finalize)();
        }
    }

    fn abort(&mut self, code: i32) {
        // SAFETY: MPI is initialised
        unsafe {
            (self.functions.abort)(self.constants.world, code);
        }
    }
}
