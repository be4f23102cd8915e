#!/usr/bin/env python3
"""The modelled time of a training step of every network, from the plan alone: `scripts/kernel_costs.py --networks --type f32|bf16`, or where its
packages are missing `scripts/network_costs.py [PARAGON [f32|bf16]]`.

For every kind of operation `paragon plan --device cuda --json` states the least bytes, the multiply-adds, the workspaces and the launches. An
operation takes the longer of its arithmetic and its bytes, and a pause for every launch:
  * arithmetic: two operations a multiply-add, at the share of the card's f32 peak in SHARES (docs/cuda.md derives those of convolutions). In a half
    precision the operations in ON_TENSOR_CORES take TENSOR_SHARE of the tensor cores' rate instead; no card has shown that share yet. The
    reconstruction is counted as the one convolution that the kernels compute, and Stream's block, in a half precision, as its own kernels do it;
  * bytes: every input once, every output once, and every workspace once in each direction, at the bandwidth of a copy.
Operations that a block runs again for its backward pass have their bytes and launches counted, but not their arithmetic. What a cache saves, and what a kernel reads more than once (halos, keys of a window), is not in the model.
"""
import json
import math
import subprocess
import sys
import typing


class Card(typing.NamedTuple):
    """What the model knows of a card."""

    name: str
    flops: float  # f32 multiply-adds, operations a second
    tensor_flops: float  # products of halves by mma.sync with f32 sums, operations a second
    bandwidth: float  # bytes a second of a copy


CARDS = [Card("H100", 67e12, 600e12, 3.0e12), Card("RTX 3060", 12.7e12, 25e12, 0.34e12)]
NETWORKS = [
    ("Nano, its own kernels not counted", ["nano"]),
    ("Stream", ["stream"]),
    ("Compact (64, 16)", ["compact"]),
    ("SPAN (52)", ["span", "--feature-channels", "52"]),
    ("Photo (window 16)", ["photo"]),
    ("Pro (window 16)", ["pro"]),
]
# Microseconds between two launches of a graph.
PAUSE = 1.2
# Share of the peak that an operation's arithmetic reaches; OTHER where nothing was derived.
SHARES = {"conv 3x3": 0.68, "conv 3x3, backward": 0.63}
OTHER = 0.5
# Kinds of operations whose products, and those of their backward passes, run on tensor cores in half precision, but for convolutions of few
# channels.
ON_TENSOR_CORES = ("conv 3x3", "conv 1x1", "window attention", "reconstruct")
TENSOR_SHARE = 0.5
# Stream's block in half precision (docs/cuda.md), for each of its operations: values of 32 channels that the launches read or write, products of
# m16n8k16 for 256 pixels, and multiply-adds a pixel outside of tensor cores. Each of the three kernels of the backward pass is counted with the
# products of the forward one; the rest are the weights' gradients of 192 depthwise channels.
STREAM_BLOCK = {"stream block": (2, 3400, 0), "stream block, backward": (52, 3 * 3400, 9 * 192)}


def stream_block(kind, card):
    """Seconds of the arithmetic and of the bytes of Stream's blocks."""
    values, products, plain = STREAM_BLOCK[kind["operation"]]
    pixels = kind["count"] * kind["pixels"]
    compute = pixels / 256 * products * 2 * 16 * 8 * 16 / (TENSOR_SHARE * card.tensor_flops) + pixels * 2 * plain / (OTHER * card.flops)
    return compute, pixels * values * 32 * 2 / card.bandwidth


def work(paragon, network, precision, step):
    """The work of an iteration by kind of operation."""
    lq, batch = step
    command = [paragon, "plan", "--network", *network, "--device", "cuda", "--precision", precision, "--lq-size", str(lq), "--batch-size", str(batch)]
    command += ["--loss", "l1", "--recompute", "block", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        return None, done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
    found = json.loads(done.stdout)["work"]
    for kind in found["operations"]:
        kind["pixels"] = lq * lq * batch
        if kind["operation"].startswith("reconstruct"):
            kind["multiply_adds"] = folded(kind, 16 if precision == "f32" else 13)
    return found, None


def folded(kind, values):
    """Multiply-adds of the reconstruction at scale 2 as the kernels compute it: one 5x5 convolution to 12 values an LQ pixel, which costs as much
    as one to `values`: in f32 four more are zeros, and a few of the products of tensor cores are. The plan states those of up.0 and conv_out:
    36 F^2 + 108 F a pixel for F features, and twice as many for the backward pass."""
    passes = 2 if kind["operation"].endswith("backward") else 1
    pixels = kind["pixels"]
    each = kind["multiply_adds"] / passes / pixels
    features = (math.sqrt(108**2 + 4 * 36 * each) - 108) / (2 * 36)
    return round(passes * pixels * 25 * values * features)


def rate(operation, precision, card):
    """Operations a second of the arithmetic of a kind of operation."""
    if precision != "f32" and operation.removesuffix(", backward") in ON_TENSOR_CORES:
        return TENSOR_SHARE * card.tensor_flops
    return SHARES.get(operation, OTHER) * card.flops


def modelled(kinds, launches, precision, card):
    """Seconds of an iteration, and of its arithmetic, bytes and pauses by themselves."""
    total = arithmetic = memory = 0.0
    for kind in kinds:
        if precision != "f32" and kind["operation"] in STREAM_BLOCK:
            compute, moved = stream_block(kind, card)
        else:
            compute = 2 * kind["multiply_adds"] / rate(kind["operation"], precision, card)
            moved = (kind["bytes"] + 2 * kind["workspace"]) / card.bandwidth
        total, arithmetic, memory = total + max(compute, moved), arithmetic + compute, memory + moved
    pauses = PAUSE * 1e-6 * launches
    return total + pauses, arithmetic, memory, pauses


def print_table(paragon, precision, step):
    """A row for each network and a group of columns for each card; then the kinds of operations that take most."""
    lq, batch = step
    print(f"A training step in {precision}, LQ {lq}, batch {batch}, L1, `--recompute block`, on paper:")
    print()
    cards = "".join(f" {c.name}: ms (arithmetic, bytes, pauses) |" for c in CARDS)
    print(f"| network | GFLOP | GB, of that workspaces | launches |{cards}")
    print("|---" * (4 + len(CARDS)) + "|")
    longest = []
    for name, network in NETWORKS:
        found, refusal = work(paragon, network, precision, step)
        if refusal:
            print(f"| {name} | {refusal[0]} |")
            continue
        kinds, launches = found["operations"], found["launches"]
        workspaces = sum(2 * kind["workspace"] for kind in kinds)
        row = f"| {name} | {2e-9 * found['multiply_adds']:.0f} | {1e-9 * (found['bytes'] + workspaces):.1f}, {1e-9 * workspaces:.1f} | {launches} |"
        for card in CARDS:
            times = [1e3 * seconds for seconds in modelled(kinds, launches, precision, card)]
            row += " {:.1f} ({:.1f}, {:.1f}, {:.1f}) |".format(*times)
        print(row, flush=True)
        cost = sorted(((modelled([kind], kind["launches"], precision, CARDS[0])[0], kind) for kind in kinds), key=lambda c: -c[0])
        longest.append((name, sum(seconds for seconds, _ in cost), cost[:3]))
    print()
    print(f"What takes most on an {CARDS[0].name}:")
    print()
    print("| network | operations, their number, share of the time |")
    print("|---|---|")
    for name, total, cost in longest:
        parts = "; ".join(f"{kind['operation']}, {kind['count']}, {100 * seconds / total:.0f} %" for seconds, kind in cost)
        print(f"| {name} | {parts} |")


if __name__ == "__main__":
    program, kind = (sys.argv[1:] + ["paragon", "f32"][len(sys.argv) - 1:])[:2]
    print_table(program, kind, (128, 16))
