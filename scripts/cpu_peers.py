#!/usr/bin/env python3
"""Compares paragon with PyTorch on this machine's processor: a training step (forward, L1, backward, clipping, AdamW, EMA) and an
image upscaled from u8 to u8, for Nano, Stream, Photo, Pro, SPAN and Compact. Everything is measured in turn, round after round,
because machines drift. Depends on torch and safetensors; prints tables of medians, and JSON with --json FILE.

    cpu_peers.py target/release/paragon                       # all networks at their own batch and LQ size
    cpu_peers.py target/release/paragon --network photo --network pro
    cpu_peers.py target/release/paragon --network compact --set features=24 --set convolutions=8
    cpu_peers.py --check ../shared/golden                     # the PyTorch networks against reference numbers, nothing else

Networks, at x2: Nano, 16 patches of LQ 128; Stream, 4 of LQ 128; Photo, 2 of LQ 128; Pro, 1 of LQ 64; SPAN with 48 features, 8 of
LQ 64; Compact with 64 features and 16 convolutions, 8 of LQ 64. The image has 512 x 512 pixels, for Pro 256 x 256.

paragon's step is measured in f32 and with --precision bf16; for Photo and Pro in both with --recompute none and block, and PyTorch is
compared with f32 and none. Their image is one tile in paragon, so that nothing is computed twice.

PyTorch's modes: f32 and bf16 (autocast), eager and compiled. The first round measures each mode in every setting: channels-last and
contiguous tensors, glibc as it comes and told to keep big blocks (MALLOC_MMAP_THRESHOLD_, which spares it mapping them anew in every
step). For Photo and Pro the first setting is measured with both forms of window attention (fused, and by softmax with the weights in
memory), and the others with the faster one. Later rounds repeat each mode in the setting that was the fastest. AdamW is the faster of
fused and foreach. A mode that cannot be measured, and a network that paragon refuses, are reported with the reason, and the rest goes
on. Photo and Pro take long: one mode of PyTorch has five settings with about ten steps each, and compiling takes minutes.

SPAN is trained in PyTorch as its author does, with all seven tensors of a convolution in use; --span-composed gives PyTorch
paragon's form, one 3x3 convolution composed in every step. For upscaling both use the composed convolutions.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from peers.cases import CASES

HERE = Path(__file__).resolve().parent
# name -> arguments of the worker
MODES = {
    "f32": ["--precision", "f32"],
    "f32-compiled": ["--precision", "f32", "--compile"],
    "bf16": ["--precision", "bf16"],
    "bf16-compiled": ["--precision", "bf16", "--compile"],
}
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
# name -> (the worker's --layout, additions to its environment); --quick measures the first only
SETTINGS = {
    "channels last, big blocks kept": ("channels_last", KEEP),
    "contiguous, big blocks kept": ("contiguous_format", KEEP),
    "channels last": ("channels_last", {}),
    "contiguous": ("contiguous_format", {}),
}
# form of window attention -> its name in a setting
ATTENTION = {"fused": "fused attention", "softmax": "attention by softmax"}
PRECISIONS = ("f32", "bf16")  # of paragon's steps; images are upscaled in f32
OURS = "paragon f32"
LEAST_TILE = 1024  # LQ pixels; paragon refuses tiles that are smaller than Photo's overlap
WORKER_LIMIT = 1800  # seconds; compiling on a busy machine takes minutes


class NotAvailable(Exception):
    """Something cannot be measured here; the message is the reason."""


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def pytorch(arguments, environment):
    """What one worker process prints, as a dictionary."""
    command = [sys.executable, "-m", "peers.worker", *arguments]
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=WORKER_LIMIT,
                             env={**os.environ, **environment, "PYTHONPATH": paths})  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"not done after {WORKER_LIMIT} s") from None
    if run.returncode:
        reasons = [line for line in run.stderr.splitlines() if "Error" in line]
        raise NotAvailable((reasons[-1] if reasons else f"exit code {run.returncode}: {last_line(run.stderr)}").strip())
    return json.loads(last_line(run.stdout))


class Program:
    """The `paragon` that is compared; it knows which flags this version of it has."""

    def __init__(self, binary):
        self.binary = binary
        if shutil.which(binary) is None:
            sys.exit(f"{binary} is not a program")

    def bench(self, what, network, arguments):
        """The JSON of `paragon bench WHAT`. `network`: the name, and the settings that differ from its own."""
        name, settings = network
        flags = subprocess.run([self.binary, "bench", what, "--help"], capture_output=True, text=True).stdout
        command = [self.binary, "bench", what, "--arch" if "--arch" in flags else "--network", name]
        if what == "upscale" and "--device" in flags:
            command += ["--device", "cpu"]
        for key, value in settings.items():
            command += ["--network-set" if "--network-set" in flags else "--set", f"{key}={value}"]
        run = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True)
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if line.startswith("error")]
            raise NotAvailable((errors or [last_line(run.stderr)])[0].removeprefix("error: "))
        return json.loads(run.stdout)

    def step(self, network, a, sizes, repeat, precision, recompute):
        """Seconds, MiB of the arena, and the share of the peak of multiply-adds in that precision. `sizes`: batch and LQ size."""
        batch, lq = sizes
        found = self.bench("step", network, ["--scale", str(a.scale), "--batch-size", str(batch), "--lq-size", str(lq),
                                             "--threads", str(a.threads), "--steps", str(repeat), "--step-only",
                                             "--precision", precision, "--recompute", recompute])  # fmt: skip
        if precision == "bf16" and "bf16" not in found["device"]:
            raise NotAvailable("the processor has no unit for bf16")
        peak = 2 * found["multiply_adds"] / found["step_seconds"] / found["fma_peak"]
        return {"seconds": found["step_seconds"], "mb": found["allocated_bytes"] >> 20, "share_of_peak": peak}

    def image(self, network, a, size, more):
        """Seconds, MiB of anonymous memory, and the share of the FMA peak. `more`: further arguments."""
        found = self.bench("upscale", network, ["--device", "cpu", "--scale", str(a.scale), "--size", str(size), "--threads", str(a.threads), *more])
        return {"seconds": found["seconds"], "mb": (found["anonymous_bytes"] or 0) >> 20, "share_of_peak": found["share_of_peak"]}


class Comparison:
    """What was measured of one thing, a step or an image: for each name a list of results, or the reason why there is none."""

    def __init__(self, title, ours):
        self.title = title
        self.ours = ours  # the program's modes, as `paragon f32`; the others are compared with the first
        self.results = {}  # (mode, setting) -> list of results; the program's have the setting ""
        self.missing = {}  # mode -> reason

    def measure(self, mode, setting, function):
        """Measures once, and says so on stderr; a mode that failed is not tried again."""
        if mode in self.missing:
            return
        try:
            result = function()
        except NotAvailable as reason:
            self.missing[mode] = str(reason)
            result = None
        else:
            self.results.setdefault((mode, setting), []).append(result)
        outcome = f"{result['seconds']:.4f} s" if result else f"not available: {self.missing[mode]}"
        print(f"{self.title}; {mode}{', ' * bool(setting)}{setting}: {outcome}", file=sys.stderr, flush=True)

    def seconds(self, mode, setting):
        return statistics.median(r["seconds"] for r in self.results[mode, setting])

    def fastest(self, mode):
        """The setting in which the mode was the fastest; None if it was not measured."""
        settings = [s for m, s in self.results if m == mode]
        return min(settings, key=lambda s: self.seconds(mode, s), default=None)

    def print(self, modes):
        print(f"\n| {self.title} | fastest with | s | MB | against paragon |\n|---|---|---|---|---|")
        first = (self.ours[0], "")
        ours = self.seconds(*first) if first in self.results else None
        for mode in (*self.ours, *modes):
            setting = self.fastest(mode)
            if setting is None and mode not in self.missing:
                continue
            name = mode if mode in self.ours else "PyTorch " + mode.replace("-", ", ")
            if setting is None:
                print(f"| {name} | not available: {self.missing[mode]} | | | |")
                continue
            results, seconds = self.results[mode, setting], self.seconds(mode, setting)
            optimizer = ", ".join(sorted({f"{r['optimizer']} AdamW" for r in results if r.get("optimizer")}))
            how = ", ".join(filter(None, (setting, optimizer)))
            against = f"{seconds / ours:.2f}x" if ours else ""
            print(f"| {name} | {how} | {seconds:.4f} | {max(r['mb'] for r in results)} | {against} |")
        shares = []
        for mode in self.ours:
            if (mode, "") in self.results:
                share = statistics.median(r["share_of_peak"] for r in self.results[mode, ""])
                shares.append(f"{mode} {100 * share:.0f} % of the {'peak of bf16 products' if 'bf16' in mode else 'FMA peak'}")
        if shares:
            print(f"\nuseful operations: {'; '.join(shares)}")

    def as_json(self):
        rows = [{"mode": mode, "setting": setting, "results": results} for (mode, setting), results in self.results.items()]
        return {"title": self.title, "rows": rows, "not_available": self.missing}


def sizes_of(name, a):
    """The network's sizes, and of them those that differ from its own."""
    own = CASES[name].sizes
    return {**own, **a.set}, {key: value for key, value in a.set.items() if own.get(key) != value}


def settings_of(case):
    """All settings of PyTorch for a network: name -> (arguments of the worker, additions to its environment)."""
    forms = ATTENTION if case.attention else {"": ""}
    return {", ".join(filter(None, (place, said))): (["--layout", layout, *(["--attention", form] if form else [])], environment)
            for place, (layout, environment) in SETTINGS.items()
            for form, said in forms.items()}  # fmt: skip


def settings_to_try(case, comparison, mode, again, quick):
    """Yields the names of the settings in which a mode is measured in this round. `again`: it is not the first round."""
    if again:
        yield from filter(None, [comparison.fastest(mode)])
        return
    names = list(settings_of(case))
    forms = len(names) // len(SETTINGS)
    yield from names[:forms]
    # What was measured by now decides on the form of attention in the other settings.
    fastest = comparison.fastest(mode)
    if fastest is not None and not quick:
        yield from names[names.index(fastest) + forms :: forms]


def compare(name, a, program):
    """Measures one network in every round. Returns the two comparisons."""
    case = CASES[name]
    batch, lq = a.batch or case.batch, a.lq or case.lq
    size = a.size or case.image
    sizes, changed = sizes_of(name, a)
    said = "".join(f", {value} {key}" for key, value in sizes.items())
    several = len(case.recompute) > 1
    levels = {f"paragon {precision}" + f", recompute {level}" * several: (precision, level)
              for precision in PRECISIONS for level in case.recompute}  # fmt: skip
    step = Comparison(f"a step, {case.title} x{a.scale}{said}, {batch} x LQ {lq}", list(levels))
    image = Comparison(f"an image, {case.title} x{a.scale}{said}, {size} x {size}", [OURS])
    todo = [("step", step, ["--batch", str(batch), "--lq", str(lq), "--repeat", "4"]),
            ("image", image, ["--size", str(size), "--repeat", "4"])]  # fmt: skip
    ours, repeat = (case.program, changed), 1 if case.attention else 4
    one_tile = ["--tile", str(max(size, LEAST_TILE)), "--pictures", "5"] if case.attention else []
    training = {**sizes, **({"composed": True} if name == "span" and a.span_composed else {})}
    common = ["--scale", str(a.scale), "--threads", str(a.threads), "--sizes", json.dumps(training)]
    for round_ in range(a.rounds):
        for mode in a.mode:
            for what, comparison, arguments in todo:
                if a.only not in (None, what):
                    continue
                if what == "step":
                    for level, form in levels.items():
                        comparison.measure(level, "", lambda: program.step(ours, a, (batch, lq), repeat, *form))
                else:
                    comparison.measure(OURS, "", lambda: program.image(ours, a, size, one_tile))
                for setting in settings_to_try(case, comparison, mode, round_ > 0, a.quick):
                    more, environment = settings_of(case)[setting]
                    command = [what, name, *arguments, *common, *more, *MODES[mode]]
                    comparison.measure(mode, setting, lambda: pytorch(command, environment))
    return [comparison for what, comparison, _ in todo if a.only in (None, what)]


def check(folder, names, must):
    """Compares the PyTorch networks with golden numbers; ends the program where they differ."""
    from peers.golden import check as check_golden

    failed = check_golden(folder, names)
    if failed is None and must:
        sys.exit(f"no golden files of {', '.join(names)} in {folder}")
    if failed is None:
        print(f"SKIP check of the PyTorch networks: no golden files in {folder}")
    elif failed:
        sys.exit(f"{failed} checks of the PyTorch networks failed")


def setting(text):
    key, _, value = text.partition("=")
    if not value.isdigit() or int(value) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=NUMBER")
    return key, int(value)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("paragon", nargs="?", help="the program, built with --release")
    p.add_argument("--network", action="append", choices=CASES, help="a network, may be repeated [default: all]")
    p.add_argument("--batch", type=int, help="patches in a batch [default: the network's own]")
    p.add_argument("--lq", type=int, help="side of the LQ patch in pixels [default: the network's own]")
    p.add_argument("--scale", type=int, default=2, help="HR pixels per LQ pixel along one side [default: 2]")
    p.add_argument("--set", action="append", type=setting, default=[], metavar="KEY=NUMBER",
                   help="a size of the network: features, and for Compact convolutions; may be repeated")  # fmt: skip
    p.add_argument("--size", type=int, help="side in pixels of the image that is upscaled [default: 512, for Pro 256]")
    p.add_argument("--rounds", type=int, default=3, help="rounds, of which the medians are printed [default: 3]")
    p.add_argument("--mode", action="append", choices=MODES, help="a mode of PyTorch, may be repeated [default: all]")
    p.add_argument("--only", choices=("step", "image"), help="measure steps or images only")
    p.add_argument("--quick", action="store_true", help=f"try one setting of PyTorch only ({next(iter(SETTINGS))}), "
                   "for Photo and Pro with both forms of attention")  # fmt: skip
    p.add_argument("--span-composed", action="store_true", help="train SPAN in PyTorch with composed convolutions")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of both [default: one for each core]")
    p.add_argument("--json", metavar="FILE", help="write everything that was measured")
    p.add_argument("--check", metavar="FOLDER", help="check the PyTorch networks against the golden files in FOLDER, and stop")
    a = p.parse_args()
    a.network = a.network or list(CASES)
    a.mode = a.mode or list(MODES)
    a.set = dict(a.set)
    if not a.check and not a.paragon:
        p.error("give the path of the program, or --check")
    for name in a.network:
        for key in a.set:
            if key not in CASES[name].sizes:
                p.error(f"{CASES[name].title} has no {key}; choose the networks by --network")
    return a


def main():
    a = arguments()
    if a.check:
        check(a.check, a.network, True)
        return
    shared = Path(os.environ.get("PARAGON_SHARED") or HERE.parents[1] / "shared")
    check(shared / "golden", a.network, False)
    program = Program(a.paragon)
    compared = []
    for name in a.network:
        for comparison in compare(name, a, program):
            comparison.print(a.mode)
            compared.append(comparison)
        sys.stdout.flush()
    versions = {r["torch"] for c in compared for results in c.results.values() for r in results if "torch" in r}
    print(f"\nPyTorch {', '.join(sorted(versions))}; {a.threads} threads, {a.rounds} rounds")
    print("MB: PyTorch's processes at most, resident; paragon's arena (step) or anonymous memory (image), in MiB")
    if a.json:
        Path(a.json).write_text(json.dumps({"threads": a.threads, "rounds": a.rounds, "compared": [c.as_json() for c in compared]}, indent=1))


if __name__ == "__main__":
    main()
