//! The largest values that options accept. Nothing breaks right above them: they are there to catch
//! a mistyped number before it becomes a plan of terabytes. The table of configuration keys, the
//! flags of the program and the loader all use these. Depends on nothing.

/// Most threads that compute.
pub const MAX_COMPUTE_THREADS: usize = 1024;
/// Most threads of a loader: with more, the disk or the memory bus is the limit.
pub const MAX_LOADER_THREADS: usize = 256;
/// Most slots of a loader, that is, batches that exist at once.
pub const MAX_LOADER_SLOTS: usize = 1024;
/// Most patches in a micro-batch, and most micro-batches in an iteration.
pub const MAX_BATCH: usize = 65_536;
/// Largest micro-batch that `paragon plan --max` tries.
pub const LARGEST_BATCH_SEARCHED: usize = 4096;
/// Most pixels along one side of a patch or tile.
pub const MAX_SIDE: usize = 16_384;
/// Most checkpoints of which a run keeps the files.
pub const MAX_KEPT: usize = 65_536;
