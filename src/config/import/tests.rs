use super::super::parse;
use super::*;

/// A file with what every one must have, and these lines.
pub(super) fn read(more: &str) -> Result<Imported> {
    import(&parse(more)?)
}

pub(super) const LEAST: &str = "num_gpu: 1\ntrain: {total_iter: 10, losses: [{type: l1loss}]}\n";

pub(super) fn value(imported: &Imported, path: &str) -> Option<Value> {
    imported
        .values
        .iter()
        .rfind(|(key, _)| KEYS[*key].path == path)
        .map(|(_, value)| value.clone())
}

pub(super) fn reason<'a>(imported: &'a Imported, path: &str) -> &'a str {
    imported
        .ignored
        .iter()
        .find(|(key, ..)| key == path)
        .map_or("", |(_, _, reason)| reason)
}

/// The leaves of a file that are on no list.
fn lost(imported: &Imported, root: &Node) -> Vec<String> {
    fn leaves(path: &str, node: &Node, out: &mut Vec<String>) {
        match &node.data {
            Data::Map(entries) if !entries.is_empty() => {
                entries.iter().for_each(|(k, n)| {
                    leaves(
                        &if path.is_empty() {
                            k.clone()
                        } else {
                            format!("{path}.{k}")
                        },
                        n,
                        out,
                    )
                });
            }
            _ => out.push(path.to_string()),
        }
    }
    let mut all = Vec::new();
    leaves("", root, &mut all);
    let named = imported
        .honoured
        .iter()
        .map(|(k, _)| k)
        .chain(imported.without_effect.iter().map(|(k, _)| k))
        .chain(imported.ignored.iter().map(|(k, ..)| k));
    let named: Vec<&String> = named.collect();
    let covers = |name: &str, leaf: &str| {
        leaf.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    all.retain(|leaf| {
        !named
            .iter()
            .any(|name| covers(name, leaf) || covers(leaf, name))
    });
    all
}

#[test]
fn the_templates_of_other_trainers_come_through() {
    // values as the templates of BasicSR and Real-ESRGAN write them
    let text = "\
name: x4plus
model_type: RealESRNetModel
scale: 4
num_gpu: auto
resize_prob: [0.2, 0.7, 0.1]
jpeg_range2: [30, 95]
gt_usm: True
queue_size: 180
datasets:
  train:
    type: RealESRGANDataset
    blur_kernel_size: 21
    final_sinc_prob: 0.8
    gt_size: !!float 2.56e2
    batch_size_per_gpu: 12.0
network_g:
  type: RRDBNet
  num_in_ch: 3
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 2e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [1e5, !!float 2.5e5], gamma: 0.5}
  total_iter: !!int 1_000_000
  warmup_iter: -1.0
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
  perceptual_opt: {type: PerceptualLoss}
val: {val_freq: !!float 5e3}
logger: {print_freq: 1e2, save_checkpoint_freq: !!float 5e3}
dist_params: {backend: nccl, port: 29500}
";
    let imported = read(text).unwrap();
    for (path, number) in [
        ("data.lq_size", 64),
        ("data.batch_size_per_gpu", 12),
        ("train.total_iter", 1_000_000),
        ("train.warmup_iter", 0),
        ("val.val_freq", 5000),
        ("logger.print_freq", 100),
        ("logger.save_checkpoint_freq", 5000),
    ] {
        assert_eq!(value(&imported, path), Some(Value::Whole(number)), "{path}");
    }
    let milestones = Value::List(vec![Value::Whole(100_000), Value::Whole(250_000)]);
    assert_eq!(
        value(&imported, "train.scheduler.milestones"),
        Some(milestones)
    );
    assert_eq!(
        value(&imported, "train.losses"),
        Some(Value::List(vec![Value::Loss(LossTerm {
            kind: LossKind::L1,
            weight: 1.0
        })]))
    );
    assert!(
        imported
            .ignored
            .iter()
            .all(|(.., reason)| reason != "unknown to this program"),
        "{:?}",
        imported.ignored
    );
    assert_eq!(lost(&imported, &parse(text).unwrap()), Vec::<String>::new());
    // what matters most comes first
    let report = imported.report("x.yml");
    let lines: Vec<&str> = report.lines().collect();
    assert!(
        lines[1].contains("degrades on the fly") && lines[1].contains("a recipe of paragon"),
        "{report}"
    );
    assert!(
        lines[2].contains("network_g.type: RRDBNet") && lines[3].contains("paragonsr2_realtime"),
        "{report}"
    );
    assert!(report.contains("not honoured: gt_usm: True"), "{report}");
    assert_eq!(report.matches("resize_prob").count(), 0);
}

#[test]
fn a_recipe_degrades_on_the_fly_or_says_that_it_does_not() {
    for (more, on) in [
        ("high_order_degradation: true\njpeg_range: [30, 95]", true),
        ("datasets: {train: {type: otf}}", true),
        ("datasets: {train: {sinc_prob2: 0.1}}", true),
        ("high_order_degradation: false\nblur_prob: 0.5", false),
        ("datasets: {train: {type: pairedimagedataset}}", false),
    ] {
        let text = format!("{LEAST}{more}\n");
        let imported = read(&text).unwrap();
        assert_eq!(
            imported.report("x").contains("degrades on the fly"),
            on,
            "{}",
            imported.report("x")
        );
        assert_eq!(
            lost(&imported, &parse(&text).unwrap()),
            Vec::<String>::new(),
            "{more}"
        );
    }
}

#[test]
fn gt_size_is_honoured_or_named() {
    for (more, lq, why) in [
        ("scale: 2\ndatasets: {train: {gt_size: 128}}", Some(64), ""),
        (
            "scale: 4.0\ndatasets: {train: {gt_size: 1.28e2, lq_size: 32}}",
            Some(32),
            "",
        ),
        (
            "scale: 4\ndatasets: {train: {lq_size: 64, gt_size: 128}}",
            Some(64),
            "lq_size is there and counts: it is 64",
        ),
        (
            "datasets: {train: {lq_size: 64, gt_size: 128}}",
            Some(64),
            "lq_size is there",
        ),
        ("datasets: {train: {gt_size: 128}}", None, "no scale"),
        (
            "scale: 2\ndatasets: {train: {gt_size: 129}}",
            Some(64),
            "no multiple of the scale",
        ),
        ("scale: 2\ndatasets.train.gt_size: 128\n", Some(64), ""),
    ] {
        let text = format!("{LEAST}{more}\n");
        let imported = read(&text).unwrap();
        assert_eq!(
            value(&imported, "data.lq_size"),
            lq.map(Value::Whole),
            "{more}"
        );
        let found = reason(&imported, "datasets.train.gt_size");
        assert!(
            found.contains(why) && found.is_empty() == why.is_empty(),
            "{more}: {found}"
        );
        assert_eq!(
            lost(&imported, &parse(&text).unwrap()),
            Vec::<String>::new(),
            "{more}"
        );
    }
    for more in [
        "gt_size: many",
        "gt_size: 12.5",
        "gt_size: [128]",
        "gt_size: {a: 1}",
        "gt_size: 1",
    ] {
        let error = read(&format!("{LEAST}scale: 2\ndatasets: {{train: {{{more}}}}}"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 4: datasets.train.gt_size") && error.contains("expected"),
            "{more}: {error}"
        );
    }
}

#[test]
fn a_network_that_is_not_known_is_not_honoured() {
    for (name, words) in [
        ("esrgan", "known are"),
        ("paragonsr2_max", "known are"),
        ("RRDBNet", "unknown network 'RRDBNet'"),
    ] {
        let imported = read(&format!(
            "{LEAST}frob: 1\nnetwork_g: {{type: {name}, num_feat: 64}}"
        ))
        .unwrap();
        assert!(
            imported
                .honoured
                .iter()
                .all(|(key, _)| key != "network_g.type")
        );
        let (key, value, reason) = &imported.ignored[0];
        assert!(
            key == "network_g.type" && value == name && reason.contains(words),
            "{reason}"
        );
        assert!(
            reason.contains("paragonsr2_realtime") && reason.contains("training is refused"),
            "{reason}"
        );
        let mut settings = Settings::default();
        imported.apply(&mut settings);
        assert!(settings.train_config(2, 128).is_err());
    }
    let imported = read(&format!("{LEAST}network_g: {{type: Nano}}")).unwrap();
    assert!(
        imported
            .honoured
            .iter()
            .any(|(key, _)| key == "network_g.type")
    );
}

#[test]
fn the_norm_of_clipping_counts_where_clipping_is_on() {
    for (more, norm, honoured) in [
        ("grad_clip: true, grad_clip_max_norm: 100", 100.0, true),
        (
            "grad_clip_max_norm: !!float 1e-1, grad_clip: yes",
            0.1,
            true,
        ),
        ("grad_clip: false, grad_clip_max_norm: 100", 0.0, false),
        ("grad_clip_max_norm: 100", 0.0, false),
        ("grad_clip: true, grad_clip_max_norm: ~", 1.0, true),
    ] {
        let imported = read(&format!(
            "num_gpu: 1\ntrain: {{{more}, total_iter: 10, losses: [{{type: l1loss}}]}}"
        ))
        .unwrap();
        assert_eq!(
            value(&imported, "train.grad_clip"),
            Some(Value::Number(norm)),
            "{more}"
        );
        let key = "train.grad_clip_max_norm";
        let is_on = |list: &[(String, String)]| list.iter().any(|(named, _)| named == key);
        assert_eq!(reason(&imported, key), "", "{more}");
        // without clipping, and without a value, the norm has no effect
        let has_effect = honoured && !more.contains('~');
        assert_eq!(is_on(&imported.without_effect), !has_effect, "{more}");
    }
}

#[test]
fn a_key_that_holds_nothing_says_nothing() {
    let keys = "warmup_iter: ~, ema_decay: ~, optim_g: {type: ~, lr: ~}, scheduler: {type: ~, eta_min: ~, milestones: ~}";
    let imported = read(&format!(
        "num_gpu: 1\nscale: ~\nnetwork_g: {{type: ~}}\nval: {{val_freq: ~, val_enabled: ~, metrics: {{p: {{crop_border: ~}}}}}}\n\
             train: {{{keys}, total_iter: 10, losses: [{{type: l1loss, loss_weight: ~}}]}}"
    ));
    let imported = imported.unwrap();
    assert!(
        imported
            .values
            .iter()
            .all(|(_, value)| *value != Value::Null)
    );
    assert!(
        imported
            .assumed
            .contains(&("train.warmup_iter", "0".to_string())),
        "{:?}",
        imported.assumed
    );
    let mut settings = Settings::default();
    imported.apply(&mut settings);
    settings.train_config(2, 128).unwrap().check().unwrap();
}

#[test]
fn the_tables_name_keys_that_there_are() {
    for (_, ours) in SAME {
        assert!(index(ours).is_some(), "{ours}");
    }
    for (ours, default) in THEIR_DEFAULTS {
        assert!(
            KEYS[index(ours).unwrap()].kind.read(default).is_ok(),
            "{ours}: {default}"
        );
    }
}

#[test]
fn the_report_is_bounded() {
    let long = "y".repeat(500_000);
    let many: String = (0..2000)
        .map(|i| format!("unknown{i}: \"a\\nb\"\n"))
        .collect();
    let list = "x, ".repeat(2000);
    let report = read(&format!(
        "{LEAST}big: {long}\nlist: [{list}]\nnetwork_g: {{type: {long}}}\n{many}"
    ))
    .unwrap()
    .report("x.yml");
    assert!(
        report.len() < 200_000 && report.contains("and 1003 more values"),
        "{}",
        report.len()
    );
    assert!(report.lines().all(|line| line.len() < 1000) && report.contains("(500000 characters)"));
}

/// The keys of the list of ignored values.
pub(super) fn ignored(imported: &Imported) -> Vec<&str> {
    let mut keys: Vec<&str> = imported
        .ignored
        .iter()
        .map(|(key, ..)| key.as_str())
        .collect();
    keys.sort_unstable();
    keys
}

/// An option file as traiNNer-redux publishes them for its networks.
fn published(network: &str, val_enabled: bool) -> String {
    format!(
        "\
scale: 4
use_amp: true
amp_bf16: false
use_channels_last: true
fast_matmul: false
use_compile: false
compile_mode: default
num_gpu: auto
datasets:
  train: {{name: T, type: pairedimagedataset, dataroot_gt: [a, b], dataroot_lq: [c], lq_size: 64, use_hflip: true, batch_size_per_gpu: 16, accum_iter: 1}}
  val: {{name: V, type: PairedImageDataset, dataroot_gt: [a], dataroot_lq: [b]}}
network_g: {network}
path: {{param_key_g: ~, strict_load_g: true, resume_state: ~}}
train:
  ema_decay: 0.999
  grad_clip: false
  grad_clip_max_norm: 100
  optim_g: {{type: AdamW, lr: !!float 5e-4, weight_decay: 0, betas: [0.9, 0.99]}}
  scheduler: {{type: MultiStepLR, milestones: [200000, 400000], gamma: 0.5}}
  total_iter: 1000000
  warmup_iter: -1
  losses: [{{type: charbonnierloss, loss_weight: 1.0}}]
val:
  val_enabled: {val_enabled}
  val_freq: 1000
  save_img: true
  tile_size: 0
  tile_overlap: 8
  metrics_enabled: true
  metrics:
    psnr: {{type: calculate_psnr, crop_border: 4, test_y_channel: false}}
    ssim: {{type: calculate_ssim, crop_border: 4, test_y_channel: true}}
logger: {{print_freq: 100, save_checkpoint_freq: 1000, save_checkpoint_format: safetensors, use_tb_logger: true}}
"
    )
}

#[test]
fn only_what_differs_here_is_listed() {
    let always = [
        "amp_bf16",
        "datasets.train.dataroot_gt",
        "datasets.train.dataroot_lq",
    ];
    let validating = ["datasets.val.dataroot_gt", "datasets.val.dataroot_lq"];
    for network in ["{type: compact}", "{type: span, norm: false}"] {
        let text = published(network, false);
        let imported = read(&text).unwrap();
        assert_eq!(ignored(&imported), [&always[..], &["use_amp"]].concat());
        let counts = imported.report("x.yml");
        let counts = counts.lines().next().unwrap();
        assert!(
            counts.contains("without effect here, 2 not honoured"),
            "{counts}"
        );
        assert_eq!(
            lost(&imported, &parse(&text).unwrap()),
            Vec::<String>::new()
        );
        let with = read(&published(network, true)).unwrap();
        let expected = [&always[..], &validating, &["use_amp", "val.save_img"]].concat();
        assert_eq!(ignored(&with), expected);
    }
    for (more, listed) in [
        (
            "use_compile: true\ncompile_mode: max-autotune",
            &["compile_mode", "use_compile"][..],
        ),
        ("compile_mode: max-autotune", &[]),
        ("use_channels_last: false", &["use_channels_last"]),
        (
            "datasets: {train: {type: singleimagedataset}}",
            &["datasets.train.type"],
        ),
        ("use_amp: no\namp_bf16: true", &["use_amp"]),
        (
            "val: {tile_size: 192, tile_overlap: 8}",
            &["val.tile_overlap", "val.tile_size"],
        ),
        (
            "val: {tile_overlap: 8, metrics_enabled: false}",
            &["val.metrics_enabled"],
        ),
        (
            "logger: {save_checkpoint_format: pth, wandb: {project: ~}}",
            &["logger.save_checkpoint_format"],
        ),
        ("frobnicate: ~\nunknown: 0", &["unknown"]),
    ] {
        let imported = read(&format!("{LEAST}{more}\n")).unwrap();
        assert_eq!(ignored(&imported), listed, "{more}");
    }
    let many = read(&format!("{}\n", LEAST.replace("num_gpu: 1", "num_gpu: 4"))).unwrap();
    assert_eq!(ignored(&many), ["num_gpu"]);
}
