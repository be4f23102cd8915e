//! The CPU backend: runs a plan on a rayon pool of its own, with the instruction set chosen at run
//! time. Depends on the plan. It gives the same bits for any number of threads, allocates once (the
//! arena), and never during a step.

mod activate;
mod activation;
mod arena;
mod base;
mod bf16;
mod border;
mod channel_attention;
pub(crate) use channel_attention::ChannelMeans;
mod compose;
mod concat;
mod conv;
mod elementwise;
mod exp;
mod folded_conv;
mod gate;
mod gelu;
mod losses;
mod nano;
mod operation;
mod optimizer;
mod padded_rows;
mod peak;
mod pixels;
#[cfg(test)]
mod plain_tests;
mod reconstruct;
mod rms_norm;
mod rows;
mod shuffle;
mod simd;
mod stream;
pub mod structural;
mod sum;
mod tasks;
#[cfg(test)]
mod tests_common;
mod tiling;
mod token_attention;
mod window_attention;
mod winograd;

pub use bf16::{BF16_VARIABLE, Bf16Unit, Products, bf16_peak};
pub use peak::fma_peak;

use super::{Backend, BatchView, Error, LentBackend, Scalars, StepMetrics};
use crate::plan::{BufferId, Op, Plan, Precision, Sizing};
pub use crate::support::isa::Isa;
use crate::sys::host_memory::Fence;
use anyhow::{Context as _, Result, bail, ensure};
use arena::Arena;
use std::sync::Arc;
use tasks::{Context, Workspace};

/// Most threads of a pool: rayon starts no more.
const MAX_THREADS: usize = (1 << 16) - 1;

/// Threads, instruction set and products of a CPU backend. As a [`Sizing`] it also states the
/// workspace of every operation.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// 1 to [`MAX_THREADS`].
    threads: usize,
    isa: Isa,
    products: Products,
}

impl CpuOptions {
    /// `threads` threads (0: one for each core that the process may use), the instruction set that
    /// [`Isa::detect`] chooses, and products in f32.
    pub fn new(threads: usize) -> CpuOptions {
        let threads = if threads > 0 {
            threads.min(MAX_THREADS)
        } else {
            std::thread::available_parallelism().map_or(1, |n| n.get())
        };
        CpuOptions {
            threads,
            isa: Isa::detect(),
            products: Products::F32,
        }
    }

    /// The same options with another instruction set, and products in f32.
    #[must_use]
    pub fn with_isa(self, isa: Isa) -> CpuOptions {
        CpuOptions {
            isa,
            products: Products::F32,
            ..self
        }
    }

    /// The same options with other products. A unit that does not work together with the
    /// instruction set leaves the products in f32.
    #[must_use]
    pub fn with_products(self, products: Products) -> CpuOptions {
        let works = |unit: Bf16Unit| Bf16Unit::available(self.isa).contains(&unit);
        let products = if products.unit().is_none_or(works) {
            products
        } else {
            Products::F32
        };
        CpuOptions { products, ..self }
    }

    /// The same options for a precision that the user chose (`None`: f32), and a sentence for the
    /// user if it is not to be had here. With bf16, activations stay f32 in memory, and products
    /// are bf16.
    ///
    /// # Errors
    /// fp16, which no processor computes in.
    pub fn with_precision(self, precision: Option<Precision>) -> Result<(Self, Option<String>)> {
        let products = match precision {
            None | Some(Precision::F32) => Products::F32,
            Some(Precision::Bf16) => match Bf16Unit::detect(self.isa) {
                Some(unit) => Products::Bf16(unit),
                None => {
                    let reason = if Bf16Unit::available(self.isa).is_empty() {
                        "this processor has neither AMX nor AVX512-BF16 for this program".into()
                    } else {
                        format!(
                            "bf16 products are not faster than f32 on this processor \
                             ({BF16_VARIABLE}=avx512-bf16 uses them all the same)"
                        )
                    };
                    let note =
                        format!("--precision bf16: the CPU computes in f32, because {reason}");
                    return Ok((self.with_products(Products::F32), Some(note)));
                }
            },
            Some(Precision::Fp16) => {
                bail!("the CPU computes in f32 or bf16; --precision fp16 is for --device cuda")
            }
        };
        Ok((self.with_products(products), None))
    }

    /// Number of threads that compute, at least 1.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How the products of dense convolutions and of window attention are computed.
    pub fn products(&self) -> Products {
        self.products
    }

    /// The workspace layout of `op`; an empty one for an operation that is not supported.
    fn layout(&self, op: &Op) -> Workspace {
        match operation::check(op) {
            Ok(()) => operation::of(op).workspace_for(self.products),
            Err(_) => Workspace::default(),
        }
    }
}

impl Sizing for CpuOptions {
    fn name(&self) -> String {
        format!("the CPU with {} threads", self.threads)
    }

    fn supports(&self, op: &Op) -> Result<()> {
        operation::check(op)
    }

    fn workspace(&self, op: &Op) -> u64 {
        self.layout(op).bytes(self.threads)
    }

    fn carry(&self, op: &Op) -> u64 {
        self.layout(op).carry_bytes()
    }
}

/// A plan loaded on the CPU.
pub struct CpuBackend {
    plan: Plan,
    arena: Arena,
    options: CpuOptions,
    pool: Arc<rayon::ThreadPool>,
}

impl CpuBackend {
    /// Allocates the arena and starts the threads.
    ///
    /// # Errors
    /// If the plan was made for another backend or for fewer threads, contains an operation that
    /// the CPU does not support, or if the system has too little memory or too few threads.
    pub fn new(plan: Plan, options: CpuOptions) -> Result<CpuBackend> {
        plan.check_sized_for(&options).map_err(Error::Plan)?;
        let arena = Arena::new(&plan)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|i| format!("compute-{i}"))
            .build();
        let pool = pool.with_context(|| {
            format!(
                "cannot start {} compute threads; use fewer (--threads)",
                options.threads
            )
        })?;
        Ok(CpuBackend {
            plan,
            arena,
            options,
            pool: Arc::new(pool),
        })
    }

    /// Runs a range of operations; `observe` is called with each operation and its time in seconds.
    fn run(
        &self,
        range: std::ops::Range<usize>,
        scalars: &Scalars,
        observe: &mut (dyn FnMut(&Op, f64) + Send),
    ) {
        let ctx = Context {
            plan: &self.plan,
            arena: &self.arena,
            isa: self.options.isa,
            products: self.options.products,
            scalars: *scalars,
        };
        self.pool.install(|| {
            for op in &self.plan.ops[range] {
                let start = std::time::Instant::now();
                operation::of(op).run(&ctx);
                observe(op, start.elapsed().as_secs_f64());
            }
        });
    }

    /// Runs the whole step on the current content of the batch buffer, and calls `observe` with
    /// each operation and its time in seconds.
    pub fn profile(&mut self, scalars: &Scalars, observe: &mut (dyn FnMut(&Op, f64) + Send)) {
        self.run(0..self.plan.ops.len(), scalars, observe);
    }

    /// Pointer to `len` bytes of a buffer from byte `offset` on.
    fn range(&self, buffer: BufferId, offset: usize, len: usize) -> Result<*mut u8> {
        let at = self
            .plan
            .range_in(buffer, offset, len)
            .map_err(Error::Plan)?;
        // SAFETY: `range_in` checked that the range lies inside the buffer, and the buffer lies
        // inside the arena
        Ok(unsafe { self.arena.base().add(at as usize) })
    }
}

impl Backend for CpuBackend {
    fn description(&self) -> String {
        let products = match self.options.products {
            Products::F32 => String::new(),
            Products::Bf16(unit) => format!(", bf16 products on {unit}"),
        };
        format!(
            "CPU, {}{products}, {} threads",
            self.options.isa, self.options.threads
        )
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn allocated(&self) -> u64 {
        self.arena.bytes()
    }

    fn write(&mut self, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range(buffer, offset, bytes.len())?;
        // SAFETY: `range` checked the bounds, and no operation runs while `self` is borrowed
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(buffer, offset, bytes.len())?;
        // SAFETY: as in `write`
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn lend(&mut self, plan: Plan) -> Result<Box<dyn Backend + '_>> {
        // inference is f32, as on other devices
        let options = self.options.with_products(Products::F32);
        plan.check_sized_for(&options).map_err(Error::Plan)?;
        let start = self.plan.place_between_steps(&plan).map_err(Error::Plan)?;
        // SAFETY: `place_between_steps` gives an aligned range of the arena that no buffer needs
        // between steps, and while `self` is borrowed this backend neither runs nor is dropped
        let arena = unsafe {
            self.arena
                .lend(start as usize, plan.arena_bytes.max(1) as usize)?
        };
        let backend = CpuBackend {
            plan,
            arena,
            options,
            pool: self.pool.clone(),
        };
        Ok(LentBackend::lend(backend))
    }

    fn stage(&mut self, batch: BatchView<'_>) -> Result<Option<Box<dyn Fence>>> {
        let Some(layout) = self.plan.batch else {
            bail!(Error::Misuse("the plan takes no batch".into()))
        };
        batch.check(&layout)?;
        self.write(layout.buffer, 0, batch.lq)?;
        self.write(layout.buffer, layout.lq_bytes(), batch.hr)?;
        if batch.augment.is_empty() {
            let codes = self.range(layout.buffer, layout.augment_offset(), layout.count)?;
            // SAFETY: `range` checked the bounds
            unsafe { codes.write_bytes(0, layout.count) };
        } else {
            self.write(layout.buffer, layout.augment_offset(), batch.augment)?;
        }
        Ok(None)
    }

    fn micro_step(&mut self, scalars: &Scalars) -> Result<()> {
        self.run(self.plan.micro.clone(), scalars, &mut |_, _| {});
        Ok(())
    }

    fn run_operation(&mut self, at: usize, scalars: &Scalars) -> Result<()> {
        ensure!(
            at < self.plan.ops.len(),
            Error::Misuse(format!(
                "operation {at} of a plan of {}",
                self.plan.ops.len()
            ))
        );
        self.run(at..at + 1, scalars, &mut |_, _| {});
        Ok(())
    }

    fn update(&mut self, scalars: &Scalars) -> Result<()> {
        self.run(self.plan.update.clone(), scalars, &mut |_, _| {});
        Ok(())
    }

    fn metrics(&mut self) -> Result<StepMetrics> {
        let Some(id) = self.plan.ports.metrics else {
            bail!(Error::Misuse("an inference plan has no metrics".into()))
        };
        let mut values = [0f64; crate::plan::METRICS];
        self.read(id, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(StepMetrics::from_values(values))
    }
}
