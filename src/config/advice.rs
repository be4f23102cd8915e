//! What `config explain` adds to a key: the range that is usual, and a sentence of advice. Depends
//! on nothing; a test checks that every key that networks do not bring has an entry.

/// Path of a key, the values that are usual (empty where the default says enough), and advice.
type Advice = (&'static str, &'static str, &'static str);

/// The usual values and the advice for a key.
pub fn advice(path: &str) -> Option<(&'static str, &'static str)> {
    let found = ADVICE.iter().find(|(key, ..)| *key == path);
    found.map(|(_, usual, text)| (*usual, *text))
}

const ADVICE: &[Advice] = &[
    (
        "name",
        "a short word without spaces",
        "Give each experiment a name of its own, so that runs stay apart.",
    ),
    (
        "scale",
        "2 or 4",
        "Choose it when the set is made (`paragon shard --scale`).",
    ),
    (
        "manual_seed",
        "any number",
        "Change it to see how much results vary by chance alone, often 0.02 dB.",
    ),
    (
        "network_g.type",
        "",
        "Begin with paragonsr2_realtime (Nano), which trains fastest; `paragon networks` lists the others.",
    ),
    (
        "path.pretrain_network_g",
        "the best network of an earlier run",
        "Fine-tuning wants a lower rate: about a quarter of the first one.",
    ),
    (
        "path.strict_load_g",
        "true",
        "Turn it off to begin a 4x network from a 2x one: all but the last layers fit.",
    ),
    (
        "path.out",
        "runs/NAME",
        "Use a new folder for a new recipe.",
    ),
    (
        "data.shards",
        "1 to 3 sets",
        "Several sets are mixed; data.weights sets their shares.",
    ),
    (
        "data.weights",
        "1 to 10 each",
        "3,1 takes three patches of the first set for one of the second.",
    ),
    (
        "data.lq_size",
        "32 to 128",
        "A larger patch shows the network more context and costs time in proportion to its area.",
    ),
    (
        "data.batch_size_per_gpu",
        "8 to 32",
        "A larger batch gives steadier steps; where memory ends, raise data.accum_iter instead.",
    ),
    ("data.accum_iter", "1 to 4", "It saves memory and no time."),
    (
        "data.use_hflip",
        "true",
        "Turn it off only for images in which left and right differ, such as text.",
    ),
    (
        "data.use_rot",
        "true",
        "Turn it off only for images in which up and down differ, such as text.",
    ),
    (
        "data.num_worker_per_gpu",
        "1 to 8",
        "`paragon bench loader` says whether the loader is fast enough; more threads do not help then.",
    ),
    (
        "data.slots",
        "4 to 16",
        "More slots take memory and help only where reading is uneven, as over a network.",
    ),
    (
        "data.io",
        "auto",
        "Take pread for shards on a network disk.",
    ),
    (
        "data.window",
        "auto",
        "Smaller windows read less at random and mix less well.",
    ),
    (
        "data.degrade",
        "the recipe of the set",
        "`paragon degrade` shows what a recipe makes of your images; for a set of HR alone it must be there.",
    ),
    (
        "data.on_corrupt",
        "stop",
        "Take substitute only to finish a run; `paragon shards verify` finds the damage.",
    ),
    (
        "train.total_iter",
        "20000 to 500000",
        "40000 are enough for Nano; papers use 500000 for the last 0.1 dB.",
    ),
    (
        "train.warmup_iter",
        "0 to 2000",
        "At most a tenth of the run.",
    ),
    (
        "train.ema_decay",
        "0.99 to 0.9999",
        "A longer run wants a value closer to 1; 0 turns averaging off.",
    ),
    (
        "train.ema_power",
        "0.6 to 0.9",
        "Smaller values average longer at the beginning.",
    ),
    (
        "train.grad_clip",
        "0.5 to 5",
        "Keep it on: it costs nothing and saves a run from a bad batch.",
    ),
    (
        "train.optim_g.type",
        "AdamW",
        "The two differ only through the weight decay.",
    ),
    (
        "train.optim_g.lr",
        "1e-4 to 1e-3",
        "Halve it where the loss jumps; fine-tuning wants about a quarter.",
    ),
    (
        "train.optim_g.betas",
        "0.9 and 0.99 to 0.999",
        "Higher second values react more slowly to a change of the gradient.",
    ),
    (
        "train.optim_g.weight_decay",
        "0 to 1e-2",
        "Small networks want little of it.",
    ),
    (
        "train.optim_g.eps",
        "1e-8",
        "There is hardly a reason to change it.",
    ),
    (
        "train.scheduler.type",
        "MultiStepLR or CosineAnnealingLR",
        "The cosine needs no milestones; do not extend a run that it has ended.",
    ),
    (
        "train.scheduler.milestones",
        "at 75 % and 88 % of the run",
        "Move them with train.total_iter.",
    ),
    (
        "train.scheduler.gamma",
        "0.5",
        "Smaller factors fall faster.",
    ),
    (
        "train.scheduler.eta_min",
        "1e-7 to 1e-5",
        "It matters little, as the last iterations are few.",
    ),
    (
        "train.losses",
        "l1:1 alone, or with ssim:0.05",
        "l1 or charbonnier give the best PSNR; a little ssim keeps edges.",
    ),
    (
        "val.dataset",
        "10 to 100 images",
        "Take images that are not in the set; `paragon shard --val` holds some out.",
    ),
    (
        "val.val_freq",
        "500 to 5000",
        "A validation of 100 images takes as long as some hundred iterations.",
    ),
    (
        "val.crop_border",
        "the scale",
        "Papers leave out as many pixels as the scale; other values cannot be compared with them.",
    ),
    ("logger.print_freq", "10 to 1000", "It costs no time."),
    (
        "logger.save_checkpoint_freq",
        "500 to 5000",
        "At most so many iterations are lost when the machine fails.",
    ),
    (
        "logger.keep_states",
        "1 to 3",
        "A state holds weights, average and moments: four times the network file.",
    ),
    (
        "logger.keep_models",
        "5 to 20",
        "The best network is kept besides these.",
    ),
    (
        "logger.keep_every",
        "5000 to 50000",
        "These are for curves over the whole run; each takes a network file.",
    ),
    (
        "machine.device",
        "auto",
        "One process trains on one device; start a second run for a second card.",
    ),
    (
        "machine.precision",
        "auto",
        "f32 on CUDA is for comparisons, at half of the speed or less.",
    ),
    (
        "machine.threads",
        "one for each core",
        "Give fewer to keep the machine usable.",
    ),
    (
        "machine.host_memory",
        "half of the machine's memory or more",
        "State it to have a run refused, or its iterations split, before it starts.",
    ),
    (
        "machine.vram",
        "1 GiB less than the card has",
        "Sizes are in binary units: 12G is 12 GiB, so that of a card of 12 GiB is a little less than 12G.",
    ),
    (
        "machine.recompute",
        "auto",
        "block costs about a third more time for a fraction of the memory.",
    ),
    (
        "machine.fit",
        "true",
        "Splitting does not change the result by more than rounding.",
    ),
];

#[cfg(test)]
mod tests {
    use super::super::{KEYS, TYPE};
    use super::*;

    #[test]
    fn every_key_of_the_table_has_advice_and_no_other() {
        let of_a_network = |path: &str| path.starts_with("network_g.") && path != TYPE;
        for key in KEYS.iter().filter(|key| !of_a_network(key.path)) {
            assert!(advice(key.path).is_some(), "{}", key.path);
        }
        for (path, ..) in ADVICE {
            assert!(KEYS.iter().any(|key| key.path == *path), "{path}");
        }
    }
}
