//! The CUDA kernels on a machine without a GPU: compiled as C++ to run on the fibers of
//! `kernels/host`, with the launches that the backend lowers a plan to. Depends on the crate under
//! test and a C++ compiler. Without a compiler a test prints `SKIP`, or fails if
//! `PARAGON_REQUIRE_KERNELS` is set.

use paragon::backend::Scalars;
use paragon::backend::cuda::{Launch, scalars_launch};
use paragon::plan::{BufferId, PlanData, Precision};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// The order in which the fibers of a thread block, and the thread blocks, run. A result that
/// depends on it shows a race.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    Forward,
    Backward,
    Mixed,
}

/// The scalars of operations that compute no update: gradients are added to those that are there.
pub const SCALARS: Scalars = Scalars {
    lr: 0.0,
    step: 1,
    clip: 1.0,
    ema_decay: 0.0,
    micro_scale: 1.0,
    loss_scale: 1.0,
    accumulate: true,
};

pub const ORDERS: [Order; 3] = [Order::Forward, Order::Backward, Order::Mixed];

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path
            .extension()
            .is_some_and(|e| ["cu", "cuh", "cpp", "h"].iter().any(|known| e == *known))
        {
            out.push(path);
        }
    }
}

/// How the kernels and the fibers are compiled: optimised, or with the sanitizers, whose reports name lines
/// but no variables (with these the compiler takes half as long again).
fn flags(sanitize: bool) -> &'static [&'static str] {
    if sanitize {
        &[
            "-O1",
            "-g1",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
            "-fPIC",
            "-fvisibility=hidden",
        ]
    } else {
        &["-O2", "-fPIC", "-fvisibility=hidden"]
    }
}

/// The kernels for a precision as an object file, for the programs that replay launches and for the
/// stand-in driver.
fn object(precision: Precision, sanitize: bool) -> Option<PathBuf> {
    let kind = if sanitize { "-sanitized" } else { "" };
    build(
        &format!("kernels-{precision}{kind}.o"),
        &|k, beside, compile| {
            let define = format!("-DPRECISION={}", number(precision));
            let flags = [flags(sanitize), &["-c", &define, "-x", "c++"]].concat();
            compile(&flags, &[k.join("paragon.cu")], beside);
        },
    )
}

/// Compiles the program that replays launches of a precision, once for every version of the sources;
/// `None` without a compiler.
pub fn compile(precision: Precision, sanitize: bool) -> Option<PathBuf> {
    let kernels = object(precision, sanitize)?;
    let kind = if sanitize { "-sanitized" } else { "" };
    build(
        &format!("replay-{precision}{kind}"),
        &|k, beside, compile| {
            let define = format!("-DPRECISION={}", number(precision));
            let files = [
                k.join("host/shim.cpp"),
                k.join("host/replay.cpp"),
                kernels.clone(),
            ];
            compile(&[flags(sanitize), &[&define]].concat(), &files, beside);
        },
    )
}

/// A program that replays launches of the kernels of `host/fibers_test.cpp`.
pub fn fibers(precision: Precision, sanitize: bool) -> Option<PathBuf> {
    let kind = if sanitize { "-sanitized" } else { "" };
    build(
        &format!("fibers-{precision}{kind}"),
        &|k, beside, compile| {
            let define = format!("-DPRECISION={}", number(precision));
            let files = ["fibers_test.cpp", "shim.cpp", "replay.cpp"];
            let files = files.map(|file| k.join("host").join(file));
            compile(&[flags(sanitize), &[&define]].concat(), &files, beside);
        },
    )
}

/// A folder with a stand-in `libcuda.so` that runs kernels of all three precisions on fibers.
pub fn driver() -> Option<PathBuf> {
    let all = [Precision::F32, Precision::Bf16, Precision::Fp16];
    // at the same time, because nearly every test of the driver waits for them
    let objects = std::thread::scope(|scope| {
        let started = all.map(|precision| scope.spawn(move || object(precision, false)));
        started.map(|thread| thread.join().unwrap())
    });
    let objects: Vec<PathBuf> = objects.into_iter().collect::<Option<_>>()?;
    let library = build("libcuda", &|k, beside, compile| {
        let link = ["-shared", "-Wl,-soname,libcuda.so"];
        let files = [
            vec![k.join("host/shim.cpp"), k.join("host/driver.cpp")],
            objects.clone(),
        ]
        .concat();
        compile(&[flags(false), &link].concat(), &files, beside);
    })?;
    Some(folder_with(&library, "libcuda.so"))
}

/// A folder with a stand-in `libnccl.so.2` for processes that run on the driver of [`driver`].
#[cfg(unix)]
pub fn nccl() -> Option<PathBuf> {
    let library = build("libnccl", &|k, beside, compile| {
        let flags = [
            "-O2",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-Wl,-soname,libnccl.so.2",
        ];
        compile(&flags, &[k.join("host/nccl.cpp")], beside);
    })?;
    Some(folder_with(&library, "libnccl.so.2"))
}

/// A folder in which a library has the name that programs look for.
fn folder_with(library: &Path, name: &str) -> PathBuf {
    let folder = library.with_extension("folder");
    std::fs::create_dir_all(&folder).unwrap();
    let link = folder.join(name);
    if !link.exists() {
        #[cfg(unix)] // the stand-ins are built on Unix only
        let _ = std::os::unix::fs::symlink(library, &link); // another test may have made the link
    }
    folder
}

fn number(precision: Precision) -> u32 {
    match precision {
        Precision::F32 => 0,
        Precision::Bf16 => 1,
        Precision::Fp16 => 2,
    }
}

/// Runs the compiler with these flags and sources.
type Compile<'a> = &'a (dyn Fn(&[&str], &[PathBuf], &Path) + Sync);

/// Flags for instructions that this processor has. Without them every fused multiply-add is a call of the
/// C library; its result is the same.
fn instructions() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return &["-mavx2", "-mfma"];
    }
    &[]
}

/// Makes a file from the kernels, once for every version of their sources. `make` gets the folder
/// of the sources and the path to write.
fn build(name: &str, make: &dyn Fn(&Path, &Path, Compile<'_>)) -> Option<PathBuf> {
    // one lock for each name, so that two tests can make different files at the same time; it holds
    // the file once that is known
    type Made = Arc<Mutex<Option<PathBuf>>>;
    static MADE: Mutex<BTreeMap<String, Made>> = Mutex::new(BTreeMap::new());
    let mut all = MADE.lock().unwrap_or_else(|e| e.into_inner());
    let own = all.entry(name.to_string()).or_default().clone();
    drop(all);
    let mut own = own.lock().unwrap_or_else(|e| e.into_inner());
    if own.is_some() {
        return own.clone();
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    if Command::new(&compiler).arg("--version").output().is_err() {
        assert!(
            std::env::var_os("PARAGON_REQUIRE_KERNELS").is_none(),
            "no C++ compiler ({compiler})"
        );
        println!("SKIP kernels on the host: no C++ compiler ({compiler})");
        return None;
    }
    let mut files = Vec::new();
    sources(&kernels(), &mut files);
    files.sort();
    let mut hasher = crc32fast::Hasher::new();
    files
        .iter()
        .for_each(|f| hasher.update(&std::fs::read(f).unwrap()));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let made = folder.join(format!("{name}-{:08x}", hasher.finalize()));
    if made.exists() {
        *own = Some(made);
        return own.clone();
    }
    let beside = folder.join(format!("{name}-{}.beside", std::process::id()));
    make(&kernels(), &beside, &|flags, files, out| {
        let output = Command::new(&compiler)
            .args([
                "-std=c++17",
                "-ffp-contract=off",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-unused-parameter",
            ])
            .args(instructions())
            .args(flags)
            .args(files)
            .arg("-o")
            .arg(out)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    std::fs::rename(&beside, &made).unwrap();
    *own = Some(made);
    own.clone()
}

/// Runs a program that replays launches. `list`: buffers and launches, as `host/replay.cpp` has them.
/// Returns the buffers' bytes after it, or the message of the fibers or of a sanitizer. The barrier at
/// `without` does nothing.
pub fn replay(
    program: &Path,
    order: Order,
    without: Option<&str>,
    list: &[u8],
) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let (launches, out) = (folder.path().join("program"), folder.path().join("out"));
    std::fs::write(&launches, list).unwrap();
    let order = match order {
        Order::Forward => "forward",
        Order::Backward => "backward",
        Order::Mixed => "mixed",
    };
    let output = Command::new(program)
        .envs(without.iter().map(|place| ("PARAGON_FIBERS_SKIP", place)))
        .arg(&launches)
        .arg(&out)
        .arg(order)
        .env(
            "ASAN_OPTIONS",
            "detect_stack_use_after_return=0:detect_leaks=0",
        )
        .output()
        .unwrap();
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr)
            .chars()
            .take(4000)
            .collect();
        return Err(format!("{}: {said}", output.status));
    }
    Ok(std::fs::read(&out).unwrap())
}

/// The buffers of a plan in host memory, each allocated by itself; launches run on them.
#[derive(Clone)]
pub struct Host {
    pub plan: PlanData,
    pub memory: Vec<Vec<u8>>,
    pub order: Order,
    /// A barrier (file:line) that does nothing.
    pub without: Option<String>,
    program: PathBuf,
}

impl Host {
    /// Fills buffers with NaN, except persistent ones, which start as zeros as in the backends.
    pub fn new(plan: impl Into<PlanData>, program: PathBuf, order: Order) -> Host {
        let plan = plan.into();
        let memory = plan
            .buffers
            .iter()
            .map(|b| {
                if b.parent.is_some() {
                    Vec::new()
                } else {
                    vec![if b.class.persistent() { 0 } else { 0xff }; b.bytes as usize]
                }
            })
            .collect();
        Host {
            plan,
            memory,
            order,
            without: None,
            program,
        }
    }

    fn place(&self, id: BufferId) -> (usize, usize, usize) {
        let b = self.plan.buffer(id);
        let (owner, start) = b.parent.unwrap_or((id, 0));
        (owner.0 as usize, start as usize, b.bytes as usize)
    }

    /// The bytes of a buffer.
    pub fn bytes(&mut self, id: BufferId) -> &mut [u8] {
        let (owner, start, len) = self.place(id);
        &mut self.memory[owner][start..start + len]
    }

    /// Sets the scalars and runs launches; an error has the message of the fibers or of a
    /// sanitizer.
    pub fn run(&mut self, scalars: &Scalars, launches: &[Launch]) -> Result<(), String> {
        let set = scalars_launch(&self.plan, scalars);
        let launches: Vec<&Launch> = set.iter().chain(launches).collect();
        // Buffers that no launch addresses stay here: a network's parameters and the optimizer's
        // state are much larger than the values of one operation.
        let mut used = vec![false; self.memory.len()];
        for pointer in launches.iter().flat_map(|l| l.arguments.pointers()) {
            used[pointer.buffer.0 as usize] = true;
        }
        let mut text = format!("{}\n", self.memory.len());
        for (m, &used) in self.memory.iter().zip(&used) {
            writeln!(text, "{}", if used { m.len() } else { 0 }).unwrap();
        }
        writeln!(text, "{}", launches.len()).unwrap();
        for l in launches {
            let [x, y, z] = l.grid;
            let words = l.arguments.words(|_| 0);
            write!(
                text,
                "{} {x} {y} {z} {} {} {}",
                l.kernel,
                l.block,
                l.shared,
                8 * words.len()
            )
            .unwrap();
            for (i, word) in words.iter().enumerate() {
                match l.arguments.pointers().iter().find(|p| p.word() == i) {
                    Some(p) => write!(text, " b {} {}", p.buffer.0, p.bytes),
                    None => write!(text, " w {word}"),
                }
                .unwrap();
            }
            text.push('\n');
        }
        let mut bytes = text.into_bytes();
        let addressed = self.memory.iter().zip(&used).filter(|(_, used)| **used);
        addressed.for_each(|(m, _)| bytes.extend_from_slice(m));
        let result = replay(&self.program, self.order, self.without.as_deref(), &bytes)?;
        let mut at = 0;
        for (m, _) in self.memory.iter_mut().zip(&used).filter(|(_, used)| **used) {
            let end = at + m.len();
            m.copy_from_slice(&result[at..end]);
            at = end;
        }
        Ok(())
    }
}

/// The bytes of f32 values after conversion to a precision.
pub fn to_activations(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        half => values
            .iter()
            .flat_map(|&v| half.narrow(v).to_le_bytes())
            .collect(),
    }
}

/// The values that the bytes of activations represent.
pub fn from_activations(bytes: &[u8], precision: Precision) -> Vec<f32> {
    match precision {
        Precision::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect(),
        half => bytes
            .chunks_exact(2)
            .map(|b| half.widen(u16::from_le_bytes([b[0], b[1]])))
            .collect(),
    }
}
