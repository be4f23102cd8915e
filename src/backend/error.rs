//! Why a backend refuses or fails. Depends on the plan's errors alone.

use crate::plan;
use std::fmt::{self, Display};

/// Why a backend refuses or fails.
///
/// Backends return [`anyhow::Error`]; `downcast_ref::<backend::Error>()` finds this type there, and
/// the text is written for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There is no such device, or no driver for it.
    NoDevice(String),
    /// The device or its driver is too old for the kernels.
    DeviceRefused(String),
    /// The driver reports an error.
    Driver {
        /// What was tried: `copy a batch`.
        action: String,
        /// The driver's error code (`CUresult`).
        code: u32,
        /// The driver's own words.
        text: String,
    },
    /// The driver reports an error after which the process cannot use the device any more. The call
    /// that reports it may have nothing to do with it.
    DeviceLost {
        /// What was tried when the error showed.
        action: String,
        /// The driver's error code (`CUresult`).
        code: u32,
        /// The driver's own words.
        text: String,
        /// What to try.
        advice: &'static str,
    },
    /// NCCL, through which the cards of several ranks exchange gradients, reports an error.
    Nccl {
        /// What was tried: `exchange gradients`.
        action: String,
        /// NCCL's error code (`ncclResult_t`).
        code: i32,
        /// NCCL's own words.
        text: String,
        /// Whether the reason may be another rank that has ended.
        remote: bool,
    },
    /// The host or the device has too little memory for the arena.
    OutOfMemory(String),
    /// The plan, or a range of a buffer, does not fit this backend.
    Plan(plan::Error),
    /// The backend has no code for an operation of this kind or size.
    Unsupported(String),
    /// The caller gave a batch of other sizes, or asked for something that the plan does not have.
    Misuse(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDevice(text)
            | Error::DeviceRefused(text)
            | Error::OutOfMemory(text)
            | Error::Unsupported(text)
            | Error::Misuse(text) => f.write_str(text),
            Error::Driver { action, text, .. } => write!(f, "CUDA could not {action}: {text}"),
            Error::DeviceLost {
                action,
                code,
                text,
                advice,
            } => write!(
                f,
                "the GPU is lost ({text}, CUDA error {code}; it showed when the program tried to {action}): {advice}. Start the program again; a training continues from its last checkpoint"
            ),
            Error::Nccl {
                action, code, text, ..
            } => write!(
                f,
                "NCCL could not {action}: {text} (error {code}); NCCL_DEBUG=WARN makes NCCL say more, and PARAGON_NCCL=off sums gradients in host \
                 memory instead"
            ),
            Error::Plan(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<plan::Error> for Error {
    fn from(error: plan::Error) -> Error {
        Error::Plan(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{CpuBackend, CpuOptions};
    use crate::backend::{Backend, BatchView, Scalars, cuda};
    use crate::model::{InferenceSpec, Network, inference_plan};
    use crate::plan::{BufferId, Plan};

    fn kind(error: &anyhow::Error) -> &Error {
        let found = error.downcast_ref();
        found.unwrap_or_else(|| panic!("untyped: {error:#}"))
    }

    fn plan(options: CpuOptions) -> Plan {
        let spec = InferenceSpec {
            batch: 1,
            lq: (8, 8),
            float_input: false,
        };
        inference_plan(&Network::new("nano", 2).unwrap(), &spec, &options).unwrap()
    }

    #[test]
    fn callers_can_match_on_what_was_misused() {
        let options = CpuOptions::new(1);
        let mut backend = CpuBackend::new(plan(options), options).unwrap();
        let output = backend.plan().ports.output.unwrap();
        let bytes = backend.plan().buffer(output).bytes as usize;
        let mut read = |buffer, offset| backend.read(buffer, offset, &mut [0; 4]).unwrap_err();
        assert!(matches!(
            kind(&read(output, bytes - 3)),
            Error::Plan(plan::Error::OutOfBuffer { .. })
        ));
        assert!(matches!(
            kind(&read(BufferId(9999), 0)),
            Error::Plan(plan::Error::NoSuchBuffer { number: 9999, .. })
        ));
        let short = BatchView {
            lq: &[0; 3],
            hr: &[],
            augment: &[],
        };
        let scalars = Scalars {
            lr: 0.0,
            step: 1,
            clip: f64::INFINITY,
            ema_decay: 0.0,
            micro_scale: 1.0,
            loss_scale: 1.0,
            accumulate: false,
        };
        let misused = [
            backend.stage(short).err().unwrap(),
            backend.metrics().unwrap_err(),
            backend.run_operation(9999, &scalars).unwrap_err(),
        ];
        for error in &misused {
            assert!(matches!(kind(error), Error::Misuse(_)), "{error:#}");
        }
    }

    #[test]
    fn a_plan_for_another_backend_is_refused_by_type() {
        let one_thread = CpuOptions::new(1);
        let error = CpuBackend::new(plan(one_thread), CpuOptions::new(64))
            .err()
            .unwrap();
        assert!(
            matches!(
                kind(&error),
                Error::Plan(plan::Error::OtherBackend { made_for, .. })
                    if made_for.contains("1 threads")
            ),
            "{error:#}"
        );
    }

    #[test]
    fn an_absent_device_is_an_error_of_its_own() {
        let error = cuda::Device::open(9999).err().unwrap();
        assert!(
            matches!(
                kind(&error),
                Error::NoDevice(_) | Error::DeviceRefused(_) | Error::Driver { .. }
            ),
            "{error:#}"
        );
    }
}
