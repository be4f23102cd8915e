//! ONNX files of every network, run by the library's interpreter, against the library's own result:
//! odd sizes, batches, sizes that are no multiple of a window, the same file at several sizes, every
//! precision.

use paragon::export::onnx::{check, least_psnr, onnx_bytes, operators_in, own_result, run_file};
use paragon::model::{Network, SettingKind, known_networks};
use paragon::plan::Precision;
use paragon::support::rng::Rng;

/// Every network at a scale, of sizes that are quick to compute.
fn networks(scale: usize) -> Vec<Network> {
    let mut all = Vec::new();
    for known in known_networks() {
        let Ok(mut net) = Network::new(known.name, scale) else {
            continue;
        };
        for spec in known.settings {
            if let SettingKind::Whole { range, .. } = spec.kind {
                let small = if spec.name.contains("feat") { 20 } else { 4 };
                net.set(spec.name, small.clamp(range.0, range.1)).unwrap();
            }
            if spec.name == "layer_scale" || spec.name == "detail_gain" {
                let deep = known.settings.iter().any(|spec| spec.name == "window_size");
                net.set(spec.name, if deep { 0.1 } else { 0.5 }).unwrap();
            }
        }
        all.push(net);
    }
    assert!(all.len() >= if scale == 1 { 2 } else { 6 });
    all
}

/// Start values with every derived parameter, as a file holds them.
fn parameters(net: &Network) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let start = net.params().start_values(11);
    paragon::model::write_model(&path, net, &start, None).unwrap();
    let read = paragon::model::read_model(&path, &paragon::model::ModelHints::default());
    read.unwrap().1
}

fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(&[seed]);
    (0..count).map(|_| rng.range(0.0, 1.0) as f32).collect()
}

/// Largest difference, relative to the largest magnitude.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    let pairs = a.iter().zip(b);
    pairs.fold(0.0f32, |m, (a, b)| {
        let d = (a - b).abs();
        if d <= m { m } else { d }
    }) / most
}

/// Whether a network is too large for more than the smallest images in a dev build.
fn is_deep(net: &Network) -> bool {
    net.params().len() > 500_000 && net.tiling().wraps
}

#[test]
fn f32_files_give_the_own_result_at_any_size() {
    for scale in [2, 4] {
        for net in networks(scale) {
            let values = parameters(&net);
            let bytes = onnx_bytes(&net, &values, Precision::F32, &[]).unwrap();
            // smaller than a window, odd, several windows, a batch, whole windows
            let all = [[2, 3, 7, 9], [1, 3, 1, 2], [1, 3, 13, 6], [1, 3, 8, 8]];
            let sizes = if is_deep(&net) && scale > 2 { 1 } else { 4 };
            for &dims in &all[..sizes] {
                let input = noise(dims.iter().product(), 3);
                let (sides, found) = run_file(&bytes, dims, &input).unwrap();
                assert_eq!(sides, [dims[0], 3, dims[2] * scale, dims[3] * scale]);
                let expected = own_result(&net, &values, dims, &input).unwrap();
                let error = difference(&found, &expected);
                assert!(error < 1e-5, "{} x{scale} {dims:?}: {error:e}", net.arch);
            }
        }
    }
}

/// PSNR in dB where 1 is the largest value.
fn psnr(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    -10.0 * (squares.sum::<f64>() / a.len() as f64).log10()
}

#[test]
fn halves_are_close_to_the_own_result() {
    for net in networks(2) {
        let values = parameters(&net);
        let dims = [1, 3, 7, 9];
        let input = noise(dims.iter().product(), 4);
        let expected = own_result(&net, &values, dims, &input).unwrap();
        for precision in [Precision::Fp16, Precision::Bf16] {
            let bytes = onnx_bytes(&net, &values, precision, &[]).unwrap();
            let (_, found) = run_file(&bytes, dims, &input).unwrap();
            let psnr = psnr(&found, &expected);
            println!("{} {precision}: {psnr:.1} dB", net.arch);
            // that the values were rounded, and how much of it is left in the image
            let bounds = least_psnr(precision)..110.0;
            assert!(bounds.contains(&psnr), "{} {precision}: {psnr}", net.arch);
        }
    }
}

#[test]
fn every_scale_and_precision_passes_the_check() {
    for scale in [1, 3, 8] {
        for net in networks(scale) {
            if is_deep(&net) {
                continue;
            }
            let values = parameters(&net);
            for precision in [Precision::F32, Precision::Fp16, Precision::Bf16] {
                let bytes = onnx_bytes(&net, &values, precision, &[]).unwrap();
                let checked = check(&bytes, &net, &values, precision)
                    .unwrap_or_else(|e| panic!("{} x{scale} {precision}: {e:#}", net.arch));
                assert!(checked.psnr >= least_psnr(precision));
            }
        }
    }
}

#[test]
fn other_weights_fail_the_check() {
    let net = Network::new("compact", 2).unwrap();
    let values = parameters(&net);
    let bytes = onnx_bytes(&net, &values, Precision::F32, &[]).unwrap();
    let mut others = values.clone();
    *others.last_mut().unwrap() += 0.01; // a bias of the last convolution
    let error = check(&bytes, &net, &others, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("80 dB"), "{error}");
}

#[test]
fn values_beyond_half_precision_fail_the_check() {
    let net = Network::new("compact", 2).unwrap();
    let mut values = parameters(&net);
    values[0] = 1e5;
    let bytes = onnx_bytes(&net, &values, Precision::Fp16, &[]).unwrap();
    let error = check(&bytes, &net, &values, Precision::Fp16).unwrap_err();
    assert!(error.to_string().contains("--precision f32"), "{error}");
}

/// The list of docs/export.md.
#[test]
fn the_documented_operators_are_those_that_are_used() {
    let text = include_str!("../../docs/export.md");
    let mut used = std::collections::BTreeSet::new();
    for net in networks(2) {
        for precision in [Precision::F32, Precision::Fp16] {
            let bytes = onnx_bytes(&net, &parameters(&net), precision, &[]).unwrap();
            used.extend(operators_in(&bytes).unwrap());
        }
    }
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed = rows.filter_map(|row| row.split('`').next());
    let listed: std::collections::BTreeSet<String> = listed
        .filter(|name| name.starts_with(char::is_uppercase))
        .map(String::from)
        .collect();
    assert!(used.is_subset(&listed), "{:?}", used.difference(&listed));
}

/// Files, inputs and results for scripts/check_onnx.py, which compares them with ONNX Runtime. Only
/// with PARAGON_ONNX_CASES, the folder to write to.
#[test]
fn cases_for_onnx_runtime() {
    let Some(folder) = std::env::var_os("PARAGON_ONNX_CASES").map(std::path::PathBuf::from) else {
        return;
    };
    std::fs::create_dir_all(&folder).unwrap();
    let bytes_of =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let mut cases = Vec::new();
    for scale in [1, 2, 4] {
        for known in known_networks() {
            let Ok(mut net) = Network::new(known.name, scale) else {
                continue;
            };
            for (setting, value) in [("layer_scale", 0.1), ("detail_gain", 0.3)] {
                let _ = net.set(setting, value); // networks of other authors have none
            }
            let values = parameters(&net);
            let stem = format!("{}_x{scale}", net.arch);
            let mut sizes = Vec::new();
            for (i, dims) in [[1, 3, 9, 7], [2, 3, 33, 21], [1, 3, 16, 32]]
                .into_iter()
                .enumerate()
            {
                let input = noise(dims.iter().product(), 5);
                let output = own_result(&net, &values, dims, &input).unwrap();
                let names = ["input", "output"].map(|part| format!("{stem}.{i}.{part}.f32"));
                for (name, values) in names.iter().zip([&input, &output]) {
                    std::fs::write(folder.join(name), bytes_of(values)).unwrap();
                }
                sizes.push(serde_json::json!({
                    "shape": dims, "input": names[0], "output": names[1],
                }));
            }
            for precision in [Precision::F32, Precision::Fp16, Precision::Bf16] {
                let file = format!("{stem}_{precision}.onnx");
                let bytes = onnx_bytes(&net, &values, precision, &[]).unwrap();
                std::fs::write(folder.join(&file), bytes).unwrap();
                cases.push(serde_json::json!({
                    "file": file, "precision": precision, "scale": scale, "sizes": sizes,
                }));
            }
        }
    }
    let text = serde_json::to_string(&cases).unwrap();
    std::fs::write(folder.join("cases.json"), text).unwrap();
}
