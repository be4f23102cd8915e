#!/usr/bin/env python3
"""Measures the cost of logging, validation and checkpoints: processor time of short, interleaved runs that differ in one of them.

    scripts/measure_overhead.py PARAGON SHARDS PICTURES [--iterations 60] [--rounds 3]

Every run does the same iterations of the default recipe. The cost of one validation or one checkpoint is the difference from the plain
run; that of a log line comes from thousands of iterations on tiny patches. The share of a run is computed with the author's intervals
(1,000 iterations between validations, 10,000 between checkpoints).
"""

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time


TINY_ITERATIONS = 3000
TINY = ["--lq-size", "16", "--batch-size", "2", "--iterations", str(TINY_ITERATIONS), "--threads", "1"]


def measure(command):
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paragon")
    parser.add_argument("shards")
    parser.add_argument("pictures")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    n = args.iterations
    rare = str(10**9)
    plain = ["--iterations", str(n), "--log-every", rare, "--checkpoint-every", rare]
    variants = {
        "plain": [*plain, "--val", "none"],
        "tiny patches": [*plain, "--val", "none", *TINY],
        "tiny patches, a line each": [*plain, "--val", "none", *TINY, "--log-every", "1"],
        "two validations more": [*plain, "--val", args.pictures, "--val-every", str(n // 3)],
        "one validation": [*plain, "--val", args.pictures, "--val-every", rare],
        "ten checkpoints": [*plain, "--val", "none", "--checkpoint-every", str(n // 10)],
    }
    found = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, flags in variants.items():
            # If a flag is given twice, the last one counts.
            last = {flags[i]: flags[i + 1] for i in range(0, len(flags), 2)}
            with tempfile.TemporaryDirectory() as folder:
                run = [args.paragon, "train", "--shards", args.shards, "--out", os.path.join(folder, "run")]
                found[name].append(measure(run + [part for pair in last.items() for part in pair]))
    cpu = {name: statistics.median(c for c, _ in runs) for name, runs in found.items()}
    wall = {name: statistics.median(w for _, w in runs) for name, runs in found.items()}
    for name in variants:
        spread = (max(c for c, _ in found[name]) / min(c for c, _ in found[name]) - 1) * 100
        print(f"{name:28} {cpu[name]:8.2f} s of processor (spread {spread:.1f} %), {wall[name]:8.2f} s")
    iteration = cpu["plain"] / n
    line = (cpu["tiny patches, a line each"] - cpu["tiny patches"]) / TINY_ITERATIONS
    print(f"a log line: {1e6 * line:.0f} us, {100 * line / iteration:+.3f} % of an iteration")
    validation = (cpu["two validations more"] - cpu["one validation"]) / 2
    checkpoint = (cpu["ten checkpoints"] - cpu["plain"]) / 9
    for name, seconds, every in [("validation", validation, 1000), ("checkpoint", checkpoint, 10_000)]:
        print(f"a {name}: {seconds:.3f} s, {100 * seconds / (every * iteration):+.2f} % of a run with one every {every}")


if __name__ == "__main__":
    main()
