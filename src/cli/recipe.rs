//! The flags that `train` and `plan` share, so that they cannot drift apart: the recipe, which decides what is learnt, and the
//! machine, which decides where and in how much memory.

use super::flags::{MAX_BATCH, MAX_SIDE, MAX_THREADS, count, not_negative, positive, share, single};
use super::shard::parse_size;
use anyhow::{Result, bail};
use clap::ValueEnum;
use paragon::model::{Network, Recompute};
use paragon::plan::LossKind;
use paragon::train::{Decay, LossTerm, Schedule, TrainConfig};

/// The network and how it is trained.
#[derive(clap::Args)]
pub struct Recipe {
    /// Network: nano (paragonsr2_realtime)
    #[arg(long, default_value = "nano", help_heading = "Network")]
    network: String,
    /// Strength of the base upsampler's sharpening [default: the network's, 0.3 for Nano]
    #[arg(long, value_name = "ALPHA", value_parser = single, allow_negative_numbers = true, help_heading = "Network")]
    alpha: Option<f32>,
    /// Start value of the gain on the learned detail [default: the network's, 0.05 for Nano]
    #[arg(long, value_name = "GAIN", value_parser = single, allow_negative_numbers = true, help_heading = "Network")]
    detail_gain: Option<f32>,
    /// Start value of LayerScale; larger ones (0.1) let the blocks contribute sooner
    #[arg(long, default_value_t = 1e-5, value_name = "VALUE", value_parser = single, allow_negative_numbers = true, help_heading = "Network")]
    layer_scale: f32,
    /// Iterations in all
    #[arg(long, default_value_t = 40_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Recipe")]
    iterations: u64,
    /// A published setting of patch, batch, accumulation and rotation; flags of its own win over it
    #[arg(long, value_enum, help_heading = "Recipe")]
    preset: Option<Preset>,
    /// Side of the LQ patch in pixels [default: 128, or the stored size where that is smaller]
    #[arg(long, value_name = "PIXELS", value_parser = count(MAX_SIDE), help_heading = "Recipe")]
    lq_size: Option<usize>,
    /// Patches in a micro-batch [default: 16]
    #[arg(long, value_name = "N", value_parser = count(MAX_BATCH), help_heading = "Recipe")]
    batch_size: Option<usize>,
    /// Micro-batches in an iteration: the same training as a batch so many times larger, in less memory [default: 1]
    #[arg(long, value_name = "N", value_parser = count(MAX_BATCH), help_heading = "Recipe")]
    accum_iter: Option<usize>,
    /// A loss and its weight, may be repeated: l1, charbonnier, mse, ssim, mssim
    #[arg(long = "loss", default_values = ["l1:1.0", "ssim:0.05"], value_name = "KIND:WEIGHT", value_parser = parse_loss, help_heading = "Recipe")]
    losses: Vec<LossTerm>,
    /// Learning rate after warm-up
    #[arg(long, default_value_t = 2e-4, value_parser = positive, allow_negative_numbers = true, help_heading = "Recipe")]
    lr: f64,
    /// How the learning rate falls
    #[arg(long, value_enum, default_value = "multistep", help_heading = "Recipe")]
    schedule: ScheduleKind,
    /// Iterations of linear warm-up
    #[arg(long, default_value_t = 1000, value_name = "N", help_heading = "Recipe")]
    warmup: u64,
    /// multistep: iterations after which the learning rate falls
    #[arg(long, value_delimiter = ',', default_values_t = [30_000, 35_000], value_name = "N,N", help_heading = "Recipe")]
    milestones: Vec<u64>,
    /// multistep: factor at each milestone
    #[arg(long, default_value_t = 0.5, value_parser = positive, allow_negative_numbers = true, help_heading = "Recipe")]
    gamma: f64,
    /// cosine: learning rate at the end
    #[arg(long, default_value_t = 1e-7, value_name = "LR", value_parser = not_negative, allow_negative_numbers = true, help_heading = "Recipe")]
    eta_min: f64,
    /// AdamW's betas
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [0.9, 0.99], value_name = "B1,B2", value_parser = share, allow_negative_numbers = true, help_heading = "Recipe")]
    betas: Vec<f64>,
    /// AdamW's decoupled weight decay
    #[arg(long, default_value_t = 1e-4, value_parser = not_negative, allow_negative_numbers = true, help_heading = "Recipe")]
    weight_decay: f64,
    /// Largest gradient norm; 0 for no clipping
    #[arg(long, default_value_t = 1.0, value_name = "NORM", value_parser = not_negative, allow_negative_numbers = true, help_heading = "Recipe")]
    grad_clip: f64,
    /// Weight of the old average in the EMA
    #[arg(long, default_value_t = 0.999, value_parser = share, allow_negative_numbers = true, help_heading = "Recipe")]
    ema_decay: f64,
    /// Power of the EMA's warm-up
    #[arg(long, default_value_t = 0.75, value_parser = positive, allow_negative_numbers = true, help_heading = "Recipe")]
    ema_power: f64,
    /// No random horizontal flips
    #[arg(long, help_heading = "Recipe")]
    no_hflip: bool,
    /// No random vertical flips and quarter turns
    #[arg(long, help_heading = "Recipe")]
    no_rot: bool,
    /// Seed of start values, order, crops and flips
    #[arg(long, default_value_t = 1024, help_heading = "Recipe")]
    seed: u64,
}

/// Threads and memory.
#[derive(clap::Args)]
pub struct Machine {
    /// Threads that compute [default: one for each core]; the result is the same bits for any number
    #[arg(long, value_name = "N", value_parser = count(MAX_THREADS), help_heading = "Machine")]
    pub threads: Option<usize>,
    /// Threads that read and decode shards
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count(paragon::loader::MAX_THREADS as u64), help_heading = "Machine")]
    pub loader_threads: usize,
    /// Batches that exist at once in the prefetch ring
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = count(paragon::loader::MAX_SLOTS as u64), help_heading = "Machine")]
    pub slots: usize,
    /// Most host memory the run may take (2G) [default: what is free]
    #[arg(long, value_parser = parse_size, value_name = "SIZE", help_heading = "Machine")]
    pub host_memory: Option<u64>,
    /// Most device memory the run may take (11.63GiB), what the driver takes included
    #[arg(long, value_parser = parse_size, value_name = "SIZE", help_heading = "Machine")]
    pub vram: Option<u64>,
    /// What is kept between forward and backward, and what is made again
    #[arg(long, value_enum, default_value = "auto", help_heading = "Machine")]
    pub recompute: Level,
    /// Where a run is too large: split its iterations into smaller micro-batches of the same samples, or refuse it
    #[arg(long, value_enum, default_value = "on", help_heading = "Machine")]
    pub fit: Switch,
}

/// What a preset sets.
struct Setting {
    lq_size: usize,
    batch_size: usize,
    accum_iter: usize,
    use_rot: bool,
}

impl Setting {
    /// The author's Nano recipe.
    const PUBLISHED: Setting = Setting { lq_size: 128, batch_size: 16, accum_iter: 1, use_rot: true };
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// LQ 128, batch 16: the published Nano recipe, the default
    Lq128,
    /// LQ 96, 2 x 8 patches, no rotation: what trainers that run out of memory are told to use
    MemorySafe,
}

impl Preset {
    fn setting(self) -> Setting {
        match self {
            Preset::Lq128 => Setting::PUBLISHED,
            Preset::MemorySafe => Setting { lq_size: 96, batch_size: 8, accum_iter: 2, use_rot: false },
        }
    }
}

/// A level of recomputation as a user names it.
#[derive(Clone, Copy, ValueEnum)]
pub enum Level {
    /// The cheapest that fits
    Auto,
    /// The same as block: a fused block has nothing else worth keeping
    None,
    /// Only the inputs of blocks are kept
    Block,
    /// The HR tail also runs a few images at a time: the same bits, no buffer of HR size for the whole batch
    Full,
}

impl Level {
    /// Nothing for the cheapest that fits.
    pub fn level(self) -> Option<Recompute> {
        match self {
            Level::Auto => None,
            Level::None => Some(Recompute::None),
            Level::Block => Some(Recompute::Block),
            Level::Full => Some(Recompute::Full),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl Switch {
    /// Whether it is on.
    pub fn on(self) -> bool {
        matches!(self, Switch::On)
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ScheduleKind {
    Multistep,
    Cosine,
    Constant,
}

/// `l1:1.0`
pub fn parse_loss(text: &str) -> Result<LossTerm, String> {
    let (kind, weight) = text.split_once(':').unwrap_or((text, "1"));
    let kind = LossKind::from_str(kind, true).map_err(|_| format!("unknown loss '{kind}'; known are l1, charbonnier, mse, ssim, mssim"))?;
    let weight: f32 = weight.parse().map_err(|_| format!("'{weight}' is no weight; write it as l1:1.0"))?;
    if !weight.is_finite() || weight < 0.0 {
        return Err(format!("a weight of {weight} makes no sense"));
    }
    Ok(LossTerm { kind, weight })
}

impl Recipe {
    /// The run that is asked for, on patches stored at a scale and a size.
    pub fn config(&self, scale: usize, stored_lq_size: usize) -> Result<TrainConfig> {
        let mut network = Network::new(&self.network, scale)?;
        let preset = self.preset.map_or(Setting::PUBLISHED, Preset::setting);
        network.upsampler_alpha = self.alpha.unwrap_or(network.upsampler_alpha);
        network.detail_gain = self.detail_gain.unwrap_or(network.detail_gain);
        network.layer_scale = self.layer_scale;
        let &[beta1, beta2] = self.betas.as_slice() else { bail!("--betas takes two numbers, as in 0.9,0.99") };
        let decay = match self.schedule {
            ScheduleKind::Multistep => Decay::MultiStep { milestones: self.milestones.clone(), gamma: self.gamma },
            ScheduleKind::Cosine => Decay::Cosine { total: self.iterations, eta_min: self.eta_min },
            ScheduleKind::Constant => Decay::Constant,
        };
        Ok(TrainConfig {
            network,
            lq_size: self.lq_size.unwrap_or(preset.lq_size.min(stored_lq_size)),
            batch_size: self.batch_size.unwrap_or(preset.batch_size),
            accum_iter: self.accum_iter.unwrap_or(preset.accum_iter),
            use_hflip: !self.no_hflip,
            use_rot: !self.no_rot && preset.use_rot,
            losses: self.losses.clone(),
            betas: (beta1, beta2),
            epsilon: 1e-8,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
            schedule: Schedule { base_lr: self.lr, warmup: self.warmup, decay },
            total_iter: self.iterations,
            ema_decay: self.ema_decay,
            ema_power: self.ema_power,
            seed: self.seed,
            window: None,
        })
    }
}
