//! The table of keys: path, type, default, meaning and flag of everything a training can be told.
//! Parsing, flags, `config explain`, the reference page, the JSON schema and the starter file are
//! made of it, so they cannot disagree. Depends on the kinds of values.

use super::value::{Kind, Names};

/// Beyond these a slip of the finger is likelier.
const MAX_SIDE: u64 = 16_384;
const MAX_BATCH: u64 = 65_536;
const MAX_THREADS: u64 = 1024;
const MAX_LOADERS: u64 = crate::loader::MAX_THREADS as u64;
const MAX_SLOTS: u64 = crate::loader::MAX_SLOTS as u64;

const SCALES: Names = &[("2", &[]), ("3", &[]), ("4", &[]), ("8", &[])];
const IO: Names = &[("auto", &[]), ("mmap", &[]), ("pread", &[])];
const ON_CORRUPT: Names = &[("stop", &[]), ("substitute", &[])];
const OPTIMIZERS: Names = &[("AdamW", &[]), ("Adam", &[])];
const SCHEDULES: Names = &[
    ("MultiStepLR", &["multistep"]),
    ("CosineAnnealingLR", &["cosine"]),
    ("constant", &[]),
];
const DEVICES: Names = &[
    ("auto", &[]),
    ("cpu", &[]),
    ("cuda", &["cuda:0"]),
    ("cuda:1", &[]),
    ("cuda:2", &[]),
    ("cuda:3", &[]),
    ("cuda:4", &[]),
    ("cuda:5", &[]),
    ("cuda:6", &[]),
    ("cuda:7", &[]),
];
const PRECISIONS: Names = &[
    ("auto", &[]),
    ("f32", &["fp32"]),
    ("bf16", &[]),
    ("fp16", &[]),
];
const LEVELS: Names = &[("auto", &[]), ("none", &[]), ("block", &[]), ("full", &[])];

/// One thing a training can be told.
#[derive(Debug)]
pub struct Key {
    /// Where it stands in a file: `train.optim_g.lr`.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it holds where nobody says otherwise, as YAML.
    pub default: &'static str,
    /// What it means where it holds nothing; keys without this must hold something.
    pub unset: Option<&'static str>,
    /// How the command line says it.
    pub flag: Flag,
    /// The part of the help it stands in.
    pub heading: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// How the command line says a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flag {
    /// Not at all, except through `--set`.
    None,
    /// `--NAME VALUE`
    Takes(&'static str, &'static str),
    /// `--NAME` turns it off.
    Off(&'static str),
}

impl Key {
    /// Whether it decides memory or what is learnt, so that `plan` takes it too.
    pub fn is_for_plan(&self) -> bool {
        matches!(self.heading, "Network" | "Recipe" | "Machine") && !self.path.starts_with("path.")
    }

    /// What `config explain` says of the value nobody gave.
    pub fn default_text(&self) -> String {
        match self.unset {
            Some(meaning) if self.default == "~" => meaning.to_string(),
            _ => self.default.to_string(),
        }
    }
}

/// Sections of a file, in their order, and what they are for.
pub const SECTIONS: [(&str, &str); 10] = [
    ("network_g", "The network and its start values."),
    ("path", "Where things are and go."),
    ("data", "The shards, and what a batch is."),
    ("train", "What is learnt, and how fast."),
    ("train.optim_g", "The optimizer."),
    ("train.scheduler", "The learning rate over the iterations."),
    ("val", "Measuring on held-out images."),
    ("logger", "What is written, and what is kept."),
    (
        "machine",
        "Threads and memory: none of it changes what is learnt.",
    ),
    ("", "The run."),
];

/// All keys; those of a section stand together.
#[rustfmt::skip] // a table reads by its columns
pub const KEYS: &[Key] = &[
    Key { path: "name", kind: Kind::Text, default: "~", unset: Some("network and scale, as in paragonsr2_realtime_x2"), flag: Flag::None, heading: "Network", doc: "Name of the run: its folder below `runs`, where `path.out` names none" },
    Key { path: "scale", kind: Kind::Choice(SCALES), default: "~", unset: Some("the shards', and 2 for `plan`"), flag: Flag::Takes("scale", "N"), heading: "Network", doc: "HR pixels per LQ pixel along one side; training takes it from its shards and refuses another" },
    Key { path: "manual_seed", kind: Kind::Whole(0, u64::MAX), default: "1024", unset: None, flag: Flag::Takes("seed", "SEED"), heading: "Recipe", doc: "Seed of start values, order, crops and flips" },
    Key { path: "network_g.type", kind: Kind::Text, default: "paragonsr2_realtime", unset: None, flag: Flag::Takes("network", "NAME"), heading: "Network", doc: "Network: paragonsr2_realtime (nano)" },
    Key { path: "network_g.upsampler_alpha", kind: Kind::Single, default: "~", unset: Some("the network's, 0.3 for Nano"), flag: Flag::Takes("alpha", "ALPHA"), heading: "Network", doc: "Strength of the base upsampler's sharpening" },
    Key { path: "network_g.detail_gain", kind: Kind::Single, default: "~", unset: Some("the network's, 0.05 for Nano"), flag: Flag::Takes("detail-gain", "GAIN"), heading: "Network", doc: "Start value of the gain on the learned detail" },
    Key { path: "network_g.layer_scale", kind: Kind::Single, default: "1e-5", unset: None, flag: Flag::Takes("layer-scale", "VALUE"), heading: "Network", doc: "Start value of LayerScale; larger ones (0.1) let the blocks contribute sooner" },
    Key { path: "path.pretrain_network_g", kind: Kind::Path, default: "~", unset: Some("the network's start values"), flag: Flag::Takes("pretrain", "FILE"), heading: "Network", doc: "Start from the parameters of a safetensors file of ours or of PyTorch's" },
    Key { path: "path.strict_load_g", kind: Kind::Bool, default: "true", unset: None, flag: Flag::Off("lenient"), heading: "Network", doc: "Everything of `path.pretrain_network_g` must fit; otherwise what fits is taken and the rest listed" },
    Key { path: "path.out", kind: Kind::Path, default: "~", unset: Some("runs/NAME"), flag: Flag::Takes("out", "DIR"), heading: "Output", doc: "Folder of the run: checkpoints, log, curves" },
    Key { path: "data.shards", kind: Kind::Paths, default: "[shards]", unset: None, flag: Flag::Takes("shards", "DIR"), heading: "Data", doc: "Folder of the shards made by `paragon shard`; several are mixed" },
    Key { path: "data.weights", kind: Kind::Weights, default: "[]", unset: None, flag: Flag::Takes("weights", "W,W"), heading: "Data", doc: "Shares of the sets in an epoch, one number each; without, every record comes once" },
    Key { path: "data.lq_size", kind: Kind::Whole(1, MAX_SIDE), default: "~", unset: Some("128, or the stored size where that is smaller"), flag: Flag::Takes("lq-size", "PIXELS"), heading: "Recipe", doc: "Side of the LQ patch in pixels" },
    Key { path: "data.batch_size_per_gpu", kind: Kind::Whole(1, MAX_BATCH), default: "16", unset: None, flag: Flag::Takes("batch-size", "N"), heading: "Recipe", doc: "Patches in a micro-batch" },
    Key { path: "data.accum_iter", kind: Kind::Whole(1, MAX_BATCH), default: "1", unset: None, flag: Flag::Takes("accum-iter", "N"), heading: "Recipe", doc: "Micro-batches in an iteration: the same training as a batch so many times larger, in less memory" },
    Key { path: "data.use_hflip", kind: Kind::Bool, default: "true", unset: None, flag: Flag::Off("no-hflip"), heading: "Recipe", doc: "Random horizontal flips" },
    Key { path: "data.use_rot", kind: Kind::Bool, default: "true", unset: None, flag: Flag::Off("no-rot"), heading: "Recipe", doc: "Random vertical flips and quarter turns" },
    Key { path: "data.num_worker_per_gpu", kind: Kind::Whole(1, MAX_LOADERS), default: "~", unset: Some("1, and with a GPU every core up to 16"), flag: Flag::Takes("loader-threads", "N"), heading: "Machine", doc: "Threads that read and decode shards" },
    Key { path: "data.slots", kind: Kind::Whole(1, MAX_SLOTS), default: "~", unset: Some("3 more than threads that load"), flag: Flag::Takes("slots", "N"), heading: "Machine", doc: "Batches that exist at once in the prefetch ring" },
    Key { path: "data.io", kind: Kind::Choice(IO), default: "auto", unset: None, flag: Flag::Takes("io", "IO"), heading: "Data", doc: "How records are read; auto maps shards that lie on a local disk and fit into free memory" },
    Key { path: "data.window", kind: Kind::Window, default: "auto", unset: None, flag: Flag::Takes("window", "auto|off|SIZE"), heading: "Data", doc: "Shuffle everything (off), or only within so many bytes of shards at a time, for sets larger than memory; auto takes 8 GiB for sets of 32 GiB and more, whatever the memory, and a resumed run keeps what it had" },
    Key { path: "data.on_corrupt", kind: Kind::Choice(ON_CORRUPT), default: "stop", unset: None, flag: Flag::Takes("on-corrupt", "WHAT"), heading: "Data", doc: "A damaged record: stop with an error that names it, or train on another in its place, reported and counted" },
    Key { path: "train.total_iter", kind: Kind::Whole(1, u64::MAX), default: "40000", unset: None, flag: Flag::Takes("iterations", "N"), heading: "Recipe", doc: "Iterations in all" },
    Key { path: "train.warmup_iter", kind: Kind::Whole(0, u64::MAX), default: "1000", unset: None, flag: Flag::Takes("warmup", "N"), heading: "Recipe", doc: "Iterations of linear warm-up" },
    Key { path: "train.ema_decay", kind: Kind::Share, default: "0.999", unset: None, flag: Flag::Takes("ema-decay", "SHARE"), heading: "Recipe", doc: "Weight of the old average in the EMA" },
    Key { path: "train.ema_power", kind: Kind::Positive, default: "0.75", unset: None, flag: Flag::Takes("ema-power", "POWER"), heading: "Recipe", doc: "Power of the EMA's warm-up" },
    Key { path: "train.grad_clip", kind: Kind::Clip, default: "1.0", unset: None, flag: Flag::Takes("grad-clip", "NORM"), heading: "Recipe", doc: "Largest gradient norm; 0 for no clipping" },
    Key { path: "train.optim_g.type", kind: Kind::Choice(OPTIMIZERS), default: "AdamW", unset: None, flag: Flag::Takes("optimizer", "NAME"), heading: "Recipe", doc: "AdamW decays the weights themselves, Adam adds the decay to the gradient" },
    Key { path: "train.optim_g.lr", kind: Kind::Positive, default: "2e-4", unset: None, flag: Flag::Takes("lr", "LR"), heading: "Recipe", doc: "Learning rate after warm-up" },
    Key { path: "train.optim_g.betas", kind: Kind::Betas, default: "[0.9, 0.99]", unset: None, flag: Flag::Takes("betas", "B1,B2"), heading: "Recipe", doc: "Weights of the old moments" },
    Key { path: "train.optim_g.weight_decay", kind: Kind::NotNegative, default: "~", unset: Some("1e-4 for AdamW, 0 for Adam"), flag: Flag::Takes("weight-decay", "DECAY"), heading: "Recipe", doc: "Weight decay" },
    Key { path: "train.optim_g.eps", kind: Kind::Positive, default: "1e-8", unset: None, flag: Flag::None, heading: "Recipe", doc: "Added to the root of the second moment" },
    Key { path: "train.scheduler.type", kind: Kind::Choice(SCHEDULES), default: "MultiStepLR", unset: None, flag: Flag::Takes("schedule", "NAME"), heading: "Recipe", doc: "How the learning rate falls" },
    Key { path: "train.scheduler.milestones", kind: Kind::Wholes, default: "[30000, 35000]", unset: None, flag: Flag::Takes("milestones", "N,N"), heading: "Recipe", doc: "MultiStepLR: iterations after which the learning rate falls" },
    Key { path: "train.scheduler.gamma", kind: Kind::Positive, default: "0.5", unset: None, flag: Flag::Takes("gamma", "FACTOR"), heading: "Recipe", doc: "MultiStepLR: factor at each milestone" },
    Key { path: "train.scheduler.eta_min", kind: Kind::NotNegative, default: "1e-7", unset: None, flag: Flag::Takes("eta-min", "LR"), heading: "Recipe", doc: "CosineAnnealingLR: learning rate at the end" },
    Key { path: "train.losses", kind: Kind::Losses, default: "[l1:1, ssim:0.05]", unset: None, flag: Flag::Takes("loss", "KIND:WEIGHT"), heading: "Recipe", doc: "Losses and their weights: l1, charbonnier, mse, ssim, mssim; the flag may be repeated" },
    Key { path: "val.dataset", kind: Kind::Path, default: "~", unset: Some("DIR/val of a set made with `shard --val`"), flag: Flag::Takes("val", "DIR"), heading: "Output", doc: "What PSNR and SSIM are measured on: a folder of images (pairs, or HR alone), a held-out set of shards, or none" },
    Key { path: "val.val_freq", kind: Kind::Whole(1, u64::MAX), default: "1000", unset: None, flag: Flag::Takes("val-every", "N"), heading: "Output", doc: "Iterations between validations" },
    Key { path: "val.crop_border", kind: Kind::Whole(0, MAX_SIDE), default: "~", unset: Some("the scale"), flag: Flag::Takes("crop-border", "PIXELS"), heading: "Output", doc: "HR pixels at each edge that the metrics leave out" },
    Key { path: "logger.print_freq", kind: Kind::Whole(1, u64::MAX), default: "100", unset: None, flag: Flag::Takes("log-every", "N"), heading: "Output", doc: "Iterations between log lines" },
    Key { path: "logger.save_checkpoint_freq", kind: Kind::Whole(1, u64::MAX), default: "1000", unset: None, flag: Flag::Takes("checkpoint-every", "N"), heading: "Output", doc: "Iterations between checkpoints" },
    Key { path: "logger.keep_states", kind: Kind::Whole(1, MAX_BATCH), default: "3", unset: None, flag: Flag::Takes("keep-states", "N"), heading: "Output", doc: "State files to keep" },
    Key { path: "logger.keep_models", kind: Kind::Whole(1, MAX_BATCH), default: "10", unset: None, flag: Flag::Takes("keep-models", "N"), heading: "Output", doc: "Newest checkpoints whose network files are kept" },
    Key { path: "logger.keep_every", kind: Kind::Whole(1, u64::MAX), default: "10000", unset: Some("none are kept for good"), flag: Flag::Takes("keep-every", "N"), heading: "Output", doc: "Network files of every so many iterations are kept for good" },
    Key { path: "machine.device", kind: Kind::Choice(DEVICES), default: "auto", unset: None, flag: Flag::Takes("device", "WHERE"), heading: "Machine", doc: "Where to train: auto takes the first CUDA device, or the CPU where there is none" },
    Key { path: "machine.precision", kind: Kind::Choice(PRECISIONS), default: "auto", unset: None, flag: Flag::Takes("precision", "TYPE"), heading: "Machine", doc: "Type of activations, halves on CUDA only: auto is f32 on the CPU, bf16 on CUDA, and fp16 (with dynamic loss scaling) on cards before sm_80" },
    Key { path: "machine.threads", kind: Kind::Whole(1, MAX_THREADS), default: "~", unset: Some("one for each core"), flag: Flag::Takes("threads", "N"), heading: "Machine", doc: "Threads that compute; the result is the same bits for any number" },
    Key { path: "machine.host_memory", kind: Kind::Size, default: "~", unset: Some("what the machine and its control group leave"), flag: Flag::Takes("host-memory", "SIZE"), heading: "Machine", doc: "Most host memory the run may take (2G); only a stated one may split iterations" },
    Key { path: "machine.vram", kind: Kind::Size, default: "~", unset: Some("what is free"), flag: Flag::Takes("vram", "SIZE"), heading: "Machine", doc: "Most device memory the run may take (11.63GiB), what the driver takes included" },
    Key { path: "machine.recompute", kind: Kind::Choice(LEVELS), default: "auto", unset: None, flag: Flag::Takes("recompute", "LEVEL"), heading: "Machine", doc: "What is kept between forward and backward, and what is made again: auto takes the cheapest that fits, block keeps only the inputs of blocks, full also runs the HR tail a few images at a time, to the same bits" },
    Key { path: "machine.fit", kind: Kind::Bool, default: "true", unset: None, flag: Flag::Takes("fit", "on|off"), heading: "Machine", doc: "Where a run is too large for the memory that is stated: split its iterations into smaller micro-batches of the same samples (on), or refuse it" },
];
