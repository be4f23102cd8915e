#!/usr/bin/env python3
"""Compares paragon with PyTorch on this machine's processor: a training step (Nano x2, L1, AdamW, clipping) and upscaling an image. The
modes run in interleaved rounds, because the speed of machines drifts. Depends on torch; prints a table of medians, and JSON with --json FILE.

    cpu_peers.py target/release/paragon [--rounds 3] [--batch 16] [--lq 128] [--size 512] [--json FILE]

PyTorch's modes: eager and compiled, f32 and bf16, channels last, each with the defaults of glibc and with a setting that keeps large blocks
(MALLOC_MMAP_THRESHOLD_), so that they are not mapped again in every step.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODES = [("fp32",), ("fp32", "c"), ("bf16",), ("bf16", "c")]
NAMES = {("fp32",): "PyTorch f32", ("fp32", "c"): "PyTorch f32, compiled", ("bf16",): "PyTorch bf16", ("bf16", "c"): "PyTorch bf16, compiled"}
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30)}


def torch(script, arguments, keep):
    """Returns seconds and MB of one process."""
    command = [sys.executable, str(HERE / script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(KEEP if keep else {})})
    found = re.search(r"median s/\w+ ([\d.]+).* RSS MB (\d+)", run.stdout)
    if not found:
        sys.exit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return float(found[1]), int(found[2])


def paragon(binary, arguments):
    run = subprocess.run([binary, "bench", *arguments, "--json"], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{binary} bench {' '.join(arguments)} failed:\n{run.stderr}")
    return json.loads(run.stdout)


def table(title, rows, ours):
    """Prints a table; `rows` is {name: [(seconds, MB)]}."""
    print(f"\n| {title} | s | MB | against paragon |\n|---|---|---|---|")
    best = statistics.median(s for s, _ in rows[ours])
    for name, values in rows.items():
        seconds = statistics.median(s for s, _ in values)
        print(f"| {name} | {seconds:.4f} | {max(m for _, m in values)} | {seconds / best:.2f}x |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("paragon")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lq", type=int, default=128)
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--json")
    a = p.parse_args()
    steps, pictures = {"paragon f32": []}, {"paragon f32": []}
    peaks = []
    for _ in range(a.rounds):
        for mode in MODES:
            for keep in (False, True):
                name = NAMES[mode] + (", big blocks kept" if keep else "")
                step = torch("torch_step.py", ["realtime", str(a.batch), str(a.lq), "cl", *mode], keep)
                steps.setdefault(name, []).append(step)
                pictures.setdefault(name, []).append(torch("torch_upscale.py", [str(a.size), "cl", *mode], keep))
        # Paragon runs in every round, beside PyTorch.
        step = paragon(a.paragon, ["step", "--device", "cpu", "--lq-size", str(a.lq), "--batch-size", str(a.batch)])
        steps["paragon f32"].append((step["step_seconds"], step["allocated_bytes"] >> 20))
        peaks.append(2 * step["multiply_adds"] / step["step_seconds"] / step["fma_peak"])
        picture = paragon(a.paragon, ["upscale", "--size", str(a.size)])
        pictures["paragon f32"].append((picture["seconds"], (picture["anonymous_bytes"] or 0) >> 20))
    table(f"a step, LQ {a.lq}, batch {a.batch}", steps, "paragon f32")
    table(f"an image, {a.size} x {a.size}", pictures, "paragon f32")
    print(f"\nparagon's step: {100 * statistics.median(peaks):.0f} % of the FMA peak in useful operations")
    print("MB: PyTorch's processes at most, resident; paragon's arena (step) and anonymous memory (image)")
    if a.json:
        Path(a.json).write_text(json.dumps({"steps": steps, "pictures": pictures, "share_of_peak": peaks}, indent=1))


if __name__ == "__main__":
    main()
