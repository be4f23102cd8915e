//! The golden trajectories on the CUDA backend: the limits are those of the CPU in f32, and 2e-2
//! for the loss in bf16. With PARAGON_TEST_GPU set, a card runs all iterations; otherwise the
//! stand-in driver runs some of them on fibers, since that is slow.
#![cfg(unix)]

use crate::common::process::in_own_process;
use crate::{common, kernels_common};

use common::place::reference;
use common::trajectory::Trajectory;
use kernels_common::driver;
use paragon::backend::Backend;
use paragon::backend::cuda::{CudaBackend, CudaSizing, Depthwise, Device};
use paragon::model::training_plan;
use paragon::plan::Precision;
use std::ffi::CString;

/// Loads the stand-in driver under libcuda's name before anything looks for the real one.
fn load_driver() -> bool {
    let Some(folder) = driver() else { return false };
    let path = CString::new(folder.join("libcuda.so").to_str().unwrap()).unwrap();
    // SAFETY: this library is part of the tests; its initialisers only fill a table.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!handle.is_null());
    true
}

#[test]
fn trajectories_match_the_golden_files_on_the_device() {
    // The stand-in stays loaded under libcuda's name, which other tests would find.
    if !in_own_process(concat!(
        module_path!(),
        "::trajectories_match_the_golden_files_on_the_device"
    )) {
        return;
    }
    let card = std::env::var_os("PARAGON_TEST_GPU").is_some();
    if !(card || load_driver()) {
        return;
    }
    let device = Device::open(0).unwrap();
    // The kernels of Nano depend on the card: the stand-in is a consumer card and, for these, not.
    let other = (!card).then(|| {
        // SAFETY: the process has no other thread that reads the environment meanwhile
        unsafe { std::env::set_var("FAKE_CUDA_CAPABILITY", "90") };
        Device::open(0).unwrap()
    });
    let units = [&device]
        .into_iter()
        .chain(&other)
        .map(|d| d.choices().depthwise);
    assert!(card || units.eq([Depthwise::Plain, Depthwise::Tensor]));
    // File, precision, and the largest number of iterations (fibers are slow).
    let runs = [
        ("train_realtime_x2_first2", Precision::F32, 2),
        ("train_realtime_x2_first2", Precision::Bf16, 2),
        ("train_realtime_x2_accum_first1", Precision::F32, 1),
        ("train_realtime_x2_mssim_first1", Precision::F32, 1),
        ("train_realtime_x2", Precision::F32, 20),
        ("train_realtime_x2", Precision::Bf16, 10),
        ("train_realtime_x2_accum", Precision::F32, 5),
        ("train_realtime_x2_mssim", Precision::F32, 2),
        ("train_compact_x2", Precision::F32, 3),
        ("train_compact_x2", Precision::Bf16, 2),
        ("train_span_x2", Precision::F32, 2),
        ("train_span_x2", Precision::Bf16, 1),
        ("train_stream_x2", Precision::F32, 2),
        ("train_stream_x2", Precision::Bf16, 1),
        ("train_photo_x2", Precision::F32, 1),
        ("train_photo_x2", Precision::Bf16, 1),
        ("train_pro_x2", Precision::F32, 1),
        ("train_pro_x2", Precision::Bf16, 1),
    ];
    for (name, precision, most) in runs {
        let most = if card { u64::MAX } else { most };
        let Some(path) = reference(
            "golden trajectories on the device",
            &format!("golden/{name}.safetensors"),
        ) else {
            continue;
        };
        let golden = Trajectory::read(&path);
        let plan = training_plan(&golden.net, &golden.spec(), &CudaSizing { precision }).unwrap();
        // of Nano's two trajectories in bf16 the short one
        let elsewhere = name.ends_with("realtime_x2_first2") && precision == Precision::Bf16;
        for device in [Some(&device), other.as_ref().filter(|_| elsewhere)]
            .into_iter()
            .flatten()
        {
            let mut backend = CudaBackend::new(device, plan.clone()).unwrap();
            assert_eq!(backend.allocated(), backend.plan().arena_bytes);
            let (ports, steps) = (backend.plan().ports, golden.steps());
            let worst = golden.run(&mut backend, most);
            println!(
                "{name}, {precision}, sm_{}, {} iterations: loss {:.1e}, gradient norm {:.1e}",
                device.capability,
                steps.min(most),
                worst[0],
                worst[1]
            );
            let limit = match precision {
                Precision::F32 => [2e-6, 2e-5],
                _ => [2e-2, 0.2],
            };
            assert!(
                worst[0] < limit[0] && worst[1] < limit[1] && worst[2] < 1e-12,
                "{name} in {precision}: {worst:?}"
            );
            if precision == Precision::F32 && steps <= most && golden.has_end() {
                let error = golden.final_error(&mut backend, "param_final.", ports.parameters);
                assert!(
                    error < 1e-4,
                    "{name}: a final parameter differs by {error:e}"
                );
            }
        }
    }
}
