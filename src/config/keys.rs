//! The table of keys: path, type, default, meaning and flag of every option of a training. Parsing,
//! flags, `config explain`, the reference page, the JSON schema and the starter file are generated
//! from it, so they cannot disagree. The settings of the networks come from the networks' own
//! table. Depends on that table, on the kinds of values and on `limits`.

use super::network;
use super::value::{Kind, Names};
use crate::support::limits::{
    MAX_BATCH, MAX_COMPUTE_THREADS, MAX_KEPT, MAX_LOADER_SLOTS, MAX_LOADER_THREADS, MAX_SIDE,
};
use std::sync::LazyLock;

const SCALES: Names = &[("1", &[]), ("2", &[]), ("3", &[]), ("4", &[]), ("8", &[])];
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

/// One option of a training.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path in an option file: `train.optim_g.lr`.
    pub path: &'static str,
    /// The values it can hold.
    pub kind: Kind,
    /// Its value where no file and no flag sets it, as YAML; `~` for no value.
    pub default: &'static str,
    /// What it means when it has no value (`~`). A key without this must have a value.
    pub unset: Option<&'static str>,
    /// How the command line sets it.
    pub flag: Flag,
    /// The heading of the help that lists its flag.
    pub heading: Heading,
    /// What it does.
    pub doc: &'static str,
    /// The help of its flag, where the flag turns it off.
    pub off_help: &'static str,
}

/// The headings that group flags in the help of `train` and `plan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heading {
    /// The network and its settings.
    Network,
    /// What decides the trained weights, besides network and data.
    Recipe,
    /// The shards and how they are read.
    Data,
    /// What a run writes and measures.
    Output,
    /// Threads, memory, device.
    Machine,
}

impl Heading {
    /// The text of the heading.
    pub fn name(self) -> &'static str {
        match self {
            Heading::Network => "Network",
            Heading::Recipe => "Recipe",
            Heading::Data => "Data",
            Heading::Output => "Output",
            Heading::Machine => "Machine",
        }
    }
}

/// How the command line sets a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flag {
    /// Only through `--set`.
    None,
    /// `--NAME VALUE`
    Takes(&'static str, &'static str),
    /// `--NAME` sets it to false.
    Off(&'static str),
}

impl Key {
    /// A key that has no value by default and no flag.
    pub(super) const fn new(heading: Heading, path: &'static str, kind: Kind) -> Key {
        Key {
            path,
            kind,
            default: "~",
            unset: None,
            flag: Flag::None,
            heading,
            doc: "",
            off_help: "",
        }
    }

    const fn default(mut self, yaml: &'static str) -> Key {
        self.default = yaml;
        self
    }

    pub(super) const fn unset(mut self, meaning: &'static str) -> Key {
        self.unset = Some(meaning);
        self
    }

    pub(super) const fn flag(mut self, name: &'static str, value_name: &'static str) -> Key {
        self.flag = Flag::Takes(name, value_name);
        self
    }

    const fn off_flag(mut self, name: &'static str, help: &'static str) -> Key {
        self.flag = Flag::Off(name);
        self.off_help = help;
        self
    }

    pub(super) const fn doc(mut self, text: &'static str) -> Key {
        self.doc = text;
        self
    }

    /// Whether it changes the memory of a run or the trained weights: `plan` takes these too.
    pub fn is_for_plan(&self) -> bool {
        matches!(
            self.heading,
            Heading::Network | Heading::Recipe | Heading::Machine
        ) && !self.path.starts_with("path.")
            || self.path == DEGRADE
    }

    /// The default as `config explain` shows it.
    pub fn default_text(&self) -> String {
        match self.unset {
            Some(meaning) if self.default == "~" => meaning.to_string(),
            _ => self.default.to_string(),
        }
    }
}

/// The sections of an option file in their order, and what they are for.
pub const SECTIONS: [(&str, &str); 10] = [
    ("network_g", "The network and its settings."),
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
pub static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let mut keys = Vec::new();
    for key in FIXED {
        if key.path == TYPE {
            keys.push(key.doc(network::type_doc()));
            keys.extend(network::setting_keys(FIXED));
        } else {
            keys.push(*key);
        }
    }
    keys
});

/// The key of the network's name; those of its settings follow it.
pub const TYPE: &str = "network_g.type";

/// The key of the degradation recipe.
const DEGRADE: &str = "data.degrade";

/// The keys that do not depend on which networks there are.
const FIXED: &[Key] = &[
    Key::new(Heading::Output, "name", Kind::Text)
        .unset("network and scale, as in paragonsr2_realtime_x2")
        .flag("name", "NAME")
        .doc("Name of the run, which is its folder in `runs`; `path.out` (--out) gives another place"),
    Key::new(Heading::Network, "scale", Kind::Choice(SCALES))
        .unset("the shards', and 2 for `plan`")
        .flag("scale", "N")
        .doc(
            "HR pixels per LQ pixel along one side; training takes it from its shards and \
         refuses another",
        ),
    Key::new(Heading::Recipe, "manual_seed", Kind::Whole(0, u64::MAX))
        .default("1024")
        .flag("seed", "SEED")
        .doc("Seed of start values, order, crops and flips"),
    Key::new(Heading::Network, TYPE, Kind::Text)
        .default("paragonsr2_realtime")
        .flag("network", "NAME"),
    Key::new(Heading::Network, "path.pretrain_network_g", Kind::Path)
        .unset("the network's start values")
        .flag("pretrain", "FILE")
        .doc("Start from a network: a safetensors file, a PyTorch checkpoint (.pth), or the folder of a run"),
    Key::new(Heading::Network, "path.strict_load_g", Kind::Bool)
        .default("true")
        .off_flag("lenient", "Take what fits of --pretrain, and list the rest")
        .doc(
            "Everything of `path.pretrain_network_g` must fit; otherwise what fits is taken \
         and the rest listed",
        ),
    Key::new(Heading::Output, "path.out", Kind::Path)
        .unset("runs/NAME")
        .flag("out", "DIR")
        .doc("Folder of the run: checkpoints, log, curves"),
    Key::new(Heading::Data, "data.shards", Kind::Paths)
        .default("[shards]")
        .flag("shards", "DIR")
        .doc("Folder of the shards made by `paragon shard`; several are mixed"),
    Key::new(Heading::Data, "data.weights", Kind::Weights)
        .default("[]")
        .flag("weights", "W,W")
        .doc("Shares of the sets in an epoch, one number each; without, every record comes once"),
    Key::new(
        Heading::Recipe,
        "data.lq_size",
        Kind::Whole(1, MAX_SIDE as u64),
    )
    .unset("128, or the stored size where that is smaller")
    .flag("lq-size", "PIXELS")
    .doc("Side of the LQ patch in pixels"),
    Key::new(
        Heading::Recipe,
        "data.batch_size_per_gpu",
        Kind::Whole(1, MAX_BATCH as u64),
    )
    .default("16")
    .flag("batch-size", "N")
    .doc("Patches in a micro-batch"),
    Key::new(
        Heading::Recipe,
        "data.accum_iter",
        Kind::Whole(1, MAX_BATCH as u64),
    )
    .unset("1, or one for each rank; a resumed run keeps its own")
    .flag("accum-iter", "N")
    .doc(
        "Micro-batches in an iteration, of all ranks together: the same training as a batch so \
         many times larger, in less memory",
    ),
    Key::new(Heading::Recipe, "data.use_hflip", Kind::Bool)
        .default("true")
        .off_flag("no-hflip", "Turn off random horizontal flips")
        .doc("Random horizontal flips"),
    Key::new(Heading::Recipe, "data.use_rot", Kind::Bool)
        .default("true")
        .off_flag("no-rot", "Turn off random vertical flips and quarter turns")
        .doc("Random vertical flips and quarter turns"),
    Key::new(
        Heading::Machine,
        "data.num_worker_per_gpu",
        Kind::Whole(1, MAX_LOADER_THREADS as u64),
    )
    .unset("1, and with a GPU every core up to 16")
    .flag("loader-threads", "N")
    .doc("Threads that read and decode shards"),
    Key::new(
        Heading::Machine,
        "data.slots",
        Kind::Whole(1, MAX_LOADER_SLOTS as u64),
    )
    .unset("3 more than threads that load")
    .flag("slots", "N")
    .doc("Batches that exist at once in the prefetch ring"),
    Key::new(Heading::Data, "data.io", Kind::Choice(IO))
        .default("auto")
        .flag("io", "IO")
        .doc(
            "How records are read; auto maps shards that lie on a local disk and fit into \
         free memory",
        ),
    Key::new(Heading::Data, "data.window", Kind::Window)
        .default("auto")
        .flag("window", "auto|off|SIZE")
        .doc(
            "Shuffle everything (off), or only within so many bytes of shards at a time, for \
         sets larger than memory; auto takes 8 GiB for sets of 32 GiB and more, whatever the \
         memory, and a resumed run keeps what it had",
        ),
    Key::new(Heading::Data, DEGRADE, Kind::Text)
        .unset("the LQ is that of the shards; for HR alone, the recipe that the set names")
        .flag("degrade", "RECIPE")
        .doc(
            "Make the LQ of every sample anew from its HR by a degradation recipe, in the \
         loader: the name of a preset, a YAML file, or none; `paragon degrade --list` names the \
         presets",
        ),
    Key::new(Heading::Data, "data.on_corrupt", Kind::Choice(ON_CORRUPT))
        .default("stop")
        .flag("on-corrupt", "WHAT")
        .doc(
            "A damaged record: stop with an error that names it, or train on another in its \
         place, reported and counted",
        ),
    Key::new(
        Heading::Recipe,
        "train.total_iter",
        Kind::Whole(1, u64::MAX),
    )
    .default("40000")
    .flag("iterations", "N")
    .doc("Iterations in all"),
    Key::new(
        Heading::Recipe,
        "train.warmup_iter",
        Kind::Whole(0, u64::MAX),
    )
    .unset("1/40 of the iterations, at most 1000; a resumed run keeps its own")
    .flag("warmup", "N")
    .doc("Iterations of linear warm-up"),
    Key::new(Heading::Recipe, "train.ema_decay", Kind::Share)
        .default("0.999")
        .flag("ema-decay", "SHARE")
        .doc("Weight of the old average in the EMA"),
    Key::new(Heading::Recipe, "train.ema_power", Kind::Positive)
        .default("0.75")
        .flag("ema-power", "POWER")
        .doc("Power of the EMA's warm-up"),
    Key::new(Heading::Recipe, "train.grad_clip", Kind::Clip)
        .default("1.0")
        .flag("grad-clip", "NORM")
        .doc("Largest gradient norm; 0 for no clipping"),
    Key::new(
        Heading::Recipe,
        "train.optim_g.type",
        Kind::Choice(OPTIMIZERS),
    )
    .default("AdamW")
    .flag("optimizer", "NAME")
    .doc("AdamW decays the weights themselves, Adam adds the decay to the gradient"),
    Key::new(Heading::Recipe, "train.optim_g.lr", Kind::Positive)
        .default("2e-4")
        .flag("lr", "LR")
        .doc("Learning rate after warm-up"),
    Key::new(Heading::Recipe, "train.optim_g.betas", Kind::Betas)
        .default("[0.9, 0.99]")
        .flag("betas", "B1,B2")
        .doc("Weights of the old moments"),
    Key::new(
        Heading::Recipe,
        "train.optim_g.weight_decay",
        Kind::NotNegative,
    )
    .unset("1e-4 for AdamW, 0 for Adam")
    .flag("weight-decay", "DECAY")
    .doc("Weight decay"),
    Key::new(Heading::Recipe, "train.optim_g.eps", Kind::Positive)
        .default("1e-8")
        .doc("Added to the root of the second moment"),
    Key::new(
        Heading::Recipe,
        "train.scheduler.type",
        Kind::Choice(SCHEDULES),
    )
    .default("MultiStepLR")
    .flag("schedule", "NAME")
    .doc("How the learning rate falls"),
    Key::new(Heading::Recipe, "train.scheduler.milestones", Kind::Wholes)
        .unset("3/4 and 7/8 of the iterations; a resumed run keeps its own")
        .flag("milestones", "N,N")
        .doc("MultiStepLR: iterations after which the learning rate falls"),
    Key::new(Heading::Recipe, "train.scheduler.gamma", Kind::Positive)
        .default("0.5")
        .flag("gamma", "FACTOR")
        .doc("MultiStepLR: factor at each milestone"),
    Key::new(
        Heading::Recipe,
        "train.scheduler.eta_min",
        Kind::NotNegative,
    )
    .default("1e-7")
    .flag("eta-min", "LR")
    .doc("CosineAnnealingLR: learning rate at the end"),
    Key::new(Heading::Recipe, "train.losses", Kind::Losses)
        .default("[l1:1, ssim:0.05]")
        .flag("loss", "KIND:WEIGHT")
        .doc(
            "Losses and their weights: l1, charbonnier, mse, ssim, mssim; the flag may be \
         repeated",
        ),
    Key::new(Heading::Output, "val.dataset", Kind::Path)
        .unset("DIR/val of a set made with `shard --val`")
        .flag("val", "DIR")
        .doc(
            "What PSNR and SSIM are measured on: a folder of images (pairs, or HR alone), a \
         held-out set of shards, or none",
        ),
    Key::new(Heading::Output, "val.val_freq", Kind::Whole(1, u64::MAX))
        .default("1000")
        .flag("val-every", "N")
        .doc("Iterations between validations"),
    Key::new(
        Heading::Output,
        "val.crop_border",
        Kind::Whole(0, MAX_SIDE as u64),
    )
    .unset("the scale")
    .flag("crop-border", "PIXELS")
    .doc("HR pixels at each edge that the metrics leave out"),
    Key::new(
        Heading::Output,
        "logger.print_freq",
        Kind::Whole(1, u64::MAX),
    )
    .default("100")
    .flag("log-every", "N")
    .doc("Iterations between lines that are printed and written to log.jsonl"),
    Key::new(
        Heading::Output,
        "logger.save_checkpoint_freq",
        Kind::Whole(1, u64::MAX),
    )
    .default("1000")
    .flag("checkpoint-every", "N")
    .doc("Iterations between checkpoints"),
    Key::new(
        Heading::Output,
        "logger.keep_states",
        Kind::Whole(1, MAX_KEPT as u64),
    )
    .default("3")
    .flag("keep-states", "N")
    .doc("State files to keep"),
    Key::new(
        Heading::Output,
        "logger.keep_models",
        Kind::Whole(1, MAX_KEPT as u64),
    )
    .default("10")
    .flag("keep-models", "N")
    .doc("Newest checkpoints whose network files are kept"),
    Key::new(
        Heading::Output,
        "logger.keep_every",
        Kind::Whole(1, u64::MAX),
    )
    .default("10000")
    .unset("none are kept for good")
    .flag("keep-every", "N")
    .doc("Network files of every so many iterations are kept for good"),
    Key::new(Heading::Machine, "machine.device", Kind::Choice(DEVICES))
        .default("auto")
        .flag("device", "WHERE")
        .doc("Where to train: auto takes the first CUDA device, or the CPU where there is none"),
    Key::new(
        Heading::Machine,
        "machine.precision",
        Kind::Choice(PRECISIONS),
    )
    .default("auto")
    .flag("precision", "TYPE")
    .doc(
        "Type of activations: auto is f32 on the CPU, bf16 on CUDA, and fp16 (with dynamic \
         loss scaling) on cards before sm_80. On the CPU, bf16 is the type of the products of \
         dense convolutions and window attention (AMX, or AVX512-BF16 where it is faster than \
         f32), and fp16 is refused",
    ),
    Key::new(
        Heading::Machine,
        "machine.threads",
        Kind::Whole(1, MAX_COMPUTE_THREADS as u64),
    )
    .unset("one for each core")
    .flag("threads", "N")
    .doc("Threads that compute; the result is the same bits for any number"),
    Key::new(Heading::Machine, "machine.host_memory", Kind::Size)
        .unset("what the machine and its control group leave")
        .flag("host-memory", "SIZE")
        .doc("Most host memory the run may take (2G); only a stated one may split iterations"),
    Key::new(Heading::Machine, "machine.vram", Kind::Size)
        .unset("what is free")
        .flag("vram", "SIZE")
        .doc("Most device memory the run may take (12G), what the driver takes included"),
    Key::new(Heading::Machine, "machine.recompute", Kind::Choice(LEVELS))
        .default("auto")
        .flag("recompute", "LEVEL")
        .doc(
            "What is kept between forward and backward, and what is made again: auto takes \
         the cheapest that fits, block keeps only the inputs of blocks, full also runs the HR \
         tail a few images at a time, to the same bits",
        ),
    Key::new(Heading::Machine, "machine.fit", Kind::Bool)
        .default("true")
        .flag("fit", "on|off")
        .doc(
            "Where a run is too large for the memory that is stated: split its iterations \
         into smaller micro-batches of the same samples (on), or refuse it",
        ),
];
