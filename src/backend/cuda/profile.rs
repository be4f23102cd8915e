//! Times of a step's launches on a device. Depends on the backend.

use super::backend::CudaBackend;
use super::driver::Call;
use super::launch::Launch;
use crate::backend::Scalars;
use anyhow::Result;
use cudarc::driver::sys;

/// The time of one launch of a step.
#[derive(Clone, Copy, Debug)]
pub struct LaunchTime {
    /// The operation of the plan; `None` for a launch that serves several.
    pub operation: Option<usize>,
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Seconds that the launch adds to the step. Noise, or a launch that runs beside others, can
    /// make it negative; all together are the step.
    pub added: f64,
    /// Seconds of the launch by itself, many times in a row: what it adds is less where it runs
    /// beside others, or reads what the launch before it left in the cache.
    pub alone: f64,
}

impl CudaBackend {
    /// The time of every launch of a step. Growing prefixes of the step are timed, so that caches
    /// and the pauses between kernels are those of the step. Each time is the median of three runs
    /// of `repeats` copies. The parameters are overwritten.
    ///
    /// # Errors
    /// When the device fails.
    pub fn profile(&mut self, scalars: &Scalars, repeats: usize) -> Result<Vec<LaunchTime>> {
        self.set_scalars(scalars)?;
        let launches: Vec<Launch> = self.places[self.current]
            .launches
            .iter()
            .chain(&self.update)
            .cloned()
            .collect();
        let mut before = 0.0;
        let mut times = Vec::new();
        for (at, last) in launches.iter().enumerate() {
            let together = self.time(&launches[..=at], repeats)?;
            times.push(LaunchTime {
                operation: last.op,
                kernel: last.kernel,
                added: together - before,
                alone: self.time(std::slice::from_ref(last), repeats)?,
            });
            before = together;
        }
        Ok(times)
    }

    /// Seconds of one of `repeats` runs of some launches.
    fn time(&self, launches: &[Launch], repeats: usize) -> Result<f64> {
        let graph = if self.no_graph.is_none() {
            self.graph(launches, repeats)?
        } else {
            None
        };
        let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mut times = Vec::new();
        for round in 0..4 {
            let start = self
                .device
                .context
                .new_event(timing)
                .call("make an event")?;
            let end = self
                .device
                .context
                .new_event(timing)
                .call("make an event")?;
            start.record(&self.device.compute).call("mark a launch")?;
            match &graph {
                Some(graph) => graph.launch().call("launch kernels")?,
                None => (0..repeats).try_for_each(|_| self.launch(launches))?,
            }
            end.record(&self.device.compute).call("mark a launch")?;
            let seconds = f64::from(start.elapsed_ms(&end).call("time a launch")?) / 1e3;
            if round > 0 {
                times.push(seconds / repeats as f64);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[1])
    }
}
