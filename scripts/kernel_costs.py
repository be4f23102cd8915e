#!/usr/bin/env python3
"""Estimates the time of the kernels of a training step: it simulates their machine code, warp by warp, on the schedulers of one
multiprocessor, with the waits that the code itself states. Needs no GPU:
`pip install -r scripts/kernels-requirements.txt nvidia-cuda-nvdisasm`.

    scripts/kernel_costs.py [--card 90] [--precision bf16] [--loss l1|ssim] [--kernel NAME] [--assembler PTXAS] [--load-clocks N]
    scripts/kernel_costs.py --networks [--paragon PATH] [--type f32]   a step of every network, see network_costs.py

The step is Nano x2, LQ 128, batch 16 on one of CARDS. The thread blocks of a launch divide the tiles of 16 x 16 LQ pixels among themselves; a
multiprocessor starts its share of the blocks one after another, as many at once as fit. Where tiles at an edge of the image cost more, the
multiprocessors with the fewest and the most of them are simulated, because a launch ends with its slowest block. Machine code since Volta states
for every instruction how long its warp pauses after it and which of six counters it waits for, so the waits of a warp are known. What is
not in the code is in CARDS, LATENCY and Op (also which of two kernels the program launches on the card): clocks of tensor cores, f64 units and special functions, and the latency of loads, of which a
card's share comes from its cache. Loops run as often as KERNELS says; branches for other losses and the slow paths of divisions are not
taken. Kernels that run beside others are listed and not added; every launch of the others costs a pause. The model leaves out bank conflicts of
shared memory, the instruction cache, and queues in front of memory (the bytes are printed as a bound, and a launch takes at least as long).
In the only measurement so far, kernels took 0.95 to 1.45 times as long as an earlier version of the model said (docs/BENCHMARKS.md). With
--kernel it prints what the kernel's warps wait for.
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
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import build_kernels  # noqa: E402
import network_costs  # noqa: E402



class Card(typing.NamedTuple):
    """What the machine code does not say of a card."""

    name: str
    sms: int
    ghz: float  # under load
    bandwidth: float  # bytes per second of a copy
    tensor: float  # clocks of m16n8k16 on the tensor core of a quarter
    f64: float  # clocks of an f64 instruction of a warp on a quarter; one unit of an RTX 3060's multiprocessor serves all four
    convert: float  # the same of a conversion from or to f64
    loads: tuple  # clocks of loads, in turns: their shares come from the cache and from memory
    shared: int  # bytes of shared memory of a multiprocessor
    depthwise: str  # the unit that computes the depthwise step of a Nano block, as the program chooses it

    @property
    def sum_blocks(self):
        """Most blocks of a kernel that sums, as the program chooses it."""
        return min(256, 2 * self.sms)


# The sources: CUDA programming guide (results a clock and multiprocessor), published microbenchmarks of mma.sync on Hopper (62 % of the
# rate of wgmma) and of cache latencies. GeForce cards multiply halves with f32 sums at half rate. An H200's cache holds most of what the
# kernel before has written; an RTX 3060's holds 3 MiB.
CARDS = {
    90: Card("H200", 132, 1.75, 4.3e12, 6.4, 2, 8, (300, 300, 300, 650), 228 << 10, "tensor"),
    86: Card("RTX 3060", 28, 1.78, 0.36e12, 32, 64, 64, (470, 470, 470, 220), 100 << 10, "plain"),
}
# Microseconds between two launches of a graph.
PAUSE = 1.2
# Branches around so many products are simulated warp by warp.
PRODUCTS = 2
TILES = 16 * 128 * 128 // 256
LQ, HR = 16 * 128 * 128, 16 * 256 * 256
PARAMETERS = 20_000
# Partial sums that reduce_sums reads of a block that sums, bytes.
PARTIALS = 15.7e6 / 256
# Places that a block of `reconstruct_x2` and its backward kernel moves on with each tile.
SPREAD = 13


def nothing(w, card):
    return []


def strips(card):
    """Strips of an edge that a block of `reconstruct_back_x2` sums: 128 of each edge, a quarter of the blocks for each."""
    return -(-128 // -(-card.sum_blocks // 4))


def rounds(card):
    """Rounds of eight partial sums that a thread of `reduce_sums` adds."""
    return -(-(-(-card.sum_blocks // 8)) // 8)


def place_of(tile):
    """(row, column) of a tile among the 8 x 8 of its image."""
    return tile % 64 // 8, tile % 8


def sides(w, tile):
    """Whether warp `w` has a pixel of the first or the last row of the image in its upper, and in its lower row, of tile number `tile` of an
    image of 8 x 8 tiles; and whether the tile has pixels of the first or last column."""
    y, x = place_of(tile)
    return y == 0 and w == 0, y == 7 and w == 7, x in (0, 7)


def edges(w, tile):
    """Iterations of the loops over edges, and over corners in both rows. Of the two edges that the outer loop tries, one costs products, and so
    does one of the corners."""
    upper, lower, side = sides(w, tile)
    y, x = place_of(tile)
    corners = 1 if side else 2
    return [1 if upper or lower or side else 2 * (y in (0, 7) or x in (0, 7)), corners * upper, corners * lower]


def edge_branches(w, tile):
    """Whether the products of the first or last column are computed, and those of a corner in both rows."""
    side = sides(w, tile)[2]
    return [side, side, side]


def edge_sums(w, card):
    """Iterations of the loops before the tiles: edges, strips of a warp, storing its sums, adding them up."""
    warps = min(4, strips(card))
    return [1, -(-(strips(card) - w) // warps) if w < warps else 0, int(w < warps), 8]


class Kernel(typing.NamedTuple):
    """A kernel of the step. A pixel has 32 bytes of features, and 12 (f32) or 3 (u8) bytes of RGB."""

    name: str
    use: str
    warps: int  # of a block
    fit: int  # blocks of a multiprocessor
    grid: typing.Union[int, str, None]  # blocks; "sum": those that sum; "run": those where each has a run of tiles; None: as many as fit
    moved: float  # bytes; those of `reduce_sums` for each block that sums
    launches: int
    # Iterations of the loops: inside the loop over tiles (by warp; of edge tiles by warp and tile), and before it. Without a loop over
    # tiles `before` has all of them.
    trips: typing.Optional[typing.Callable] = None
    before: typing.Callable = nothing
    # Whether a warp runs the branches inside the loop over tiles that have PRODUCTS products or more, and no loop; by warp and tile.
    branches: typing.Callable = nothing
    edges: bool = False
    beside: bool = False  # runs beside others
    depthwise: typing.Optional[str] = None  # the unit that the kernel is for, if there is one for each
    words: bool = False  # 4-byte loads of a warp touch eight sectors of 32 bytes instead of four
    losses: tuple = ("l1", "ssim")
    shared: int = 0  # bytes of a block, where a multiprocessor with 100 KiB holds fewer blocks than `fit`


KERNELS = [
    Kernel("set_scalars", "", 1, 16, 1, 64, 1),
    Kernel("fold_conv", "", 8, 6, 54, 5e5, 1, before=lambda w, card: [3, 3, 1, 0, 0, 0, 0], beside=True),
    Kernel("conv_rgb", "conv_in", 8, 4, None, 44 * LQ, 1, lambda w: []),
    Kernel("nano_block", "", 8, 3, None, 64 * LQ, 3, lambda w: [2], depthwise="tensor", words=True),
    Kernel("nano_block_plain", "", 8, 3, None, 64 * LQ, 3, lambda w: [2], depthwise="plain", words=True),
    Kernel("conv", "conv_mid", 8, 3, None, 64 * LQ, 1, lambda w: []),
    Kernel("reconstruct_x2", "", 8, 2, "sum", 104 * LQ, 1, lambda w, t: [2, 1] + edges(w, t), branches=edge_branches, edges=True),
    # An image has 64 patches of 32 x 32 pixels. The loops are those of coarser levels.
    Kernel("structural_windows", "", 8, 5, 1024, 27 * HR, 1, before=lambda w, card: [0, 0], losses=("ssim",), shared=29_632),
    Kernel("structural_spread_losses", "", 8, 3, 1024, 39 * HR, 1, before=lambda w, card: [0, 0], losses=("ssim",), shared=22_248),
    # Before its tiles a block sums strips of an edge.
    Kernel(
        "reconstruct_back_x2", "", 8, 2, "sum", 112 * LQ, 1, edges,
        before=edge_sums, branches=lambda w, t: edge_branches(w, t) + [w >= 5, w < 5], edges=True,
    ),
    Kernel("reduce_sums", "of reconstruct", 8, 6, 431, PARTIALS * 431 / 651, 1, before=lambda w, card: [3, 0, 0, 0, 0, rounds(card)], beside=True),
    Kernel("unfold_gradients", "", 8, 4, 92, 1e6, 1, before=lambda w, card: [0, 0, 3, 1, 1, 3, 0, 0, 0, 0], beside=True),
    Kernel("conv_gradients", "conv_mid", 8, 2, "sum", 96 * LQ, 1, lambda w: []),
    # The left columns of a block's first tile; then that tile's passes of five or four iterations and of one iteration, counted as two
    # passes of three, and the single pass of every other tile.
    Kernel("nano_block_back", "", 8, 2, "run", 96 * LQ, 3, lambda w: [(w // 4 + (w == 4), 0), (2, 1), (3, 5 - w // 4), 2], depthwise="tensor", words=True),
    Kernel("nano_block_back_plain", "", 8, 2, "run", 96 * LQ, 3, lambda w: [(w // 4 + (w == 4), 0), (2, 1), (3, 5 - w // 4), 4, 2], depthwise="plain", words=True),
    Kernel("conv_rgb_weights", "conv_in", 8, 4, "sum", 44 * LQ, 1, lambda w: []),
    Kernel("reduce_sums", "", 8, 6, 220, PARTIALS * 220 / 651, 1, before=lambda w, card: [3, 0, 0, 0, 0, rounds(card)]),
    Kernel("gradient_squares", "", 8, 6, -(-PARAMETERS // 1024), 4 * PARAMETERS, 1, before=lambda w, card: [0, 1]),
    Kernel("adam", "", 8, 6, -(-PARAMETERS // 256), 36 * PARAMETERS, 1, before=lambda w, card: [1, 1, 0]),
]
# Clocks from issue to result of the instructions whose result the code waits for by a counter.
LATENCY = {"L1": 35, "LDS": 30, "LDSM": 33, "SHFL": 25, "MOVM": 33, "LDC": 40, "ULDC": 40, "S2R": 40, "S2UR": 40, "MUFU": 30, "I2F": 30, "F2I": 30, "FRND": 30}
# Instructions by the unit that executes them; MEMORY instructions share the only path of the multiprocessor to memory.
ALU = set("IADD3 LOP3 SHF SEL FSEL ISETP FSETP PLOP3 FMNMX VIMNMX PRMT F2FP LEA I2FP IABS FCHK VIADD".split())
CONTROL = set("BRA BSSY BSYNC EXIT WARPSYNC BAR CALL RET BREAK NOP DEPBAR YIELD".split())
MEMORY = set("LDS STS LDSM SHFL MOVM LDG STG".split())


class Op:
    """An instruction: its address, name, unit, clocks on that unit, the counters that it waits for, and those that it changes."""

    def __init__(self, place, name, rest, control, card):
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
        elif ".F64" in name and n in ("F2F", "I2F", "F2I", "FRND"):
            self.unit, self.clocks = "f64", card.convert
        elif n in ("MUFU", "I2F", "F2I", "FRND", "F2F"):
            self.unit, self.clocks = "special", 8
        elif n == "HMMA":
            self.unit, self.clocks = "tensor", card.tensor if "16816" in name else card.tensor / 2
        elif n in MEMORY:
            size = int(m[1]) // 8 if (m := re.search(r"\.(64|128)", name)) else 4
            self.unit = "mio"
            self.clocks = (4 if name.endswith(".4") else 2 if name.endswith(".2") else 1) if n == "LDSM" else 2 if n == "MOVM" else max(size / 4, 1)
            # Bytes of neighbouring pixels lie apart, so a warp touches more sectors than its bytes fill.
            if n == "LDG" and re.search(r"\.[US]8", name):
                self.clocks = 2
        elif n in CONTROL:
            self.unit = "control"
        else:
            self.unit = "constant" if n in ("LDC", "ULDC", "S2R", "S2UR") else "uniform" if n[0] == "U" else "f64" if n[0] == "D" else "alu"
            self.clocks = card.f64 if self.unit == "f64" else self.clocks
        # None: a load, whose latency is not always the same.
        self.latency = None if n == "LDG" else LATENCY.get(n, max(33, card.tensor) if n == "HMMA" else max(16, card.f64) if self.unit == "f64" else 12)


def assembled(precision, card, assembler):
    """Machine code: compiled by NVRTC, or assembled from the embedded PTX by another assembler."""
    if not assembler:
        return build_kernels.Nvrtc().machine_code(precision, f"sm_{card}")
    return build_kernels.assemble(assembler, build_kernels.committed(build_kernels.ptx_file(precision, card)), card)[0]


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
            ops.append(Op(*begun, int(m[1], 16), CARDS[card]))
            begun = None
    return kernels


def target(op, labels):
    """Where a branch goes; None for BRA.DIV, which only a warp takes whose lanes are apart at an exchange."""
    found = re.search(r"\.L_x_\d+", op.rest) if op.name == "BRA" and ".DIV" not in op.full else None
    return labels.get(found[0]) if found else None


def loops(ops, labels):
    """Returns [(first place, last place)] of the loops, outer before inner."""
    ends = {}
    # behind the last EXIT is what such a warp does, and the way back from there
    exit = max(op.place for op in ops if op.name == "EXIT")
    for op in ops:
        to = target(op, labels)
        if to is not None and to < op.place < exit:
            ends[to] = max(ends.get(to, 0), op.place)
    return sorted(ends.items())


def branches_with_products(ops, labels, within):
    """The places of the branches inside the loop `within` that skip PRODUCTS products or more, and no loop."""
    found, at = loops(ops, labels), []
    for op in ops:
        to = target(op, labels)
        if to is None or not within[0] <= op.place < to <= within[1] or any(op.place < l[0] and l[1] < to for l in found):
            continue
        if sum(o.name == "HMMA" for o in ops if op.place < o.place < to) >= PRODUCTS:
            at.append(op.place)
    return at


def path(ops, labels, found, tiles, trips):
    """Returns the instructions that a warp runs. `trips`: iterations of each loop, 1 by default, or a pair (in the first tile, in the others),
    or a list with a number for each tile; and, by the place of a branch, whether it is run. `tiles`: the loop over tiles."""
    index = {op.place: i for i, op in enumerate(ops)}
    taken = []

    def unlikely(at, to):
        if ops[at].place in trips:
            return not count((ops[at].place, to))
        inside = [l for l in found if ops[at].place < l[0] and l[1] < to]
        if inside:
            return all(count(l) == 0 for l in inside)
        # Slow divisions, and roots: of the other pixel losses, three at a time.
        skipped = ops[at : index[to]]
        return (len(skipped) < 90 and any(o.name == "CALL" for o in skipped)) or (len(skipped) < 160 and any(o.full.startswith("MUFU.RSQ") for o in skipped))

    tile = 0  # of the block

    def count(loop):
        times = trips.get(loop[0], 1)
        return times[min(tile, len(times) - 1)] if isinstance(times, (tuple, list)) else times

    def run(at, end, within):
        nonlocal tile
        while at < end:
            op = ops[at]
            fresh = [l for l in found if l[0] == op.place and l not in within]
            if fresh:
                loop = max(fresh, key=lambda l: l[1] - l[0])
                for _ in range(count(loop)):
                    run(at, index[loop[1]] + 1, [*within, loop])
                    tile += loop == tiles
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
        self.loaded = collections.Counter()  # times that a load of the edges ran


def simulate(queue, fit, card, again=()):
    """Runs all blocks, each a list of its warps' paths, `fit` at a time. `again`: places of loads that read the same for every
    tile, the later times from the first-level cache. Returns clocks, instructions issued, busy clocks of the path to memory, and the waits
    of warps."""
    queue = list(reversed(queue))
    warps, arrived, size, running = [[] for _ in range(4)], [], [], []
    units = [collections.defaultdict(float) for _ in range(4)]
    clock, issued, memory, busy, loads = 0, 0, 0.0, 0.0, 0
    last, waits = [None] * 4, collections.Counter()

    def start():
        paths, block = queue.pop(), len(size)
        arrived.append(0)
        size.append(len(paths))
        running.append(len(paths))
        for q in range(4):
            for p in paths[q::4]:
                warp = Warp(block, p)
                warp.ready = clock
                warps[q].append(warp)

    for _ in range(min(fit, len(queue))):
        start()
    left = len(size)

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
            latency = op.latency
            if latency is None:
                latency, loads = card.loads[loads % len(card.loads)], loads + 1
                if op.place in again:
                    chosen.loaded[op.place] += 1
                    latency = LATENCY["L1"] if chosen.loaded[op.place] > 1 else latency
            done, read = clock + latency, clock + 12
            if op.unit == "mio":
                memory = max(memory, clock) + op.clocks
                busy, done, read = busy + op.clocks, memory + latency, memory + 12
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
            if chosen.next == len(chosen.path):
                running[chosen.block] -= 1
                if not running[chosen.block]:
                    left -= 1
                    for quarter in range(4):
                        warps[quarter] = [w for w in warps[quarter] if w.block != chosen.block]
                        last[quarter] = None
                    if queue:
                        start()
                        left += 1
            elif op.name == "BAR":
                chosen.held = True
                arrived[chosen.block] += 1
                if arrived[chosen.block] == size[chosen.block]:
                    arrived[chosen.block] = 0
                    for warp in (w for quarter in warps for w in quarter if w.block == chosen.block):
                        warp.held, warp.ready = False, max(warp.ready, clock + 20)
        clock = clock + 1 if any_issued or soonest == math.inf else max(clock + 1, math.ceil(soonest))
    return clock, issued, busy, waits


def edge_loads(ops, labels):
    """The places of loads in loops inside the loop over tiles: weights of the edges."""
    found = loops(ops, labels)
    outer = max(found, key=lambda l: l[1] - l[0])
    inside = [l for l in found if outer[0] <= l[0] and l[1] <= outer[1] and l != outer]
    return {op.place for op in ops if op.name == "LDG" and any(l[0] <= op.place <= l[1] for l in inside)}


def blocks_in(kernel, card):
    """Blocks of a launch."""
    if kernel.grid == "sum":
        return card.sum_blocks
    if kernel.grid == "run":
        return -(-TILES // -(-TILES // card.sum_blocks))
    return kernel.grid or card.sms * kernel.fit


def tiles_of(kernel, card, block):
    """The tiles of a block. Where those at edges cost more, a block moves on with each round of all blocks; the numbers of other kernels'
    tiles mean nothing."""
    grid = blocks_in(kernel, card)
    if kernel.grid == "run":
        each = -(-TILES // grid)
        return list(range(block * each, min((block + 1) * each, TILES)))
    spread = SPREAD if kernel.edges else 0
    tiles = (i * grid + (block + i * spread) % grid for i in range(-(-TILES // grid)))
    return [tile for tile in tiles if tile < TILES]


def least_and_most_edges(kernel, card):
    """The first blocks of the two multiprocessors, of those with the most tiles, whose tiles touch edges of the image least and most often."""
    def touched(first):
        tiles = [tile for block in range(first, blocks_in(kernel, card), card.sms) for tile in tiles_of(kernel, card, block)]
        return len(tiles), sum(at in (0, 7) for tile in tiles for at in place_of(tile))

    by_edges = sorted(range(card.sms), key=touched)
    busiest = [first for first in by_edges if touched(first)[0] == touched(by_edges[-1])[0]]
    return [busiest[0], busiest[-1]]


def blocks_of(kernel, code, card, first):
    """The paths of the blocks of the multiprocessor that gets block number `first`."""
    ops, labels = code
    found = loops(ops, labels)
    grid = blocks_in(kernel, card)
    outer = max(found, key=lambda l: l[1] - l[0]) if kernel.trips else None
    inner = [l for l in found if outer and outer[0] <= l[0] and l[1] <= outer[1] and l != outer]
    before = [l for l in found if not outer or l[1] < outer[0]]

    branches = branches_with_products(ops, labels, outer) if kernel.edges else []

    def numbers(w, tile):
        return kernel.trips(w, tile) + kernel.branches(w, tile) if kernel.edges else kernel.trips(w)

    expected = [(len(before), len(kernel.before(0, card)), "before" if outer else "without")]
    if outer:
        expected.append((len(inner) + len(branches), len(numbers(0, 0)), "inside"))
    for made, known, where in expected:
        if known and made != known or where != "before" and made != known:
            sys.exit(f"{kernel.name}: the compiler made {made} loops (and branches) {where} a loop over tiles, KERNELS has {known}")
    blocks = []
    for block in range(first, grid, card.sms):
        tiles = tiles_of(kernel, card, block) if outer else []
        paths = {}
        for w in range(kernel.warps):
            trips = {l[0]: t for l, t in zip(before, kernel.before(w, card))}
            if outer:
                own = list(zip(*(numbers(w, t) for t in tiles))) if kernel.edges else numbers(w, 0)
                places = [l[0] for l in inner] + branches
                trips.update({outer[0]: len(tiles), **{at: list(t) if kernel.edges else t for at, t in zip(places, own)}})
            key = repr(sorted(trips.items()))
            if key not in paths:
                paths[key] = path(ops, labels, found, outer, trips)
            paths[w] = paths[key]
        blocks.append([paths[w] for w in range(kernel.warps)])
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=int, default=90, choices=sorted(CARDS), help="generation of the card [default: 90]")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16"], help="type of activations [default: bf16]")
    parser.add_argument("--loss", default="l1", choices=["l1", "ssim"], help="l1, or l1 and ssim as in the default recipe [default: l1]")
    parser.add_argument("--kernel", help="one kernel, and what its warps wait for")
    parser.add_argument("--assembler", metavar="PTXAS", help="make machine code of the embedded PTX with this program, as a newer driver does")
    parser.add_argument("--load-clocks", type=int, help="until a load arrives [default: those of the card's cache and memory in turns]")
    parser.add_argument("--networks", action="store_true", help="a step of every network, from its plan; simulates nothing")
    parser.add_argument("--paragon", default="paragon", help="the program, for --networks [default: the one in PATH]")
    parser.add_argument("--type", default="f32", choices=["f32", "bf16", "fp16"], help="type of activations, for --networks [default: f32]")
    args = parser.parse_args()
    if args.networks:
        network_costs.print_table(args.paragon, args.type, (128, 16))
        return
    card = CARDS[args.card]
    if args.load_clocks:
        card = card._replace(loads=(args.load_clocks,))
    code = machine_code(args.precision, args.card, args.assembler)
    by = f", by {args.assembler}" if args.assembler else ""
    clocks = ", ".join(map(str, card.loads))
    print(f"{args.precision}, sm_{args.card}{by}, LQ 128, batch 16, {args.loss}: a launch on an {card.name}, on paper; loads take {clocks} clocks in turns")
    print()
    print("| kernel | instructions a warp | issued a clock, of 4 | way to memory in use | us | us of the bytes | launches |")
    print("|---|---|---|---|---|---|---|")
    total = floor = beside = 0.0
    count = 0
    for kernel in KERNELS:
        if args.kernel not in (None, kernel.name) or args.loss not in kernel.losses:
            continue
        if args.kernel is None and kernel.depthwise not in (None, card.depthwise):
            continue
        ops, labels = code[kernel.name]
        if kernel.words:
            for op in ops:
                if op.name == "LDG" and op.clocks == 1:
                    op.clocks = 2
        runs = [blocks_of(kernel, (ops, labels), card, first) for first in (least_and_most_edges(kernel, card) if kernel.edges else [0])]
        again = edge_loads(ops, labels) if kernel.edges else ()
        fit = min(kernel.fit, card.shared // (kernel.shared + 1024)) if kernel.shared else kernel.fit
        results = [simulate(blocks, fit, card, again) for blocks in runs]
        blocks, (clocks, issued, busy, waits) = max(zip(runs, results), key=lambda r: r[1][0])
        moved = kernel.moved * (card.sum_blocks if kernel.name == "reduce_sums" else 1)
        bytes_alone = moved / card.bandwidth * 1e6
        microseconds = max(clocks / card.ghz / 1e3, bytes_alone)
        if kernel.beside:
            beside += kernel.launches * microseconds
        else:
            total, count = total + kernel.launches * microseconds, count + kernel.launches
            floor += kernel.launches * bytes_alone
        average = sum(len(p) for paths in blocks for p in paths) / sum(len(paths) for paths in blocks)
        use = ", ".join(filter(None, [kernel.use, "beside others" if kernel.beside else "", "at edges" if kernel.edges else ""]))
        print(
            f"| `{kernel.name}`{use and ', ' + use} | {average:.0f} | {issued / clocks:.2f} | {100 * busy / clocks:.0f} % | {microseconds:.1f} "
            f"| {bytes_alone:.1f} | {kernel.launches} |",
            flush=True,
        )
        if kernel.edges:
            print(f"|   with the fewest edges | | | | {results[0][0] / card.ghz / 1e3:.1f} | | |")
        if args.kernel:
            everything = sum(waits.values())
            for (reason, op), times in waits.most_common(25):
                print(f"    {100 * times / everything:5.1f} % {reason}" + (f", {op.place:x} {op.full}{op.rest}" if op else ""))
    print()
    pauses = PAUSE * count
    print(f"together {total:.0f} microseconds, and {pauses:.0f} of pauses between {count} launches: {total + pauses:.0f}; beside them {beside:.0f}; the bytes alone {floor:.0f}")


if __name__ == "__main__":
    main()
