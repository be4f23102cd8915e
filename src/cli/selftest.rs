//! `paragon selftest`: checks that this machine's GPU computes the same as the CPU, before a long
//! training depends on it. Depends on `selftest` and the backends.

use super::cuda_details::LoadedKernels;
use super::flags::{print, print_json, tell};
use anyhow::{Result, bail};
use paragon::backend::Backend;
use paragon::backend::cuda::{CudaBackend, Device};
use paragon::backend::selftest::{Check, run as compare};
use paragon::plan::{Plan, Precision};
use paragon::train::DeviceChoice;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Compare a GPU with the CPU, operation by operation and over a short training.
///
/// Takes a few seconds. Exit code 1 when anything differs by more than rounding explains. Kernels for
/// which the driver's compiler needs more registers or memory than the tested one are named.
#[derive(clap::Args)]
pub struct Args {
    /// The device to test: cuda or cuda:N
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Types of activations to test [default: all that the card has]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TYPE,TYPE")]
    precision: Vec<Precision>,
    /// Two small shapes only, for running under a sanitizer
    #[arg(long)]
    quick: bool,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Tests and prints.
pub fn run(args: &Args) -> Result<()> {
    let DeviceChoice::Cuda(ordinal) = args.device else {
        bail!("the CPU is what others are compared with; give --device cuda or cuda:N")
    };
    let device = Device::open(ordinal)?;
    let mut precisions = args.precision.clone();
    if precisions.is_empty() {
        precisions = vec![Precision::F32, Precision::Bf16, Precision::Fp16];
        precisions.retain(|&p| p != Precision::Bf16 || device.capability >= 80);
    }
    tell(format_args!(
        "{} (sm_{}) against the CPU",
        device.name, device.capability
    ));
    let (seen, percent) = (RefCell::new(BTreeMap::new()), RefCell::new(0));
    let load = |plan: Plan| -> Result<Box<dyn Backend>> {
        let backend = CudaBackend::new(&device, plan)?;
        for kernel in backend.resources()? {
            let shape = (kernel.kernel, kernel.threads, kernel.shared_bytes);
            seen.borrow_mut().insert(shape, kernel);
        }
        percent.replace(backend.carveout());
        Ok(Box::new(backend))
    };
    let mut checks: Vec<Check> = Vec::new();
    let mut loaded = Vec::new();
    for precision in precisions {
        let mut case = String::new();
        let found = compare(precision, &load, args.quick, &mut |check| {
            if case != check.case {
                case.clone_from(&check.case);
                tell(format_args!("{}, {case}", check.precision));
            }
            let verdict = if check.holds() { "" } else { "  TOO FAR" };
            tell(format_args!(
                "  {:40} {:9.2e} of {:8.1e}{verdict}",
                check.what, check.error, check.tolerance
            ));
        })?;
        checks.extend(found);
        let kernels = seen.take().into_values().collect();
        let kernels = LoadedKernels::new(&device, precision, percent.take(), kernels);
        tell(format_args!("{}", kernels.text()));
        kernels.warn();
        loaded.push(kernels);
    }
    let wrong = checks.iter().filter(|c| !c.holds()).count();
    if args.json {
        let report = serde_json::json!({
            "device": device.name, "capability": device.capability, "checks": checks.len(), "wrong": wrong, "list": checks,
            "loaded": loaded,
        });
        print_json(&report)?;
    } else {
        print(format_args!(
            "{} comparisons, {wrong} too far apart",
            checks.len()
        ))?;
    }
    if wrong > 0 {
        bail!(
            "{wrong} of {} comparisons differ by more than rounding explains; do not train on this device",
            checks.len()
        );
    }
    Ok(())
}
