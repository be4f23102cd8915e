//! A training loop in one page: batches from a set of shards, a planned step on the CPU, Adam, and
//! the network written where `paragon upscale` and PyTorch read it. What `paragon train` adds is a
//! schedule, validation, checkpoints and resuming.
//!
//! ```sh
//! cargo run --release --example train_steps -- shards/golden 200 net.safetensors
//! ```

use anyhow::{Context, Result};
use paragon::backend::cpu::{CpuBackend, CpuOptions};
use paragon::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use paragon::loader::{Loader, LoaderConfig, Sources};
use paragon::model::{Network, StepSpec, training_plan, write_model};
use paragon::plan::LossKind;
use std::path::PathBuf;

/// Patches in a batch.
const BATCH: usize = 4;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("usage: train_steps SHARDS STEPS OUT");
    let (shards, steps, out) = (next()?, next()?.parse::<u64>()?, next()?);

    let sources = Sources::open(&[PathBuf::from(shards)], &[])?;
    let (scale, lq) = (sources.scale() as usize, sources.lq_size() as usize);
    let mut loader = Loader::start(sources, LoaderConfig::new(BATCH, lq, 1))?;

    // The plan is made for the options of the backend that will run it.
    let mut network = Network::new("nano", scale)?;
    // the published 1e-5 needs thousands of iterations to open the blocks
    network.set("layer_scale", 0.1)?;
    let spec = StepSpec::new(BATCH, (lq, lq), vec![(LossKind::L1, 1.0)]);
    let options = CpuOptions::new(0);
    let plan = training_plan(&network, &spec, &options)?;
    let parameters = plan
        .ports
        .parameters
        .context("a training plan has parameters")?;
    let mut backend = CpuBackend::new(plan, options)?;
    println!("{}", backend.description());

    let mut values = network.params().start_values(1);
    write_floats(&mut backend, parameters, &values)?;
    for step in 1..=steps {
        let batch = loader.next()?;
        let scalars = Scalars {
            lr: 1e-3,
            step,
            clip: 1.0,
            ema_decay: 0.999,
            micro_scale: 1.0, // one micro-batch an iteration
            loss_scale: 1.0,  // for fp16 only
            accumulate: false,
        };
        let fence = backend.stage(BatchView {
            lq: batch.lq(),
            hr: batch.hr(),
            augment: batch.augment(),
        })?;
        backend.micro_step(&scalars)?;
        backend.update(&scalars)?;
        drop(fence); // the batch may be overwritten from here on
        if step == 1 || step % 50 == 0 {
            let metrics = backend.metrics()?;
            println!("step {step}: loss {:.5}", metrics.loss);
        }
    }
    read_floats(&mut backend, parameters, &mut values)?;
    write_model(&PathBuf::from(&out), &network, &values, Some(steps))?;
    println!("{out}");
    Ok(())
}
