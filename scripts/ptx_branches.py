"""Finds warp instructions in PTX that only some lanes of a warp may reach.

mma, ldmatrix, movmatrix, shfl with a full mask, and barriers need all 32 lanes. For every register of a kernel this computes which bits may
differ between the lanes of a warp, starting from the thread index, whose bits 0 to 4 do. A branch whose predicate may differ is divergent,
and so is every block from it to the block where all its paths meet again. The analysis errs on the safe side: what it does not understand
counts as different.

It also finds kernels that touch memory before they have waited for the kernel ahead of them, which may still run on cards from sm_90 on.
"""
import collections
import re

WARP = {"mma", "ldmatrix", "movmatrix", "shfl", "bar", "barrier"}
# The start of a kernel that may be launched while the one ahead of it still runs: it waits, and then lets the next one start.
START = ["griddepcontrol.wait", "griddepcontrol.launch_dependents"]
# Instructions that touch memory, or wait, or let others wait. Parameters and constants are written before any kernel starts.
MEMORY = {"ld", "ldu", "st", "atom", "red", "cp", "tex", "suld", "sust", "prefetch", "prefetchu", "ldmatrix", "stmatrix", "bar", "barrier", "mbarrier"}
MEMORY |= {"membar", "fence", "call", "wgmma", "tcgen05", "multimem", "discard", "applypriority", "griddepcontrol"}
UNCHANGING = ("ld.param.", "ld.const.")
ALL = (1 << 64) - 1
REGISTER = re.compile(r"%[a-z]+\d+")


class Instruction:
    """One instruction: predicate register or None, name, registers written, operands read as text."""

    def __init__(self, text):
        m = re.match(r"(?:@!?(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);?$", text, re.S)
        self.text, self.predicate, self.full, rest = text, m[1], m[2], m[3]
        self.name = self.full.split(".")[0]
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,]+", rest)
        operands = [o.strip() for o in operands if o.strip()]
        writes_nothing = self.name in {"st", "bra", "ret", "exit", "bar", "barrier", "call", "red"}
        self.writes = [] if writes_nothing or not operands else REGISTER.findall(operands[0])
        self.reads = operands if writes_nothing else operands[1:]
        # The results of a call are in parentheses, as its arguments are: st.param and ld.param carry them.
        self.target = rest.strip().split()[-1] if self.name == "bra" else None


def kernels(ptx):
    """Yields (name, [[Instruction]], {label: block number}) of every kernel."""
    for m in re.finditer(r"\.entry (\w+)\(.*?\n\{\n(.*?)\n\}\n", ptx, re.S):
        blocks, labels = [[]], {}
        text = re.sub(r"//[^\n]*", "", m[2])
        for line in re.findall(r"\$\w+:|[^;\n][^;]*;", text):
            # braces are scopes of registers, which may be nested
            line = line.strip("{} \t\n")
            while label := re.match(r"(\$\w+):[{}\s]*", line):
                if blocks[-1]:
                    blocks.append([])
                labels[label[1]] = len(blocks) - 1
                line = line[label.end() :]
            if not line or line.startswith("."):
                continue
            i = Instruction(line)
            blocks[-1].append(i)
            if i.name in ("bra", "ret", "exit"):
                blocks.append([])
        yield m[1], blocks, labels


def successors(blocks, labels):
    """For every block those that may run next; the last number is the end of the kernel."""
    following = []
    for number, block in enumerate(blocks):
        last = block[-1] if block else None
        to = []
        if last is not None and last.name == "bra":
            to.append(labels[last.target])
        elif last is not None and last.name in ("ret", "exit"):
            to.append(len(blocks))
        if last is None or last.name not in ("bra", "ret", "exit") or last.predicate:
            to.append(number + 1)
        following.append(to)
    return [*following, []]


def post_dominators(following):
    """For every block the blocks that all its paths to the end pass."""
    count = len(following)
    everything = frozenset(range(count))
    passed = [everything] * count
    changed = True
    while changed:
        changed = False
        for b in reversed(range(count)):
            after = frozenset.intersection(*(passed[s] for s in following[b])) if following[b] else frozenset()
            new = after | {b}
            if new != passed[b]:
                passed[b], changed = new, True
    return passed


def region(start, following, passed):
    """The blocks between a branch and the place where its paths meet."""
    meeting = passed[start] - {start}
    found, queue = set(), list(following[start])
    while queue:
        b = queue.pop()
        if b in found or b in meeting:
            continue
        found.add(b)
        queue.extend(following[b])
    return found


def constant(operand):
    try:
        return int(operand, 0)
    except ValueError:
        return None


def upward(mask):
    """The bits from the lowest of a mask on: where a sum of such values may differ."""
    return ALL & ~((mask & -mask) - 1) if mask else 0


def differing(i, bits):
    """The bits of an instruction's result that may differ between lanes."""

    def of(operand):
        if "%tid.x" in operand or "%laneid" in operand:
            return 31
        return max((bits[r] for r in REGISTER.findall(operand)), default=0)

    masks, numbers = [of(o) for o in i.reads], [constant(o) for o in i.reads]
    if i.name in WARP - {"bar", "barrier"}:
        return ALL
    if not any(masks):
        return 0
    if i.name in ("mov", "cvta") or i.full == "cvt.u64.u32" or i.full == "cvt.s64.s32" and masks[0] < 1 << 31:
        return masks[0]
    if i.full == "cvt.u32.u64":
        return masks[0] & 0xFFFFFFFF
    if i.name == "and":
        known = numbers[1] if numbers[1] is not None else numbers[0]
        return (masks[0] | masks[1]) & (known if known is not None else ALL) & ALL
    if i.name == "or" and numbers[1] is not None:
        return masks[0] & ~numbers[1] & ALL
    if i.name in ("or", "xor"):
        return masks[0] | masks[1]
    if i.name == "shr" and numbers[1] is not None and masks[0] < 1 << 31:
        return masks[0] >> numbers[1]
    if i.name == "shl" and numbers[1] is not None:
        return masks[0] << numbers[1] & ALL
    if i.name in ("add", "sub"):
        other = numbers[1] if numbers[1] is not None else numbers[0] if i.name == "add" else None
        mask = masks[0] | masks[1]
        # Adding a number whose lower bits are zero carries nothing out of them.
        if other is not None and other % (1 << mask.bit_length()) == 0:
            return mask
        return upward(mask)
    if i.name == "selp":
        return ALL if masks[2] else masks[0] | masks[1]
    if i.name == "setp" and numbers[1] is not None:
        span = 1 << masks[0].bit_length()
        kind = i.full.split(".")[1]
        if kind in ("lt", "ge", "lo", "hs") and numbers[1] % span == 0 or kind in ("gt", "le", "hi", "ls") and (numbers[1] + 1) % span == 0:
            return 0
    return ALL


def partial_warps(ptx):
    """Returns [(kernel, instruction)] of the warp instructions that some lanes may not reach."""
    wrong = []
    for name, blocks, labels in kernels(ptx):
        following = successors(blocks, labels)
        passed = post_dominators(following)
        places, readers = collections.defaultdict(set), collections.defaultdict(set)
        for number, block in enumerate(blocks):
            for i in block:
                for register in i.writes:
                    places[register].add(number)
                for register in REGISTER.findall(" ".join(i.reads) + " " + (i.predicate or "")):
                    readers[register].add(number)
        bits, divergent, changed = collections.defaultdict(int), set(), True
        while changed:
            changed = False
            for number, block in enumerate(blocks):
                here = collections.ChainMap({}, bits)  # what the block itself wrote hides what other blocks write
                for i in block:
                    mask = ALL if i.predicate and here[i.predicate] else differing(i, here)
                    for register in i.writes:
                        here[register] = mask
                        # Written on several paths, of which lanes take different ones, or in a loop that they leave at different times.
                        split = places[register] & divergent and (len(places[register]) > 1 or readers[register] - divergent)
                        own = ALL if split else mask
                        if own | bits[register] != bits[register]:
                            bits[register] |= own
                            changed = True
                last = block[-1] if block else None
                if last is not None and last.name in ("bra", "ret", "exit") and last.predicate and here[last.predicate]:
                    more = region(number, following, passed) - divergent
                    if more:
                        divergent |= more
                        changed = True
        for number, block in enumerate(blocks):
            for i in block:
                if i.name in WARP and (number in divergent or i.predicate):
                    wrong.append((name, i.text))
    return wrong


def wrong_starts(ptx, waits):
    """Returns the kernels that do not begin with START, once and before anything that touches memory, or that load through the cache for
    data that no kernel changes meanwhile; without `waits` those that have any part of START."""
    wrong = []
    for name, blocks, _ in kernels(ptx):
        touching = [i for i in blocks[0] if i.name in MEMORY and not i.full.startswith(UNCHANGING)]
        begin = [i.full for i in touching[:2] if not i.predicate]
        everything = [i for block in blocks for i in block]
        count = sum(i.name == "griddepcontrol" for i in everything)
        unchanging = any(i.name == "ldu" or ".nc" in i.full for i in everything)
        if count != 2 or begin != START or unchanging if waits else count:
            wrong.append(name)
    return wrong


ITSELF = """.visible .entry planted(
	.param .u64 p
)
{
	mov.u32 	%r1, %tid.x;
	shr.u32 	%r2, %r1, {shift};
	setp.gt.u32 	%p1, %r2, 2;
	@%p1 bra 	$L1;
	{inside}
$L1:
	{behind}
	ret;

}
"""


def check_itself():
    """Fails if a planted fault is not found, or a right kernel is reported."""
    mma, bar = "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r3,%r4}, [%r5];", "bar.sync 0;"
    for shift, inside, behind, wrong in [(5, mma, bar, 0), (4, mma, bar, 1), (4, "mov.u32 %r6, 1;", mma, 0), (4, "@%p1 ret;", mma, 1), (5, "@%p1 " + mma, bar, 1)]:
        text = ITSELF.replace("{shift}", str(shift)).replace("{inside}", inside).replace("{behind}", behind)
        found = partial_warps(text)
        assert len(found) == wrong, (text, found)
    wait, allow = (f"{start};" for start in START)
    load, table, barrier, jump = "ld.global.f32 %f1, [%rd1];", "ld.const.f32 %f1, [taps];", "bar.sync 0;", "@%p1 bra $L2;"
    right = [[wait, allow, load], ["mov.u32 %r1, %tid.x;", "ld.param.u64 %rd1, [p];", table, wait, allow, jump]]
    early = [[load, wait, allow], ["st.shared.f32 [%r1], %f1;", wait, allow], [wait, load, allow], [barrier, wait, allow], [jump, wait, allow], [jump], [wait], [allow, wait]]
    early += [["@%p1 " + wait, allow], [wait, allow, wait], ["ld.f32 %f1, [%rd1];", wait, allow]]
    early += [[wait, allow, "ld.global.nc.f32 %f1, [%rd1];"]]
    for wrong, begins in enumerate([right, early]):
        for begin in begins:
            text = ".visible .entry planted(\n)\n{\n" + "\n".join([*begin, "$L2:", "ret;"]) + "\n\n}\n"
            assert len(wrong_starts(text, True)) == wrong, text
            assert len(wrong_starts(text, False)) == ("griddepcontrol" in text), text
