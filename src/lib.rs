//! The library of `paragon`: from a folder of images to a trained super-resolution network, with every
//! byte of memory known before the first step.
//!
//! The program `paragon` is a command line over this library. Data flows through the modules in one
//! direction:
//!
//! | module | what it does |
//! |---|---|
//! | [`dataset`] | finds images and pairs, decodes them, makes LQ from HR |
//! | [`shard`] | writes and reads sets of shards: immutable files of compressed LQ/HR pairs |
//! | [`loader`] | delivers batches from sets in a reproducible order, in bounded memory |
//! | [`model`] | the networks: parameter tables with PyTorch's names, plans, network files |
//! | [`plan`] | a training step or inference as a verified list of operations over one arena |
//! | [`backend`] | runs a plan: the CPU, or CUDA |
//! | [`train`] | the training loop: schedule, checkpoints, validation, resuming |
//! | [`export`] | files of a network for other programs: ONNX, safetensors, OpenModelDB |
//! | [`inference`] | upscaling with a network, and measuring the result |
//!
//! Modules that are hidden in this documentation (options and their files, charts and pages, what all
//! modules share) belong to the program and its tests, and are no interface: any release may change
//! them.
//!
//! The formats of files are stable: every version reads what earlier versions wrote. The library's
//! API is not yet: before 1.0 a minor version may change it.
//!
//! # Reading shards
//!
//! A set is opened once and shared between threads; each thread that reads has a scratch of its own.
//! The set of this example is the one that the tests compare with, four pairs of LQ 9 and HR 18.
//!
//! ```
//! use paragon::shard::reader::ShardSet;
//! use std::path::Path;
//!
//! # fn main() -> anyhow::Result<()> {
//! let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shards/golden");
//! let set = ShardSet::open(&folder)?;
//! let lq_size = set.lq_size() as usize;
//! let hr_size = lq_size * set.scale() as usize;
//!
//! // u8 RGB, rows from top to bottom: [lq_size, lq_size, 3] and [hr_size, hr_size, 3]
//! let mut lq = vec![0; lq_size * lq_size * 3];
//! let mut hr = vec![0; hr_size * hr_size * 3];
//! let mut scratch = set.scratch()?;
//! for record in 0..set.len() {
//!     set.read(record, &mut scratch, &mut lq, &mut hr)?;
//!     println!("record {record} is from {}", set.source(record)?.image);
//! }
//! # assert_eq!((set.len(), lq_size, hr_size), (4, 9, 18));
//! # Ok(())
//! # }
//! ```
//!
//! # Making shards
//!
//! [`shard::plan::plan`] looks at image headers and decides what takes part;
//! [`shard::writer::build`] converts. An interrupted conversion resumes when it is started again.
//!
//! ```
//! use paragon::dataset::synth;
//! use paragon::shard::plan::{BuildConfig, plan};
//! use paragon::shard::reader::ShardSet;
//! use paragon::shard::writer::build;
//! use paragon::progress::Progress;
//!
//! # fn main() -> anyhow::Result<()> {
//! let place = tempfile::tempdir()?;
//! let (images, out) = (place.path().join("images"), place.path().join("set"));
//! std::fs::create_dir(&images)?;
//! for index in 0..2 {
//!     synth::synthetic_image(1, index, 96, 64).save(images.join(format!("{index}.png")))?;
//! }
//!
//! // scale 2, LQ patches of 16 pixels; the LQ is made from the images with a bicubic filter
//! let config = BuildConfig::new(&images, &out, 2, 16);
//! build(&config, plan(&config)?, &Progress::hidden())?;
//! assert_eq!(ShardSet::open(&out)?.len(), 12);
//! # Ok(())
//! # }
//! ```
//!
//! # Loading batches
//!
//! A [`loader::Loader`] reads with threads of its own. Its memory is known before it starts, and
//! batch number `n` depends on the sets, the seed and `n` alone, for any number of threads.
//!
//! ```
//! use paragon::loader::{Loader, LoaderConfig, Sources, bound};
//! use std::path::Path;
//!
//! # fn main() -> anyhow::Result<()> {
//! let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shards/golden");
//! let sources = Sources::open(&[folder], &[])?;
//! // batches of 2 pairs, whole patches of LQ 9, seed 1
//! let config = LoaderConfig::new(2, 9, 1);
//! println!("{} bytes", bound(&sources, &config)?.total());
//!
//! let mut loader = Loader::start(sources, config)?;
//! for _ in 0..3 {
//!     let batch = loader.next()?;
//!     // [2, 9, 9, 3] and [2, 18, 18, 3]; the augmentation codes are applied by the backend
//!     assert_eq!(batch.lq().len(), 2 * 9 * 9 * 3);
//!     assert_eq!(batch.hr().len(), 2 * 18 * 18 * 3);
//!     assert_eq!(batch.augment().len(), 2);
//! } // a dropped batch gives its memory back to the loader
//! # Ok(())
//! # }
//! ```
//!
//! # Planning a step
//!
//! A [`plan::Plan`] is made for the options of one backend, before any memory is allocated.
//!
//! ```
//! use paragon::backend::cpu::CpuOptions;
//! use paragon::model::{Network, StepSpec, training_plan};
//! use paragon::plan::LossKind;
//!
//! # fn main() -> anyhow::Result<()> {
//! let network = Network::new("nano", 2)?;
//! // 16 patches of LQ 64 x 64, L1 loss
//! let spec = StepSpec::new(16, (64, 64), vec![(LossKind::L1, 1.0)]);
//! let plan = training_plan(&network, &spec, &CpuOptions::new(2))?;
//! for line in plan.memory().lines {
//!     println!("{:<40} {:>12} bytes", line.what, line.bytes);
//! }
//! println!("one allocation of {} bytes", plan.arena_bytes);
//! # assert!((1 << 20..1 << 30).contains(&plan.arena_bytes));
//! # Ok(())
//! # }
//! ```
//!
//! # Training
//!
//! `examples/train_steps.rs` puts these together: a loader feeds steps of a plan on the CPU. The
//! whole loop, with schedule, checkpoints and validation, is [`train::train`].

// the command line names the library as any other user does
#[cfg(all(feature = "cli", feature = "report"))]
extern crate self as paragon;

pub mod backend;
#[cfg(all(feature = "cli", feature = "report"))]
mod cli;
#[doc(hidden)]
pub mod config;
pub mod dataset;
pub mod degrade;
pub mod export;
pub mod inference;
pub mod loader;
pub mod model;
pub mod plan;
#[doc(hidden)]
pub mod ranks;
#[doc(hidden)]
pub mod report;
pub mod shard;
#[doc(hidden)]
pub mod support;
#[doc(hidden)]
pub mod sys;
pub mod train;

pub use support::progress;

/// Runs the command line of the program `paragon`; `arguments` begin with the name of the program.
/// Returns the exit code: 0 ok, 1 the work failed, 2 wrong usage. Some commands end the process
/// themselves (wrong usage, Ctrl-C).
#[cfg(all(feature = "cli", feature = "report"))]
#[doc(hidden)]
pub fn program(arguments: Vec<std::ffi::OsString>) -> u8 {
    cli::main(arguments)
}
