#!/usr/bin/env python3
"""Estimates the time of the kernels of a training step: it simulates their machine code, warp by warp, on the schedulers of one
multiprocessor, with the waits that the code itself states. Needs no GPU:
`pip install -r scripts/kernels-requirements.txt nvidia-cuda-nvdisasm`.

    scripts/kernel_costs.py [--card 90] [--precision bf16] [--kernel NAME] [--assembler PTXAS] [--load-clocks 650]

The step is Nano x2, LQ 128, batch 16 on an H200. The thread blocks of a launch divide the tiles of 16 x 16 LQ pixels among themselves; the
model simulates one multiprocessor with an average share of the tiles, from its first instruction to its last. Machine code since Volta
states for every instruction how long its warp pauses after it and which of six counters it waits for, so the waits of a warp are known.
The latencies of memory, tensor cores and special functions are not in the code; LATENCY and Op.clocks have published measurements. Loops
run as often as STEP says; branches for edges, other losses and the slow paths of divisions are not taken. The model leaves out the start
of a launch, bank conflicts of shared memory, caches, and bandwidth (which is printed as a bound). In the only measurement so far, kernels
took 0.95 to 1.45 times as long as the model says (docs/BENCHMARKS.md). With --kernel it prints what the kernel's warps wait for.
"""
import argparse
import collections
import importlib.util
import math
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import build_kernels  # noqa: E402

# An H200: multiprocessors, GHz under load, bytes per second of a copy.
SMS, GHZ, BANDWIDTH = 132, 1.75, 4.3e12
TILES = 16 * 128 * 128 // 256
LQ = 16 * 128 * 128
NO_EDGES = [0] * 8
# (kernel, its use, warps per block, blocks per multiprocessor, blocks of the launch or None for as many as fit, bytes that must move,
# launches per step, iterations of the loops inside the loop over tiles for warp w). A pixel has 32 bytes of features, and 12 (f32) or 3
# (u8) bytes of RGB.
STEP = [
    ("conv_rgb", "conv_in", 8, 4, None, 44 * LQ, 1, lambda w: []),
    ("nano_block", "", 8, 3, None, 64 * LQ, 3, lambda w: [2]),
    ("conv", "conv_mid", 8, 3, None, 64 * LQ, 1, lambda w: []),
    ("reconstruct_x2", "", 8, 2, 256, 104 * LQ, 1, lambda w: [2, 1] + NO_EDGES),
    ("reconstruct_back_x2", "", 10, 2, 256, 112 * LQ, 1, lambda w: NO_EDGES),
    ("conv_gradients", "conv_mid", 8, 2, 256, 96 * LQ, 1, lambda w: []),
    # The left columns of a block's first tile; then that tile's passes of five or four iterations and of one iteration, counted as two
    # passes of three, and the single pass of every other tile.
    ("nano_block_back", "", 8, 2, 256, 96 * LQ, 3, lambda w: [(w // 4 + (w == 4), 0), (2, 1), (3, 5 - w // 4), 4, 2]),
    ("conv_rgb_weights", "conv_in", 8, 4, 256, 44 * LQ, 1, lambda w: []),
]
# Clocks from issue to result of the instructions whose result the code waits for by a counter.
LATENCY = {"LDG": 650, "LDS": 30, "LDSM": 33, "SHFL": 25, "MOVM": 33, "LDC": 40, "ULDC": 40, "S2R": 40, "S2UR": 40, "MUFU": 30, "I2F": 30, "F2I": 30, "FRND": 30}
# Instructions by the unit that executes them; MEMORY instructions share the only path of the multiprocessor to memory.
ALU = set("IADD3 LOP3 SHF SEL FSEL ISETP FSETP PLOP3 FMNMX VIMNMX PRMT F2FP LEA I2FP IABS FCHK VIADD".split())
CONTROL = set("BRA BSSY BSYNC EXIT WARPSYNC BAR CALL RET BREAK NOP DEPBAR YIELD".split())
MEMORY = set("LDS STS LDSM SHFL MOVM LDG STG".split())


class Op:
    """An instruction: its address, name, unit, clocks on that unit, the counters that it waits for, and those that it changes."""

    def __init__(self, place, name, rest, control):
        self.place, self.full, self.name, self.rest = place, name, name.split(".")[0], rest
        self.pause = max(control >> 41 & 15, 1)
        # The counters that show when the result is ready, and when the operands have been read.
        self.result, self.operands = control >> 46 & 7, control >> 49 & 7
        self.waits = control >> 52 & 63
        n = self.name
        self.clocks = 2
        if n in ALU:
            self.unit = "alu"
        elif n in ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2"):
            self.unit = "fma"  # either of the two units
        elif n == "IMAD":
            self.unit = "heavy"
        elif n in ("MOV", "CS2R"):
            self.unit = "any"
        elif n in ("MUFU", "I2F", "F2I", "FRND", "F2F"):
            self.unit, self.clocks = "special", 8
        elif n == "HMMA":
            self.unit, self.clocks = "tensor", 4 if "16816" in name else 2
        elif n in MEMORY:
            size = int(m[1]) // 8 if (m := re.search(r"\.(64|128)", name)) else 4
            self.unit = "mio"
            self.clocks = (4 if name.endswith(".4") else 2 if name.endswith(".2") else 1) if n == "LDSM" else 2 if n == "MOVM" else max(size / 4, 1)
        elif n in CONTROL:
            self.unit = "control"
        else:
            self.unit = "constant" if n in ("LDC", "ULDC", "S2R", "S2UR") else "uniform" if n[0] == "U" else "f64" if n[0] == "D" else "alu"
        self.latency = LATENCY.get(n, 33 if n == "HMMA" else 12)


def assembled(precision, card, assembler):
    """Machine code: compiled by NVRTC, or assembled from the embedded PTX by another assembler."""
    if not assembler:
        return build_kernels.Nvrtc().machine_code(precision, f"sm_{card}")
    generation = max(g for p, g in build_kernels.MODULES if p == precision and g <= card)
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = pathlib.Path(folder) / "kernels.ptx", pathlib.Path(folder) / "kernels.cubin"
        ptx.write_text(build_kernels.committed(f"{precision}_{generation}.ptx.zst"))
        subprocess.run([assembler, f"--gpu-name=sm_{card}", "--output-file", cubin, ptx], check=True)
        return cubin.read_bytes()


def machine_code(precision, card, assembler=None):
    """Returns {kernel: ([Op], {label: place})}."""
    code = assembled(precision, card, assembler)
    spec = importlib.util.find_spec("nvidia.cu13") or importlib.util.find_spec("nvidia")
    tools = [t for folder in spec.submodule_search_locations for t in pathlib.Path(folder).rglob("bin/nvdisasm")]
    if not tools:
        sys.exit("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([tools[0], "-c", "-hex", "-ndf", file.name], check=True, capture_output=True, text=True).stdout
    kernels, ops, begun, waiting = {}, None, None, []
    for line in text.splitlines():
        if m := re.match(r"\.text\.(\w+):", line):
            ops, labels = kernels.setdefault(m[1], ([], {}))
        elif line.startswith("//---"):
            ops = None
        elif ops is None:
            continue
        elif m := re.match(r"(\.L_x_\d+):", line):
            waiting.append(m[1])
        elif m := re.match(r"\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_.]+)(.*?);\s*/\* 0x[0-9a-f]+ \*/", line):
            begun = (int(m[1], 16), m[2], m[3])
            labels.update((label, begun[0]) for label in waiting)
            waiting = []
        elif begun and (m := re.match(r"\s+/\* 0x([0-9a-f]+) \*/", line)):
            ops.append(Op(*begun, int(m[1], 16)))
            begun = None
    return kernels


def target(op, labels):
    found = re.search(r"\.L_x_\d+", op.rest) if op.name == "BRA" else None
    return labels.get(found[0]) if found else None


def loops(ops, labels):
    """Returns [(first place, last place)] of the loops, outer before inner."""
    ends = {}
    for op in ops:
        to = target(op, labels)
        if to is not None and to < op.place:
            ends[to] = max(ends.get(to, 0), op.place)
    return sorted(ends.items())


def path(ops, labels, found, tiles, trips):
    """Returns the instructions that a warp runs. `trips`: iterations of each loop, 1 by default, or a pair (in the first tile, in the others).
    `tiles`: the loop over tiles."""
    index = {op.place: i for i, op in enumerate(ops)}
    taken = []

    def unlikely(at, to):
        inside = [l for l in found if ops[at].place < l[0] and l[1] < to]
        if inside:
            return all(count(l) == 0 for l in inside)
        # Roots and slow divisions.
        return index[to] - at < 90 and any(o.name == "CALL" or o.full.startswith("MUFU.RSQ") for o in ops[at : index[to]])

    tile = 0  # 0 in the first tile of the block, 1 in the others

    def count(loop):
        times = trips.get(loop[0], 1)
        return times[tile] if isinstance(times, tuple) else times

    def run(at, end, within):
        nonlocal tile
        while at < end:
            op = ops[at]
            fresh = [l for l in found if l[0] == op.place and l not in within]
            if fresh:
                loop = max(fresh, key=lambda l: l[1] - l[0])
                for _ in range(count(loop)):
                    run(at, index[loop[1]] + 1, [*within, loop])
                    tile = 1 if loop == tiles else tile
                at = index[loop[1]] + 1
                continue
            if op.name != "NOP":
                taken.append(op)
            to = target(op, labels)
            at = index[to] if to is not None and op.place < to and index[to] <= end and unlikely(at, to) else at + 1

    run(0, max(i for i, op in enumerate(ops) if op.name == "EXIT") + 1, [])
    return taken


class Warp:
    def __init__(self, block, path):
        self.block, self.path, self.next, self.ready, self.counters, self.held = block, path, 0, 0, [0] * 6, False


def simulate(blocks):
    """Runs all warps of [[path]] to their end. Returns clocks, instructions issued, busy clocks of the path to memory, and the waits of warps."""
    warps = [[Warp(b, p) for b, paths in enumerate(blocks) for p in paths[q::4]] for q in range(4)]
    arrived, size = [0] * len(blocks), [len(paths) for paths in blocks]
    units = [collections.defaultdict(float) for _ in range(4)]
    clock, issued, memory, busy, left = 0, 0, 0.0, 0.0, sum(size)
    last, waits = [None] * 4, collections.Counter()

    def blocked(warp, unit, op):
        """Returns the clock at which the instruction can be issued, and the reason if that is later than now."""
        if warp.ready > clock:
            return warp.ready, "pause"
        until = max((warp.counters[c] for c in range(6) if op.waits >> c & 1), default=0)
        if until > clock:
            return until, "counter"
        if op.unit == "mio":
            return memory - 16, "memory queue"
        if op.unit == "fma":
            return min(unit["heavy"], unit["lite"]), "unit"
        if op.unit == "any":
            return min(unit["alu"], unit["heavy"], unit["lite"]), "unit"
        return unit[op.unit], "unit"

    while left:
        soonest, any_issued = math.inf, False
        for q in range(4):
            unit, chosen, why = units[q], None, []
            for warp in ([last[q]] if last[q] else []) + warps[q]:
                if warp.next == len(warp.path) or warp.held:
                    if warp.held:
                        why.append(("barrier", None))
                    continue
                op = warp.path[warp.next]
                until, reason = blocked(warp, unit, op)
                if until <= clock:
                    chosen = warp
                    break
                soonest = min(soonest, until)
                why.append((reason, op if reason == "counter" else None))
            if chosen is None:
                waits.update(why)
                continue
            any_issued, issued, last[q] = True, issued + 1, chosen
            done, read = clock + op.latency, clock + 12
            if op.unit == "mio":
                memory = max(memory, clock) + op.clocks
                busy, done, read = busy + op.clocks, memory + op.latency, memory + 12
            elif op.unit in ("fma", "any"):
                names = ("lite", "heavy") if op.unit == "fma" else ("lite", "heavy", "alu")
                unit[min(names, key=lambda n: unit[n])] = clock + 2
            elif op.unit != "control":
                unit[op.unit] = clock + op.clocks
            for counter, until in ((op.result, done), (op.operands, read)):
                if counter != 7:
                    chosen.counters[counter] = max(chosen.counters[counter], until)
            chosen.ready = clock + op.pause
            chosen.next += 1
            left -= chosen.next == len(chosen.path)
            if op.name == "BAR":
                chosen.held = True
                arrived[chosen.block] += 1
                if arrived[chosen.block] == size[chosen.block]:
                    arrived[chosen.block] = 0
                    for warp in (w for quarter in warps for w in quarter if w.block == chosen.block):
                        warp.held, warp.ready = False, max(warp.ready, clock + 20)
        clock = clock + 1 if any_issued or soonest == math.inf else max(clock + 1, math.ceil(soonest))
    return clock, issued, busy, waits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=int, default=90, help="generation of the machine code [default: 90]")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16"], help="type of activations [default: bf16]")
    parser.add_argument("--kernel", help="one kernel, and what its warps wait for")
    parser.add_argument("--assembler", metavar="PTXAS", help="make machine code of the embedded PTX with this program, as a newer driver does")
    parser.add_argument("--load-clocks", type=int, default=LATENCY["LDG"], help="until a load from memory arrives [default: 650; about 300 from the cache]")
    args = parser.parse_args()
    LATENCY["LDG"] = args.load_clocks
    code = machine_code(args.precision, args.card, args.assembler)
    by = f", by {args.assembler}" if args.assembler else ""
    print(f"{args.precision}, sm_{args.card}{by}, LQ 128, batch 16: a launch on an H200, on paper; loads take {args.load_clocks} clocks")
    print()
    print("| kernel | instructions a warp | issued a clock, of 4 | way to memory in use | us | us of the bytes | launches |")
    print("|---|---|---|---|---|---|---|")
    total = floor = 0.0
    for kernel, use, size, fit, grid, moved, launches, trips in STEP:
        if args.kernel not in (None, kernel):
            continue
        ops, labels = code[kernel]
        found = loops(ops, labels)
        outer = max(found, key=lambda l: l[1] - l[0])
        inner = [l for l in found if outer[0] <= l[0] and l[1] <= outer[1] and l != outer]
        if len(inner) != len(trips(0)):
            sys.exit(f"{kernel}: the compiler made {len(inner)} loops inside the loop over tiles, STEP has iterations for {len(trips(0))}")
        places = grid or SMS * fit
        blocks = []
        for block in range(min(fit, -(-places // SMS))):
            # The multiprocessor in the middle; its last block may have one tile more.
            tiles = TILES // places + (block * SMS + SMS // 2 < TILES % places)
            blocks.append([path(ops, labels, found, outer, {outer[0]: tiles, **{l[0]: t for l, t in zip(inner, trips(w))}}) for w in range(size)])
        clocks, issued, busy, waits = simulate(blocks)
        microseconds, bytes_alone = clocks / GHZ / 1e3, moved / BANDWIDTH * 1e6
        total, floor = total + launches * microseconds, floor + launches * bytes_alone
        average = sum(len(p) for paths in blocks for p in paths) / sum(len(paths) for paths in blocks)
        print(
            f"| `{kernel}`{use and ', ' + use} | {average:.0f} | {issued / clocks:.2f} | {100 * busy / clocks:.0f} % | {microseconds:.1f} "
            f"| {bytes_alone:.1f} | {launches} |"
        )
        if args.kernel:
            everything = sum(waits.values())
            for (reason, op), count in waits.most_common(25):
                print(f"    {100 * count / everything:5.1f} % {reason}" + (f", {op.place:x} {op.full}{op.rest}" if op else ""))
    print()
    print(f"together {total:.0f} microseconds; the bytes alone {floor:.0f}")


if __name__ == "__main__":
    main()
