#!/usr/bin/env python3
"""What the kernels of a training step cost on paper: instructions of the machine code of one generation, by kind, and the time they bound
an H100 to, beside the time of the bytes that must move. Needs no GPU: `pip install -r scripts/kernels-requirements.txt nvidia-cuda-nvdisasm`.

    scripts/kernel_costs.py [--card 90] [--precision bf16]

A warp's instructions for one tile of 16 x 16 pixels are counted: those between a kernel's loops over tiles once, those of inner loops as
often as STEP says, whose loops must be as many as the compiler made. Of a branch both sides count, so the numbers are from above; a
kernel's start and end are left out. Nothing here is measured: latency, conflicts and caches are not in it.
"""
import argparse
import collections
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import build_kernels  # noqa: E402

# (kernel, what for, warps of a block, tiles, bytes that must move, launches of a step, trips of the loops inside that over tiles, in the order of
# the code) for Nano x2, LQ 128, batch 16, halves. A pixel of features is 32 bytes, of RGB 12 (f32) or 3 (u8).
LQ, HR = 16 * 128 * 128, 16 * 256 * 256
# of a picture of 8 x 8 tiles 28 touch its edge: both kinds of edges, taps along rows, corners, taps along columns; for either row of a warp
EDGES = [2 * 0.44, 0.2, 0.02, 1.4] * 2
STEP = [
    ("conv_rgb", "conv_in", 8, LQ // 256, 44 * LQ, 1, []),
    ("nano_block", "", 8, LQ // 256, 64 * LQ, 3, [324 / 128, 2]),
    ("conv", "conv_mid", 8, LQ // 256, 64 * LQ, 1, []),
    ("up_head", "", 8, LQ // 256, 104 * LQ, 1, [1.75, 1.4, 1, *EDGES, 4]),
    ("up_head_back", "", 10, LQ // 256, 112 * LQ, 1, [1, *EDGES]),
    ("conv_gradients", "conv_mid", 8, LQ // 256, 96 * LQ, 1, []),
    ("nano_block_back", "", 8, LQ // 256, 96 * LQ, 3, [400 / 128, 5.25, 4, 2]),
    ("conv_rgb_weights", "conv_in", 8, LQ // 256, 44 * LQ, 1, []),
]
# an H100's multiprocessors, GHz, bytes a second; of a multiprocessor and clock: instructions, special functions, bytes of shared memory, halves
# multiplied by tensor cores at their peak
SMS, GHZ, BANDWIDTH, ISSUE, SPECIAL, SHARED, TENSOR = 132, 1.7, 3.35e12, 4, 16, 128, 2048
KINDS = {
    "fma": "FFMA FMUL FADD HFMA2 HADD2 DADD DMUL DFMA",
    "mma": "HMMA",
    "move": "MOV CS2R UMOV MOVM SHFL",
    "convert": "F2FP F2F I2F F2I FRND I2FP",
    "shared": "LDS STS LDSM",
    "global": "LDG STG LDC ULDC",
    "special": "MUFU",
}
KIND = {name: kind for kind, names in KINDS.items() for name in names.split()}


def machine_code(precision, card):
    """{kernel: [(address or label, operation, rest)]}."""
    nvrtc = build_kernels.Nvrtc()
    code = nvrtc.machine_code(precision, f"sm_{card}")
    spec = importlib.util.find_spec("nvidia.cu13") or importlib.util.find_spec("nvidia")
    tools = [t for folder in spec.submodule_search_locations for t in pathlib.Path(folder).rglob("bin/nvdisasm")]
    if not tools:
        sys.exit("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([tools[0], "-c", "-ndf", file.name], check=True, capture_output=True, text=True).stdout
    kernels, current = {}, None
    for line in text.splitlines():
        if m := re.match(r"\.text\.(\w+):", line):
            current = kernels.setdefault(m[1], [])
        elif line.startswith("//---"):
            current = None
        elif current is None:
            continue
        elif m := re.match(r"(\.L_x_\d+):", line):
            current.append((m[1], None, None))
        elif m := re.match(r"\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_.]+)(.*);", line):
            current.append((int(m[1], 16), m[2], m[3]))
    return kernels


def loops(code):
    """[(first, last address)] of loops, outer before inner."""
    at, waiting, ends = {}, [], {}
    for place, operation, _ in code:
        if operation is None:
            waiting.append(place)
        else:
            at.update((label, place) for label in waiting)
            waiting = []
    for place, operation, rest in code:
        if operation and operation.startswith("BRA") and (m := re.search(r"\.L_x_\d+", rest)):
            if at.get(m[0], place) < place:
                ends[at[m[0]]] = max(ends.get(at[m[0]], 0), place)
    return sorted(ends.items())


def shared_bytes(operation):
    """Bytes that a warp's access takes of shared memory, without conflicts."""
    if operation.startswith("LDSM"):
        return 512 if operation.endswith(".4") else 128
    return 32 * (int(m[1]) // 8 if (m := re.search(r"\.(64|128)", operation)) else 4)


def cost(kernel, code, trips):
    """A warp's instructions for a tile by kind, its bytes of shared memory, and products by tensor cores."""
    found = loops(code)
    # the loop over tiles is the largest; a kernel may have loops before and after it
    outer = max(found, key=lambda l: l[1] - l[0])
    inner = [l for l in found if outer[0] <= l[0] and l[1] <= outer[1] and l != outer]
    if len(inner) != len(trips):
        sys.exit(f"{kernel}: the compiler made {len(inner)} loops in that over tiles, STEP knows of {len(trips)}")
    count, shared, products = collections.Counter(), 0.0, 0.0
    for place, operation, rest in code:
        if operation is None or not outer[0] <= place <= outer[1] or operation == "NOP":
            continue
        times = 1.0
        for (first, last), trip in zip(inner, trips):
            if first <= place <= last:
                times *= trip
        name = operation.split(".")[0]
        kind = KIND.get(name, "move" if operation.startswith("IMAD.MOV") else "integer")
        count[kind] += times
        if kind == "shared":
            shared += times * shared_bytes(operation)
        if kind == "mma":
            products += times * (2048 if "16816" in operation else 1024)
    return count, shared, products


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=int, default=90)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16"])
    args = parser.parse_args()
    kernels = machine_code(args.precision, args.card)
    kinds = [*KINDS, "integer"]
    print(f"A warp's instructions for a tile ({args.precision}, sm_{args.card}), and microseconds of a launch on an H100, on paper")
    print()
    print("| kernel | " + " | ".join(kinds) + " | all | issue | special | shared | tensor | bytes | launches |")
    print("|---|" + "---|" * (len(kinds) + 7))
    bound = floor = 0.0
    for kernel, use, warps, tiles, moved, launches, trips in STEP:
        count, shared, products = cost(kernel, kernels[kernel], trips)
        total = sum(count.values())
        clocks = [total / ISSUE, 32 * count["special"] / SPECIAL, shared / SHARED, products / TENSOR]
        times = [warps * c * tiles / SMS / GHZ / 1e3 for c in clocks] + [moved / BANDWIDTH * 1e6]
        bound += launches * max(times)
        floor += launches * times[-1]
        numbers = [f"{count[k]:.0f}" for k in kinds] + [f"{total:.0f}"] + [f"{t:.1f}" for t in times] + [str(launches)]
        print(f"| `{kernel}`{use and ', ' + use} | " + " | ".join(numbers) + " |")
    print()
    print(f"the largest bound of each, added up: {bound:.0f} microseconds; of the bytes alone: {floor:.0f}")


if __name__ == "__main__":
    main()
