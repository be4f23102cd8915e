//! The examples under the help of every command, and what `paragon` alone says. Depends on clap. A
//! test parses every example, so that none can show a flag that does not exist.

use clap::Command;

/// Shown by `paragon` alone and by `paragon --help`.
const START: &str = "Start with: paragon demo\n\n\
Then with photographs of your own:\n  \
  paragon shard Photos --scale 2 --val 20      cut them; 20 images for validation\n  \
  paragon train                                train Nano on the set, into runs/\n  \
  paragon upscale in.png out.png -m runs/paragonsr2_realtime_x2\n\n\
`paragon COMMAND --help` shows the options and examples of a command.";

/// Examples of the command at a path, and what each does.
type Examples = (
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
);

const EXAMPLES: &[Examples] = &[
    (
        &["demo"],
        &[
            (
                "paragon demo",
                "every step in less than a minute, into demo/",
            ),
            (
                "paragon demo --iterations 5000 --out big-demo",
                "a longer training",
            ),
        ],
    ),
    (
        &["synth"],
        &[
            (
                "paragon synth drawn --count 200",
                "200 drawn images to try things on",
            ),
            (
                "paragon synth drawn --size 640x480 --format jpeg",
                "smaller files",
            ),
        ],
    ),
    (
        &["shard"],
        &[
            (
                "paragon shard Photos",
                "HR from Photos, LQ made by bicubic, into shards/",
            ),
            (
                "paragon shard Photos More --scale 4 --lq-size 32 --val 2%",
                "two folders, 4x, some images held out",
            ),
            (
                "paragon shard DIV2K --hr DIV2K/HR --lq DIV2K/LR_x2",
                "pairs that exist already",
            ),
            (
                "paragon shard --config train.yml",
                "the folders of a traiNNer-redux or BasicSR option file",
            ),
            (
                "paragon shard Photos --degrade jpeg --scale 1",
                "pairs for removing JPEG artefacts, from clean photographs",
            ),
            (
                "paragon shard Photos --scale 4 --lq-size 64 --degrade real-esrgan --variants 4",
                "four different degradations of every patch",
            ),
            (
                "paragon shard Photos --scale 4 --lq-size 64 --hr-only",
                "HR alone: `paragon train --degrade` makes the LQ anew for every sample",
            ),
            (
                "paragon shard Photos --append",
                "add the images that are new in the folder",
            ),
            (
                "paragon shard Photos --part auto --out part$SLURM_ARRAY_TASK_ID",
                "in a Slurm array: the part of this task; `paragon shards merge` merges them",
            ),
            (
                "paragon shard Photos --dry-run",
                "expected size and time; nothing is written",
            ),
        ],
    ),
    (
        &["shards", "info"],
        &[
            ("paragon shards info", "of the set in shards/"),
            ("paragon shards info set4x --json", "for a program"),
        ],
    ),
    (
        &["shards", "list"],
        &[
            (
                "paragon shards list",
                "every image of shards/ with its patches",
            ),
            ("paragon shards list set4x --json", "for a program"),
        ],
    ),
    (
        &["shards", "verify"],
        &[("paragon shards verify set4x", "decode every pair")],
    ),
    (
        &["shards", "extract"],
        &[
            (
                "paragon shards extract --record 0 --record 7 --out pairs",
                "two pairs of shards/",
            ),
            (
                "paragon shards extract set4x --source holiday/beach.jpg --out pairs",
                "all pairs of one image",
            ),
        ],
    ),
    (
        &["shards", "sheet"],
        &[
            ("paragon shards sheet sheet.png", "12 pairs of shards/"),
            (
                "paragon shards sheet set4x sheet.png --count 40",
                "more, of another set",
            ),
        ],
    ),
    (
        &["shards", "merge"],
        &[(
            "paragon shards merge whole part1 part2 part3",
            "the parts of `paragon shard --part`",
        )],
    ),
    (
        &["shards", "remove"],
        &[
            ("paragon shards remove old-set --yes", "delete a set"),
            (
                "paragon shards remove shards --source holiday/beach.jpg",
                "how to make the set without an image",
            ),
        ],
    ),
    (
        &["degrade"],
        &[
            (
                "paragon degrade Photos sheet.png --recipe real-esrgan --scale 4",
                "a contact sheet: HR beside four LQ, with the parameters of each",
            ),
            (
                "paragon degrade photo.png --recipe jpeg --scale 1 --explain",
                "only the drawn parameters, as text",
            ),
            (
                "paragon degrade --show web",
                "the file of a preset, as a start for one's own",
            ),
        ],
    ),
    (
        &["plan"],
        &[
            (
                "paragon plan --vram 12G",
                "will the default training fit a card of 12 GiB?",
            ),
            (
                "paragon plan --vram 12G --max",
                "the largest batch for each patch",
            ),
            (
                "paragon plan --network span --scale 4 --time",
                "memory, and how long it would take here",
            ),
            (
                "paragon plan --network pro --ranks 8",
                "what each of eight ranks takes",
            ),
        ],
    ),
    (
        &["train"],
        &[
            (
                "paragon train",
                "the published Nano recipe on shards/; the same command again resumes",
            ),
            (
                "paragon train --preset quick --iterations 2000 --name try1",
                "a short run, in runs/try1",
            ),
            (
                "paragon train --config runs/try1/config.yml --iterations 4000",
                "extends that run, with its own settings",
            ),
            (
                "paragon train --name fine --pretrain runs/try1 --lr 5e-5",
                "a new run from a trained network",
            ),
            (
                "mpirun -n 4 paragon train --shards /data/set --out runs/four",
                "four processes on one or several hosts (docs/clusters.md)",
            ),
            (
                "torchrun --nproc-per-node 8 --no-python paragon train --shards /data/set --device cuda",
                "eight GPUs of one host, by the torchrun of PyTorch",
            ),
            (
                "paragon train --shards photos --shards drawings --weights 3,1",
                "two sets, three to one",
            ),
            (
                "paragon train --config train.yml --shards shards",
                "a traiNNer-redux option file as it is",
            ),
        ],
    ),
    (
        &["config", "explain"],
        &[
            ("paragon config explain lr", "a key by its last word"),
            (
                "paragon config explain gt_size",
                "a word of another trainer",
            ),
            ("paragon config explain quick", "what a preset sets"),
        ],
    ),
    (
        &["config", "init"],
        &[("paragon config init my.yml", "a commented file to edit")],
    ),
    (
        &["config", "import"],
        &[(
            "paragon config import train.yml --out my.yml",
            "convert a traiNNer-redux option file",
        )],
    ),
    (
        &["config", "schema"],
        &[("paragon config schema", "for an editor with YAML support")],
    ),
    (
        &["config", "reference"],
        &[(
            "paragon config reference",
            "the text of docs/configuration.md",
        )],
    ),
    (
        &["networks"],
        &[
            ("paragon networks", "for people"),
            ("paragon networks --json", "for a program"),
        ],
    ),
    (
        &["bench", "loader"],
        &[
            (
                "paragon bench loader --shards shards",
                "is the loader fast enough for a step here?",
            ),
            (
                "paragon bench loader --threads 2 --step-ms 90",
                "with a known step",
            ),
        ],
    ),
    (
        &["bench", "step"],
        &[
            (
                "paragon bench step",
                "Nano x2 on the default device, and the time of a whole run",
            ),
            (
                "paragon bench step --network span --scale 4 --lq-size 64 --batch-size 8",
                "another network",
            ),
        ],
    ),
    (
        &["bench", "upscale"],
        &[
            (
                "paragon bench upscale --network span --scale 4 --size 512",
                "seconds for an image",
            ),
            (
                "paragon bench upscale --device cuda --precision bf16",
                "on a GPU, in halves",
            ),
        ],
    ),
    (
        &["selftest"],
        &[("paragon selftest --device cuda:1", "of the second card")],
    ),
    (
        &["report"],
        &[
            ("paragon report runs/try1", "writes runs/try1/report.html"),
            (
                "paragon report runs/try1 runs/try2",
                "compares two runs in comparison.html",
            ),
        ],
    ),
    (
        &["export"],
        &[
            (
                "paragon export runs/try1 --onnx --precision f32,fp16 --out release",
                "two ONNX files of the run's best network",
            ),
            (
                "paragon export runs/try1 --safetensors --half --out release",
                "for chaiNNer and spandrel (Compact, SPAN)",
            ),
            (
                "paragon export runs/try1 --onnx --openmodeldb --author me --license CC-BY-4.0 --out release",
                "with the entry for OpenModelDB",
            ),
        ],
    ),
    (
        &["eval"],
        &[
            (
                "paragon eval Set5 -m runs/try1",
                "PSNR and SSIM of a run's best network, beside bicubic",
            ),
            (
                "paragon eval shards/val -m runs/try1",
                "on the held-out pairs of a set",
            ),
            (
                "paragon eval Set5 -m runs/a -m runs/b -m 2x.pth",
                "side by side, and image by image",
            ),
        ],
    ),
    (
        &["upscale"],
        &[
            (
                "paragon upscale in.png out.png -m runs/try1",
                "one image, by the best network of a run",
            ),
            (
                "paragon upscale Photos Large -m 4x_model.pth --format webp",
                "a folder and those below it",
            ),
            (
                "paragon upscale Photos Large -m runs/try1 --device cuda --vram 6G",
                "on the GPU, in at most 6 GiB of its memory",
            ),
        ],
    ),
    (
        &["completions"],
        &[
            (
                "paragon completions bash",
                "write it to ~/.local/share/bash-completion/completions/paragon",
            ),
            (
                "paragon completions zsh",
                "write it to a file _paragon in a folder of $fpath",
            ),
        ],
    ),
    (
        &["man"],
        &[
            (
                "paragon man shard",
                "the page of a command; `paragon man | man -l -` shows it",
            ),
            (
                "paragon man --out ~/.local/share/man/man1",
                "every page, for `man paragon-shard`",
            ),
        ],
    ),
];

/// The text under the help.
fn text(examples: &[(&str, &str)]) -> String {
    let mut out = String::from("Examples:");
    for (command, what) in examples {
        out += &format!("\n  {command}\n      {what}");
    }
    out
}

/// Gives a command and those below it their examples.
pub fn with_examples(command: Command) -> Command {
    EXAMPLES
        .iter()
        .fold(command.after_help(START), |command, (path, examples)| {
            add(command, path, &text(examples))
        })
}

fn add(command: Command, path: &[&str], text: &str) -> Command {
    match path {
        [] => command.after_help(text.to_string()),
        [first, rest @ ..] if command.find_subcommand(first).is_some() => {
            command.mut_subcommand(first, |inner| add(inner, rest, text))
        }
        _ => command,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::CommandFactory;

    /// Every command without commands of its own.
    fn leaves<'a>(command: &'a Command, path: &str, out: &mut Vec<(String, &'a Command)>) {
        for inner in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let path = format!("{path} {}", inner.get_name());
            if inner.has_subcommands() {
                leaves(inner, &path, out);
            } else {
                out.push((path, inner));
            }
        }
    }

    #[test]
    fn every_command_has_examples() {
        let command = with_examples(Cli::command());
        let mut all = Vec::new();
        leaves(&command, "paragon", &mut all);
        assert!(all.len() > 20, "{}", all.len());
        for (path, leaf) in all {
            let shown = leaf.get_after_help().or(leaf.get_after_long_help());
            assert!(
                shown.is_some_and(|text| text.to_string().contains("paragon ")),
                "{path}"
            );
        }
    }

    #[test]
    fn every_example_is_a_command_that_parses() {
        for (path, examples) in EXAMPLES {
            for (example, _) in *examples {
                let launchers = ["mpirun -n 4 ", "torchrun --nproc-per-node 8 --no-python "];
                let started = launchers
                    .iter()
                    .find_map(|start| example.strip_prefix(start));
                let started = started.unwrap_or(example);
                let words: Vec<&str> = started.split(' ').collect();
                assert_eq!(&words[1..=path.len()], *path, "{example}");
                if let Err(error) = Cli::command().try_get_matches_from(words) {
                    panic!("{example}: {error}");
                }
            }
        }
    }
}
