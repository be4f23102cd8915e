//! What every network of the table must do, whatever its layers: the same bits for any number of
//! threads, in slices and in tiles; gradients that add up over micro-batches; files that are read
//! back without being told what they are. A new row is tested here without a change.

use paragon::backend::cpu::{CpuBackend, CpuOptions};
use paragon::backend::{Backend, BatchView, Scalars, read_floats, write_floats};
use paragon::inference::upscale::{Upscale, Upscaler};
use paragon::model::{
    InFile, Init, ModelHints, Network, Recompute, SettingKind, StepSpec, known_networks,
    read_model, training_plan, write_model,
};
use paragon::plan::{LossKind, Precision};
use paragon::support::rng::Rng;

/// Every network at a scale that it can have, with sizes that are quick to compute and that fill no
/// whole group of channels.
fn networks(wanted_scale: usize) -> Vec<Network> {
    let mut all = Vec::new();
    for known in known_networks() {
        let scale = known.scales.iter().copied().find(|&s| s >= wanted_scale);
        let mut net = Network::new(known.name, scale.unwrap()).unwrap();
        for spec in known.settings {
            if let SettingKind::Whole { range, .. } = spec.kind {
                let small = if spec.name.contains("feat") { 20 } else { 2 };
                net.set(spec.name, small.clamp(range.0, range.1)).unwrap();
            }
            if spec.name == "layer_scale" || spec.name == "detail_gain" {
                // a network of many blocks would grow until its functions are constant
                let deep = known.settings.iter().any(|spec| spec.name == "window_size");
                net.set(spec.name, if deep { 0.1 } else { 0.5 }).unwrap();
            }
        }
        all.push(net);
    }
    assert!(all.len() >= 4);
    all
}

/// Start values, made large enough that every layer changes the result.
fn parameters(net: &Network) -> Vec<f32> {
    net.params().start_values(11)
}

struct Images {
    lq: Vec<u8>,
    hr: Vec<u8>,
    augment: Vec<u8>,
}

impl Images {
    fn new(net: &Network, count: usize, side: usize, seed: u64) -> Images {
        let mut rng = Rng::new(&[seed]);
        let mut bytes = |n: usize| (0..n).map(|_| rng.range(0.0, 255.0) as u8).collect();
        let lq = count * side * side * 3;
        Images {
            lq: bytes(lq),
            hr: bytes(lq * net.scale * net.scale),
            augment: (0..count as u8).map(|i| i % 8).collect(),
        }
    }

    fn part(&self, range: std::ops::Range<usize>, of: usize) -> BatchView<'_> {
        let cut = |all: &'_ [u8]| (all.len() / of * range.start)..(all.len() / of * range.end);
        BatchView {
            lq: &self.lq[cut(&self.lq)],
            hr: &self.hr[cut(&self.hr)],
            augment: &self.augment[range.clone()],
        }
    }
}

fn scalars(micro_batches: usize, accumulate: bool) -> Scalars {
    Scalars {
        lr: 1e-3,
        step: 1,
        clip: f64::INFINITY,
        ema_decay: 0.9,
        micro_scale: 1.0 / micro_batches as f32,
        loss_scale: 1.0,
        accumulate,
    }
}

/// Gradients, and parameters after an update, of one iteration in equal micro-batches.
fn iteration(
    net: &Network,
    images: &Images,
    (count, side, parts): (usize, usize, usize),
    recompute: Recompute,
    threads: usize,
) -> (Vec<f32>, Vec<f32>) {
    let each = count / parts;
    let spec = StepSpec {
        recompute,
        ..StepSpec::new(
            each,
            (side, side),
            vec![(LossKind::L1, 1.0), (LossKind::Ssim, 0.1)],
        )
    };
    let options = CpuOptions::new(threads);
    let plan = training_plan(net, &spec, &options).unwrap();
    let ports = plan.ports;
    let mut backend = CpuBackend::new(plan, options).unwrap();
    assert_eq!(backend.allocated(), backend.plan().arena_bytes);
    let (table, start) = (net.params(), parameters(net));
    write_floats(&mut backend, ports.parameters.unwrap(), &start).unwrap();
    write_floats(&mut backend, ports.ema.unwrap(), &start).unwrap();
    for part in 0..parts {
        let view = images.part(part * each..(part + 1) * each, count);
        backend.stage(view).unwrap();
        backend.micro_step(&scalars(parts, part > 0)).unwrap();
    }
    let mut gradients = vec![0.0; table.trainable()];
    read_floats(&mut backend, ports.gradients.unwrap(), &mut gradients).unwrap();
    backend.update(&scalars(parts, false)).unwrap();
    let mut after = vec![0.0; table.len()];
    read_floats(&mut backend, ports.parameters.unwrap(), &mut after).unwrap();
    assert!(backend.metrics().unwrap().loss.is_finite());
    (gradients, after)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn threads_and_slices_change_no_bit() {
    for net in networks(8) {
        // at scale 8 an image of this size is a slice of its own
        let (count, side) = (3, 46);
        let images = Images::new(&net, count, side, 5);
        let run =
            |recompute, threads| iteration(&net, &images, (count, side, 1), recompute, threads);
        let expected = run(Recompute::Block, 2);
        let table = net.params();
        for p in table.params.iter().filter(|p| p.trainable) {
            let gradient = &expected.0[p.range.offset..][..p.range.len];
            let moved = gradient.iter().any(|g| *g != 0.0);
            assert!(moved, "{}: {} has no gradient", net.arch, p.name);
        }
        for (recompute, threads) in [
            (Recompute::Block, 1),
            (Recompute::Block, 5),
            (Recompute::Full, 2),
            (Recompute::None, 3),
        ] {
            let (gradients, after) = run(recompute, threads);
            let same = same_bits(&gradients, &expected.0) && same_bits(&after, &expected.1);
            assert!(same, "{} {recompute} with {threads} threads", net.arch);
        }
    }
}

#[test]
fn slices_take_less_memory() {
    for net in networks(8) {
        let arena = |recompute| {
            let spec = StepSpec {
                recompute,
                ..StepSpec::new(8, (64, 64), vec![(LossKind::L1, 1.0)])
            };
            let plan = training_plan(&net, &spec, &CpuOptions::new(2)).unwrap();
            assert_eq!(plan.precision, Precision::F32);
            plan.arena_bytes
        };
        assert!(
            arena(Recompute::Full) < arena(Recompute::Block),
            "{}",
            net.arch
        );
    }
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    for net in networks(2) {
        let (count, side) = (4, 17);
        let images = Images::new(&net, count, side, 6);
        let run = |parts| iteration(&net, &images, (count, side, parts), Recompute::Block, 2).0;
        let (whole, split) = (run(1), run(2));
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let difference = norm(&mut whole.iter().zip(&split).map(|(a, b)| f64::from(a - b)));
        let size = norm(&mut whole.iter().map(|a| f64::from(*a)));
        assert!(
            difference < 1e-5 * size,
            "{}: {difference} of {size}",
            net.arch
        );
    }
}

#[test]
fn files_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    for net in networks(2) {
        let values = parameters(&net);
        write_model(&path, &net, &values, Some(3)).unwrap();
        let (read, stored, meta) = read_model(&path, &ModelHints::default()).unwrap();
        // start values are not part of a file
        assert_eq!((&read.arch, read.scale), (&net.arch, net.scale));
        for (spec, value) in net.settings() {
            let (_, found) = read.settings().find(|(s, _)| s.name == spec.name).unwrap();
            assert!(
                spec.in_file == InFile::StartValue || found == value,
                "{}",
                spec.name
            );
        }
        assert_eq!(meta.unwrap().iteration, Some(3));
        for p in net
            .params()
            .params
            .iter()
            .filter(|p| p.init != Init::Derived)
        {
            let range = p.range.offset..p.range.offset + p.range.len;
            assert!(
                same_bits(&stored[range.clone()], &values[range]),
                "{}",
                p.name
            );
        }

        // the same tensors from another program: no metadata, but the settings that shapes show
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let plain = safetensors::serialize(file.tensors(), None).unwrap();
        std::fs::write(&path, plain).unwrap();
        let settings = net.settings();
        let hidden = settings.filter(|(spec, _)| spec.in_file == InFile::Metadata);
        let hints = ModelHints {
            settings: hidden
                .map(|(spec, value)| (spec.name.to_string(), value.clone()))
                .collect(),
            ..ModelHints::default()
        };
        let (read, again, _) = read_model(&path, &hints).unwrap();
        assert_eq!((&read.arch, read.scale), (&net.arch, net.scale));
        assert!(same_bits(&again, &stored), "{}", net.arch);
    }
}

/// (width, height) of an image, and pairs of a tile's side and a number of threads: first a tile that
/// holds the image, then smaller ones. Networks with windows see far and take long, so they get
/// three tiles along a side, the first and the last of which are made of two pieces.
fn tiles_of(net: &Network) -> ((u32, u32), [(usize, usize); 3]) {
    let tiling = net.tiling();
    let least = 2 * tiling.halo + 2 * tiling.align;
    if tiling.wraps {
        let tile = 3 * tiling.halo + 2 * tiling.align;
        let side = 3 * (tile - 2 * tiling.halo);
        let sides = (side as u32 - 6, side as u32 - 5);
        return (sides, [(side, 2), (tile, 3), (side, 1)]);
    }
    let sides = (least as u32 + 71, least as u32 + 34);
    (sides, [(least + 71, 2), (least + 9, 1), (least + 30, 3)])
}

#[test]
fn results_do_not_depend_on_tiles_or_threads() {
    for net in networks(1) {
        let mut rng = Rng::new(&[9]);
        let (sides, runs) = tiles_of(&net);
        let (w, h) = sides;
        let image = image::RgbImage::from_fn(w, h, |_, _| {
            image::Rgb(std::array::from_fn(|_| rng.range(0.0, 255.0) as u8))
        });
        let mut results = runs.map(|(tile, threads)| {
            let options = CpuOptions::new(threads);
            let mut upscaler = Upscaler::new(net.clone(), parameters(&net), options, tile).unwrap();
            upscaler.upscale(&image).unwrap()
        });
        let scale = net.scale as u32;
        assert_eq!(results[0].dimensions(), (w * scale, h * scale));
        let [whole, tiles, others] = &mut results;
        assert!(whole == tiles && whole == others, "{}", net.arch);
    }
}

#[test]
fn unknown_settings_and_values_are_errors() {
    for mut net in networks(2) {
        let error = net.set("no_such_setting", 1.0).unwrap_err().to_string();
        assert!(error.contains(&net.arch), "{error}");
        let known: Vec<_> = net.settings().map(|(spec, _)| *spec).collect();
        for spec in known {
            let wrong = match spec.kind {
                SettingKind::Number(_) => net.set(spec.name, f32::NAN),
                SettingKind::Whole { range, .. } => net.set(spec.name, range.1 + 1),
                SettingKind::Flag(_) => net.set(spec.name, 3),
                SettingKind::Choice(_) => net.set(spec.name, "no such choice"),
            };
            let error = wrong.unwrap_err().to_string();
            assert!(error.contains(spec.name), "{error}");
        }
    }
}
