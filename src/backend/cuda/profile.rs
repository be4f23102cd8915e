//! Times of a step's launches on a device. Depends on the backend.

use super::backend::CudaBackend;
use super::driver::Call;
use super::launch::Launch;
use crate::backend::Scalars;
use anyhow::Result;
use cudarc::driver::sys;

impl CudaBackend {
    /// The seconds that every launch of a step adds to it: (operation, `None` for a launch that
    /// serves several; kernel; seconds). Growing prefixes of the step are timed, so that caches and
    /// the pauses between kernels are those of the step. Each time is the median of three runs of
    /// `repeats` copies. The parameters are overwritten.
    ///
    /// # Errors
    /// When the device fails.
    pub fn profile(
        &mut self,
        scalars: &Scalars,
        repeats: usize,
    ) -> Result<Vec<(Option<usize>, &'static str, f64)>> {
        self.set_scalars(scalars)?;
        let launches: Vec<Launch> = self.places[self.current]
            .launches
            .iter()
            .chain(&self.update)
            .cloned()
            .collect();
        let mut before = 0.0;
        let mut parts = Vec::new();
        for count in 1..=launches.len() {
            let together = self.time(&launches[..count], repeats)?;
            let last = &launches[count - 1];
            parts.push((last.op, last.kernel, f64::max(together - before, 0.0)));
            before = together;
        }
        Ok(parts)
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
