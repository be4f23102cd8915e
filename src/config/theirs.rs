//! Tables that map the keys of other trainers' option files to paragon's. Depends on nothing. A
//! test of `import` checks that every key of paragon that they name exists.

/// Top-level keys of their files that paragon's files do not have.
pub const MARKS: [&str; 7] = [
    "datasets",
    "num_gpu",
    "use_amp",
    "network_d",
    "auto_vram_management",
    "model_type",
    "use_compile",
];

/// Their key and paragon's, for keys with the same meaning. Those of `network_g` are the settings
/// of the network.
pub const SAME: [(&str, &str); 22] = [
    ("name", "name"),
    ("scale", "scale"),
    ("manual_seed", "manual_seed"),
    ("datasets.train.lq_size", "data.lq_size"),
    (
        "datasets.train.batch_size_per_gpu",
        "data.batch_size_per_gpu",
    ),
    ("datasets.train.accum_iter", "data.accum_iter"),
    (
        "datasets.train.num_worker_per_gpu",
        "data.num_worker_per_gpu",
    ),
    ("datasets.train.use_hflip", "data.use_hflip"),
    ("datasets.train.use_rot", "data.use_rot"),
    ("path.pretrain_network_g", "path.pretrain_network_g"),
    ("path.strict_load_g", "path.strict_load_g"),
    ("train.ema_decay", "train.ema_decay"),
    ("train.ema_power", "train.ema_power"),
    ("train.grad_clip", "train.grad_clip"),
    ("train.total_iter", "train.total_iter"),
    ("train.optim_g.lr", "train.optim_g.lr"),
    ("train.optim_g.weight_decay", "train.optim_g.weight_decay"),
    ("train.optim_g.betas", "train.optim_g.betas"),
    ("train.scheduler.milestones", "train.scheduler.milestones"),
    ("train.scheduler.gamma", "train.scheduler.gamma"),
    ("logger.print_freq", "logger.print_freq"),
    ("logger.save_checkpoint_freq", "logger.save_checkpoint_freq"),
];

/// Beginnings of their keys and why they are not honoured; the first that fits counts.
pub const REASONS: [(&str, &str); 60] = [
    (
        "datasets.train.dataroot_gt",
        "training reads shards, not folders: make them with `paragon shard FOLDER --out DIR` and give --shards DIR",
    ),
    (
        "datasets.train.dataroot_lq",
        "the shards hold HR and LQ: `paragon shard FOLDER --lq LQ_FOLDER` takes pairs, without --lq it makes the LQ",
    ),
    (
        "datasets.train.name",
        "a name of the other trainer's logs; the set of shards is named by its folder",
    ),
    (
        "datasets.train.type",
        "shards hold pairs; nothing else is loaded",
    ),
    (
        "datasets.train.io_backend",
        "shards are mapped or read by calls: data.io (--io)",
    ),
    (
        "datasets.train.prefetch_mode",
        "batches are always prefetched, into a bounded ring: data.slots (--slots)",
    ),
    (
        "datasets.train.num_prefetch_queue",
        "the ring holds data.slots batches (--slots)",
    ),
    (
        "datasets.train.prefetch_factor",
        "the ring holds data.slots batches (--slots)",
    ),
    (
        "datasets.train.pin_memory",
        "the backend decides: pinned where a GPU copies from it, plain on the CPU",
    ),
    (
        "datasets.train.persistent_workers",
        "loader threads always live as long as the run",
    ),
    (
        "datasets.train.dataset_enlarge_ratio",
        "epochs have no seam here, so a small set needs no enlarging",
    ),
    (
        "datasets.train",
        "the data is decided when shards are made (`paragon shard --help`)",
    ),
    (
        "datasets.val.dataroot_gt",
        "validation takes a folder of images or a held-out set: val.dataset (--val DIR); `paragon shard --val` makes one",
    ),
    (
        "datasets.val.dataroot_lq",
        "val.dataset (--val DIR) finds the LQ beside the HR, in hr/lq and similar folders",
    ),
    (
        "datasets.val",
        "validation has one key for its data: val.dataset (--val DIR)",
    ),
    (
        "datasets",
        "there is one set to train on (data.shards) and one to validate on (val.dataset)",
    ),
    (
        "use_amp",
        "precision belongs to the device: f32 on the CPU, where bf16 products can be chosen; on CUDA activations are bf16 and sums f32 (machine.precision, --precision)",
    ),
    (
        "amp_bf16",
        "precision belongs to the device: f32 on the CPU, bf16 the default on CUDA (machine.precision, --precision)",
    ),
    ("use_channels_last", "activations are always NHWC"),
    (
        "fast_matmul",
        "there are no libraries' matrix products to tune",
    ),
    (
        "num_gpu",
        "one process trains on one device: machine.device (--device)",
    ),
    (
        "use_compile",
        "kernels are compiled and fused when the program is built",
    ),
    (
        "compile_mode",
        "kernels are compiled and fused when the program is built",
    ),
    ("deterministic", "runs always repeat to the same bits"),
    (
        "auto_vram_management",
        "memory is computed before the start: machine.vram, machine.host_memory and machine.fit bound it, `paragon plan --max` lists batches",
    ),
    (
        "network_g.use_checkpointing",
        "what is recomputed is machine.recompute (--recompute); auto takes what fits",
    ),
    (
        "network_g",
        "it belongs to a network that is not known here (`paragon networks` lists those that are)",
    ),
    (
        "model_type",
        "there is one kind of training: a network on pairs of LQ and HR",
    ),
    (
        "network_d",
        "no discriminators: training is on L1, Charbonnier, MSE, SSIM and MS-SSIM",
    ),
    ("train.optim_d", "no discriminators"),
    ("train.net_d", "no discriminators"),
    ("train.gan_opt", "no discriminators"),
    (
        "train.grad_clip_max_norm",
        "train.grad_clip (--grad-clip) holds the norm",
    ),
    (
        "train.perceptual_opt",
        "not available; training goes on with the other losses (l1, charbonnier, mse, ssim and mssim are there)",
    ),
    ("path.pretrain_network_d", "no discriminators"),
    ("path.strict_load_d", "no discriminators"),
    (
        "path.param_key",
        "`params`, `params_ema` and bare tables are told apart by themselves; the average is taken where there is one",
    ),
    (
        "path.resume_state",
        "resuming is the default: the same command goes on from the newest state in path.out (--out)",
    ),
    ("path.ignore_resume_networks", "a state is resumed whole"),
    (
        "path.experiments_root",
        "the folder of a run is path.out (--out)",
    ),
    ("path.models", "the folder of a run is path.out (--out)"),
    ("path", "the folder of a run is path.out (--out)"),
    (
        "auto_resume",
        "resuming is the default; --restart begins again",
    ),
    (
        "train.dynamic_loss_scheduling",
        "weights of losses stay as they are given in train.losses",
    ),
    (
        "train.training_automations.DynamicBatchAndPatchSizeOptimizer",
        "batch and patch stay as given; what does not fit is split before the start (machine.fit), never during it",
    ),
    (
        "train.training_automations.IntelligentEarlyStopping",
        "a run ends at train.total_iter; the best network by PSNR-Y is kept (models/best_*), and Ctrl-C saves and stops",
    ),
    (
        "train.training_automations",
        "nothing is changed while a run is under way",
    ),
    (
        "train.use_moa",
        "augmentations are flips and turns: data.use_hflip, data.use_rot",
    ),
    (
        "train.moa",
        "augmentations are flips and turns: data.use_hflip, data.use_rot",
    ),
    (
        "val.save_img",
        "a few fixed previews are kept at every validation (RUN/previews), not every image every time",
    ),
    (
        "val.metrics_enabled",
        "PSNR and SSIM, on RGB and Y, are always measured; --val none turns validation off",
    ),
    (
        "val.metrics",
        "PSNR and SSIM, on RGB and Y, are always measured, and only these",
    ),
    (
        "val.tile_size",
        "validation always runs in tiles, with the same result as in one piece",
    ),
    (
        "val.tile_overlap",
        "validation always runs in tiles, with the same result as in one piece",
    ),
    (
        "val",
        "validation has the keys val.dataset, val.val_freq and val.crop_border",
    ),
    (
        "logger.save_checkpoint_format",
        "checkpoints are always safetensors, with PyTorch's names",
    ),
    (
        "logger.use_tb_logger",
        "TensorBoard files are always written (RUN/tensorboard)",
    ),
    (
        "logger.wandb",
        "logs stay in the folder of the run: log.jsonl, TensorBoard files, `paragon report`",
    ),
    (
        "onnx",
        "nothing is exported; model.safetensors loads in PyTorch with strict=True",
    ),
    ("dist", "one process trains on one device"),
];

/// Beginnings of their keys that decide speed, memory, logs, names or what is measured, and never
/// the trained network. Every other key may decide it.
pub const NOT_THE_NETWORK: [&str; 35] = [
    "name",
    "datasets.train.name",
    "datasets.train.type",
    "datasets.train.io_backend",
    "datasets.train.prefetch_mode",
    "datasets.train.num_prefetch_queue",
    "datasets.train.prefetch_factor",
    "datasets.train.pin_memory",
    "datasets.train.persistent_workers",
    "datasets.train.num_worker_per_gpu",
    "datasets.val",
    "use_amp",
    "amp_bf16",
    "use_channels_last",
    "fast_matmul",
    "num_gpu",
    "dist",
    "use_compile",
    "compile_mode",
    "deterministic",
    "network_g.use_checkpointing",
    "path.strict_load_d",
    "path.param_key",
    "path.resume_state",
    "path.ignore_resume_networks",
    "path.experiments_root",
    "path.models",
    "path.training_states",
    "path.log",
    "path.visualization",
    "auto_resume",
    "val",
    "logger",
    "onnx",
    "queue_size",
];

/// Their keys with the values that ask for what paragon does anyway, or that have no effect in
/// either program; `*` stands for every value, and in a key for every name.
pub const WITHOUT_EFFECT: [(&str, &[&str]); 24] = [
    // activations are NHWC, kernels are compiled, there are no libraries to tune
    ("use_channels_last", &["true"]),
    ("fast_matmul", &["false"]),
    ("use_compile", &["false"]),
    ("compile_mode", &["default"]),
    ("num_gpu", &["auto", "0", "1"]),
    ("deterministic", &["*"]),
    ("auto_resume", &["true"]),
    ("auto_vram_management", &["false"]),
    // training on pairs with losses of pixels is the only kind
    ("model_type", &["SRModel"]),
    ("datasets.train.name", &["*"]),
    ("datasets.train.type", &["pairedimagedataset"]),
    ("datasets.train.persistent_workers", &["true"]),
    ("datasets.train.dataset_enlarge_ratio", &["1"]),
    ("datasets.val.name", &["*"]),
    ("datasets.val.type", &["pairedimagedataset"]),
    ("train.use_moa", &["false"]),
    ("train.losses.reduction", &["mean"]),
    ("val.save_img", &["false"]),
    ("val.tile_size", &["0"]),
    ("val.metrics_enabled", &["true"]),
    // measured on RGB and on Y
    ("val.metrics.*.test_y_channel", &["*"]),
    ("logger.save_checkpoint_format", &["safetensors"]),
    ("logger.use_tb_logger", &["true"]),
    ("onnx.enabled", &["false"]),
];

/// Keys without an effect, in their program too, while another key of the file has this value (or,
/// with `~`, is missing).
pub const DEPENDENT: [(&str, &str, &str); 9] = [
    ("val", "val.val_enabled", "false"),
    ("datasets.val", "val.val_enabled", "false"),
    ("val.tile_overlap", "val.tile_size", "0"),
    ("val.tile_overlap", "val.tile_size", "~"),
    ("compile_mode", "use_compile", "false"),
    ("compile_mode", "use_compile", "~"),
    ("amp_bf16", "use_amp", "false"),
    ("amp_bf16", "use_amp", "~"),
    ("train.moa", "train.use_moa", "false"),
];

/// Keys of their networks that must have one value, since another would be another network: the
/// network of paragon, the key, and the value.
pub const FIXED: [(&str, &str, &str); 8] = [
    ("compact", "num_in_ch", "3"),
    ("compact", "num_out_ch", "3"),
    ("span", "num_in_ch", "3"),
    ("span", "num_out_ch", "3"),
    ("span", "bias", "true"),
    ("span", "num_blocks", "6"),
    ("span", "learn_residual", "false"),
    ("span", "img_range", "255"),
];

/// Their keys that say how an LQ is made on the fly; each may end in a digit (`resize_prob2`).
pub const DEGRADATION: [&str; 35] = [
    "blur_prob",
    "second_blur_prob",
    "blur_kernel_size",
    "blur_sigma",
    "kernel_list",
    "kernel_prob",
    "kernel_range",
    "sinc_prob",
    "final_sinc_prob",
    "betag_range",
    "betap_range",
    "resize_prob",
    "resize_range",
    "resize_mode_list",
    "resize_mode_prob",
    "noise_prob",
    "noise_range",
    "gaussian_noise_prob",
    "gaussian_sigma_range",
    "poisson_scale_range",
    "gray_noise_prob",
    "jpeg_prob",
    "jpeg_range",
    "jpeg_quality",
    "thicklines_prob",
    "lq_usm",
    "lq_usm_radius_range",
    "gt_usm",
    "l1_gt_usm",
    "percep_gt_usm",
    "gan_gt_usm",
    "queue_size",
    "degradation",
    "final_kernel_range",
    "dataroot_lq_prob",
];
/// What to do about a file that degrades on the fly where only its folders are taken.
pub const AS_A_RECIPE: &str =
    "`paragon config import FILE --out OUT.yml` writes its degradation as a recipe for --degrade";

/// The defaults of the other trainer (or of PyTorch, which it uses) that differ from paragon's.
pub const THEIR_DEFAULTS: [(&str, &str); 7] = [
    ("train.warmup_iter", "0"),
    ("train.ema_decay", "0"),
    ("train.grad_clip", "0"),
    ("train.optim_g.lr", "1e-3"),
    ("train.optim_g.betas", "0.9,0.999"),
    ("train.optim_g.weight_decay", "0"),
    ("train.scheduler.type", "constant"),
];
