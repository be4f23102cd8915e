//! The words of other trainers (traiNNer-redux, BasicSR, neosr, scripts around PyTorch) and
//! paragon's answer to each. The command line shows the answer where a flag is unknown, and `config
//! explain` where a word is no key. Depends on the table of keys; a test of the command line checks
//! that every flag that is named here exists.

use super::{Flag, KEYS, Key, find};
use anyhow::Result;

/// Words with one meaning, and the answer to them.
#[derive(Clone, Copy, Debug)]
pub struct ForeignWord {
    /// The words in lower case, with hyphens between their parts and a space after each but the last.
    pub words: &'static str,
    /// The flag with this meaning, without its hyphens; empty where there is none.
    pub flag: &'static str,
    /// What it means, or what to do where there is no such flag.
    pub text: &'static str,
}

impl ForeignWord {
    /// The words.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        self.words.split(' ')
    }

    /// The answer as one clause: `paragon has --lq-size, the side of the LQ patch`. `command` is the
    /// one that has the flag, where another one was typed.
    pub fn answer(&self, command: Option<&str>) -> String {
        match (self.flag, command) {
            ("", _) => self.text.to_string(),
            (flag, None) => format!("paragon has --{flag}, {}", self.text),
            (flag, Some(command)) => {
                format!("`paragon {command}` has --{flag}, {}", self.text)
            }
        }
    }
}

/// A flag or key as the table has it: `--GT_Size=256` is `gt-size`.
fn normal(word: &str) -> String {
    let word = word.trim_start_matches('-');
    let word = word.split('=').next().unwrap_or_default();
    word.to_lowercase().replace('_', "-")
}

/// The answer to a word of another trainer, with or without hyphens before it.
pub fn foreign(word: &str) -> Option<&'static ForeignWord> {
    let word = normal(word);
    let mut all = FOREIGN_WORDS.iter();
    all.find(|foreign| foreign.words().any(|w| w == word))
}

/// The keys that a word means: the key of this path, those below this section, those with this last
/// part (`lr`), that of this flag (`--iterations`), or that of the flag for this word of another
/// trainer (`gt_size`).
///
/// # Errors
/// None; names the key that was most likely meant.
pub fn keys_of_word(word: &str) -> Result<Vec<&'static Key>> {
    let flag = word.trim_start_matches('-');
    let last = |key: &Key| key.path.rsplit('.').next().unwrap_or(key.path);
    let of_flag = |key: &Key, name: &str| match key.flag {
        Flag::Takes(flag, _) | Flag::Off(flag) => flag == name.replace('_', "-"),
        Flag::None => false,
    };
    let foreign = foreign(word).map_or("", |foreign| foreign.flag);
    let meanings: [&dyn Fn(&Key) -> bool; 5] = [
        &|key| key.path == word,
        &|key| {
            key.path
                .strip_prefix(word)
                .is_some_and(|rest| rest.starts_with('.'))
        },
        &|key| of_flag(key, flag),
        &|key| last(key) == flag.replace('-', "_"),
        &|key| !foreign.is_empty() && of_flag(key, foreign),
    ];
    for means in meanings {
        let found: Vec<&Key> = KEYS.iter().filter(|key| means(key)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    find(word).map(|key| vec![&KEYS[key]])
}

/// The command of paragon for a command of another trainer.
pub fn foreign_command(word: &str) -> Option<(&'static str, &'static str)> {
    let word = normal(word);
    let mut all = FOREIGN_COMMANDS.iter();
    let found = all.find(|(words, ..)| words.split(' ').any(|w| w == word));
    found.map(|(_, command, text)| (*command, *text))
}

/// Commands of other trainers, paragon's command, and what it does.
type ForeignCommand = (&'static str, &'static str, &'static str);

const FOREIGN_COMMANDS: &[ForeignCommand] = &[
    (
        "test validate val metrics score evaluate",
        "eval",
        "it measures PSNR and SSIM of a network",
    ),
    (
        "inference infer predict enlarge run sr",
        "upscale",
        "it applies a network to an image or a folder",
    ),
    (
        "prepare preprocess extract-subimages dataset datasets create-lmdb crop",
        "shard",
        "it cuts a folder of images into a set of patches to train on",
    ),
    (
        "resume finetune fine-tune fit",
        "train",
        "the same command resumes a run, and --pretrain begins from another network",
    ),
    (
        "benchmark profile speed",
        "bench",
        "it measures the loader, a training step or upscaling on this machine",
    ),
    (
        "models archs arch list",
        "networks",
        "it lists the networks and their settings",
    ),
    (
        "memory vram estimate",
        "plan",
        "it shows the memory of a run before it starts",
    ),
    (
        "info stats ls rm verify check extract sheet merge",
        "shards",
        "`paragon shards info|list|remove|verify|extract|sheet|merge` is about sets of shards",
    ),
    (
        "compare plot curves tensorboard",
        "report",
        "it makes a page of a run, or compares several",
    ),
    (
        "convert onnx",
        "export",
        "it writes a network for other programs",
    ),
    (
        "options opt init",
        "config",
        "`paragon config init` writes an option file, `paragon config import` converts one",
    ),
];

const fn word(words: &'static str, flag: &'static str, text: &'static str) -> ForeignWord {
    ForeignWord { words, flag, text }
}

/// The table; the first entry that has a word counts.
pub const FOREIGN_WORDS: &[ForeignWord] = &[
    word(
        "epochs epoch num-epochs n-epochs nepochs max-epochs total-epochs",
        "iterations",
        "since a run is counted in iterations: epochs x pairs / batch",
    ),
    word(
        "total-iter total-iters iters iter niter n-iter num-iter max-iter max-iters steps max-steps num-steps",
        "iterations",
        "the length of the run (train.total_iter)",
    ),
    word(
        "gpus gpu gpu-id gpu-ids num-gpu num-gpus n-gpu ngpu cuda use-gpu device-id devices cpu no-cuda",
        "device",
        "cpu, cuda or cuda:N: one process trains on one device",
    ),
    word(
        "launcher local-rank nproc-per-node world-size nnodes master-port dist dist-url distributed ddp",
        "device",
        "and no launcher, since one process trains on one device",
    ),
    word(
        "opt o options option yml yaml cfg config-file conf",
        "config",
        "which takes an option file, also one of traiNNer-redux, BasicSR or neosr as it is",
    ),
    word(
        "optim optimiser optim-g optimizer-type",
        "optimizer",
        "AdamW or Adam",
    ),
    word(
        "resume resume-state resume-from resume-from-checkpoint auto-resume checkpoint ckpt ckpt-path load-checkpoint continue-train",
        "",
        "resuming is the default: the same command goes on from the newest state of its run; --continue goes on with a changed recipe, --restart begins again",
    ),
    word(
        "ema use-ema ema-rate no-ema",
        "ema-decay",
        "since the average of the weights (EMA) is always kept; 0 turns averaging off",
    ),
    word(
        "val-freq val-interval val-iter eval-every eval-freq eval-interval eval-steps check-val-every-n-epoch test-every",
        "val-every",
        "the iterations between validations",
    ),
    word(
        "val-dir val-data val-dataset val-root valid valid-dir test-dir val-hr data-test",
        "val",
        "a folder of images or a held-out set to validate on",
    ),
    word(
        "gt-size hr-size gt-crop gt-crop-size hr-patch-size",
        "lq-size",
        "the side of the LQ patch (gt_size / scale)",
    ),
    word(
        "patch-size crop-size crop image-size img-size input-size lr-size",
        "lq-size",
        "the side of the LQ patch; the HR patch is `scale` times that",
    ),
    word(
        "degradation degradations otf high-order-degradation noise jpeg jpeg-quality blur blur-sigma",
        "degrade",
        "a recipe of blurs, noise, resizing and compression: `paragon shard --degrade` makes the LQ once, `paragon train --degrade` anew for every sample",
    ),
    word(
        "downscale downsample resize-mode interpolation kernel",
        "lq-filter",
        "the filter that makes the LQ",
    ),
    word(
        "workers num-workers num-worker n-workers nworkers num-worker-per-gpu dataloader-num-workers n-threads num-threads j jobs",
        "loader-threads",
        "the threads that read and decode shards (they are threads and no processes)",
    ),
    word(
        "batch bs b batch-size-per-gpu train-batch-size per-device-train-batch-size minibatch",
        "batch-size",
        "the patches of a batch",
    ),
    word(
        "exp exp-name experiment experiment-name run-name",
        "name",
        "the name of a run; its folder is runs/NAME",
    ),
    word(
        "name save-dir save-path save work-dir workdir output output-dir out-dir checkpoint-dir results-dir experiments-root log-dir logdir",
        "out",
        "the folder to write to; that of a run is runs/NAME without it",
    ),
    word(
        "save-freq save-checkpoint-freq save-every save-interval save-steps checkpoint-interval checkpoint-freq",
        "checkpoint-every",
        "the iterations between checkpoints",
    ),
    word(
        "print-freq print-every log-freq log-interval logging-steps",
        "log-every",
        "the iterations between log lines",
    ),
    word(
        "manual-seed random-seed",
        "seed",
        "the seed of start values, order, crops and flips",
    ),
    word(
        "learning-rate base-lr init-lr lr0",
        "lr",
        "the learning rate after warm-up",
    ),
    word(
        "scheduler lr-scheduler lr-schedule sched lr-policy scheduler-type",
        "schedule",
        "multistep, cosine or constant",
    ),
    word(
        "lr-steps lr-step lr-decay-steps decay-steps step-size lr-milestones",
        "milestones",
        "the iterations after which the learning rate falls",
    ),
    word(
        "lr-gamma lr-decay decay lr-factor",
        "gamma",
        "the factor at each milestone",
    ),
    word(
        "min-lr lr-min final-lr",
        "eta-min",
        "the learning rate at the end of the cosine",
    ),
    word(
        "warmup-iter warmup-iters warmup-steps warmup-epochs num-warmup-steps",
        "warmup",
        "the iterations of linear warm-up",
    ),
    word(
        "pretrained pretrain-network-g pretrain-network pretrain-model pre-train from-pretrained finetune fine-tune init-from load load-from strict-load-g",
        "pretrain",
        "a network file to begin from",
    ),
    word(
        "strict no-strict",
        "lenient",
        "which takes what fits of --pretrain and lists the rest",
    ),
    word(
        "amp use-amp amp-bf16 fp16 bf16 fp32 half mixed-precision autocast dtype",
        "precision",
        "f32, bf16 or fp16; auto takes the best of the device",
    ),
    word(
        "grad-checkpointing gradient-checkpointing use-checkpointing use-checkpoint recompute-activations",
        "recompute",
        "none, block or full; auto takes the cheapest that fits",
    ),
    word(
        "gradient-accumulation gradient-accumulation-steps grad-accum accumulate accum accum-iters accumulate-grad-batches",
        "accum-iter",
        "the micro-batches of an iteration",
    ),
    word(
        "clip-grad clip-grad-norm max-grad-norm grad-norm gradient-clip-val grad-clip-max-norm gclip",
        "grad-clip",
        "the largest norm of the gradient",
    ),
    word(
        "wd weightdecay",
        "weight-decay",
        "1e-4 for AdamW by default",
    ),
    word("beta1 beta2 beta adam-betas", "betas", "as in 0.9,0.99"),
    word(
        "dataroot-gt dataroot-hr gt gt-dir hr-dir hr-root gt-folder hr-folder",
        "hr",
        "the folder of the HR images (training itself reads the shards that `paragon shard` makes)",
    ),
    word(
        "dataroot-lq lq-dir lq-folder lr-dir lr-folder dataroot-lr",
        "lq",
        "the folder of the LQ images (training itself reads the shards that `paragon shard` makes)",
    ),
    word(
        "data data-dir data-root dataroot data-path dataset dataset-dir train-dir train-data root dir-data data-train",
        "shards",
        "the folder of a set that `paragon shard FOLDER` made",
    ),
    word(
        "model arch net network-g which-model model-name archs model-type",
        "network",
        "a name that `paragon networks` lists",
    ),
    word(
        "upscale upscale-factor scale-factor sf outscale s",
        "scale",
        "HR side over LQ side, which is chosen when the set is made; training takes that of its shards",
    ),
    word(
        "loss-fn losses criterion pixel-opt loss-type loss-weight",
        "loss",
        "as in l1:1 (charbonnier, mse, ssim and mssim are there, too); may be repeated",
    ),
    word(
        "gan gan-opt discriminator network-d adversarial perceptual perceptual-opt vgg lpips",
        "",
        "there are no discriminators and no perceptual losses; --loss takes l1, charbonnier, mse, ssim and mssim",
    ),
    word(
        "hflip use-hflip flip augment aug augmentation",
        "no-hflip",
        "to turn flips off, which are on by default (turns: --no-rot)",
    ),
    word(
        "rot use-rot rotate rotation",
        "no-rot",
        "to turn quarter turns off, which are on by default",
    ),
    word(
        "moa use-moa mixup cutmix cutblur",
        "",
        "augmentations are flips and quarter turns alone (--no-hflip, --no-rot turn them off)",
    ),
    word(
        "tb tensorboard use-tb-logger wandb logger",
        "",
        "TensorBoard files are always written, to RUN/tensorboard; `paragon report RUN` makes one page of a run",
    ),
    word(
        "prefetch prefetch-mode prefetch-factor num-prefetch-queue pin-memory queue-size",
        "slots",
        "the batches that exist at once in the prefetch ring",
    ),
    word(
        "compile use-compile torch-compile channels-last use-channels-last cudnn-benchmark deterministic fast-matmul tf32",
        "",
        "this is decided when the program is built: kernels are compiled and fused, activations are NHWC, and a run repeats to the same bits",
    ),
    word(
        "dataset-enlarge-ratio enlarge repeat virtual-epoch",
        "",
        "nothing needs enlarging: epochs follow each other without a pause, and a run is counted in iterations",
    ),
    word(
        "tile-size tiles tilesize",
        "tile",
        "the side of a tile in LQ pixels; the result does not depend on it",
    ),
    word(
        "tile-pad tile-overlap overlap pre-pad",
        "tile",
        "and no overlap to choose: tiles overlap by what the network sees, so their seams are exact",
    ),
    word(
        "input i in source-dir input-dir lq-path",
        "",
        "the input is given without a flag: `paragon upscale IN OUT -m NETWORK`",
    ),
    word(
        "weight weights-file model-path checkpoint-path pth n",
        "model",
        "the network file",
    ),
    word(
        "ycbcr test-y-channel y-channel rgb",
        "",
        "PSNR and SSIM are always measured on both RGB and Y",
    ),
    word(
        "shave border crop-borders",
        "crop-border",
        "the HR pixels at each edge that the metrics leave out",
    ),
    word(
        "max-memory memory gpu-memory max-vram",
        "vram",
        "the most device memory; --host-memory is that of the host",
    ),
    word(
        "early-stopping patience",
        "",
        "a run ends after --iterations; the best network is kept (RUN/models/best_*), and Ctrl-C saves and stops",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_found_in_every_spelling() {
        for text in ["--gt_size", "gt-size", "--GT-Size=256", "gt_size"] {
            let found = foreign(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(found.flag, "lq-size");
        }
        assert_eq!(
            foreign("--gt_size").unwrap().answer(None),
            "paragon has --lq-size, the side of the LQ patch (gt_size / scale)"
        );
        assert!(foreign("--zebra").is_none());
        assert_eq!(foreign_command("test").unwrap().0, "eval");
    }

    #[test]
    fn every_word_is_normal_and_stands_once() {
        let mut seen = HashSet::new();
        for word in FOREIGN_WORDS.iter().flat_map(ForeignWord::words) {
            assert_eq!(normal(word), word);
            assert!(seen.insert(word), "{word} is there twice");
        }
    }
}
