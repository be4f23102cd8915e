#!/usr/bin/env python3
"""Compiles kernels/paragon.cu with NVRTC, which needs no GPU and no CUDA toolkit: `pip install -r scripts/kernels-requirements.txt`.

    scripts/build_kernels.py           writes kernels/interface.cuh, then kernels/ptx/*.ptx.zst, which the program embeds, and
                                       kernels/ptx/RESOURCES.md
    scripts/build_kernels.py --check   writes nothing: fails when a committed file differs from what the sources give
    scripts/build_kernels.py --show    prints the PTX of a committed module, e.g. --show f32_75
    scripts/build_kernels.py --machine-code [--assembler PTXAS] [--out FOLDER]
                                       assembles the committed PTX for every generation of cards and writes kernels/cubin/*.cubin.zst, which
                                       the next build of the program embeds (three minutes on one core)

Writing and checking also compile every kernel to machine code for every generation of cards from sm_75 to sm_90 and tabulate its
registers. Errors are: spilled registers, local memory that LOCAL_MEMORY does not list, and instructions of a whole warp (tensor cores,
shuffles, barriers) that only some of its lanes may reach, and in modules for sm_90 a kernel that touches memory before it has waited for the
one ahead of it (scripts/ptx_branches.py).
"""
import argparse
import concurrent.futures
import ctypes
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import zstandard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import ptx_branches  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
PTX = KERNELS / "ptx"
CUBIN = KERNELS / "cubin"
PRECISIONS = {"f32": 0, "bf16": 1, "fp16": 2}
# The embedded modules. PTX of a generation runs on it and on all later ones. bf16 needs sm_80, where fp16 has wider instructions;
# from sm_90 on a kernel may start while the one ahead of it runs, if it waits for that one itself.
MODULES = [("f32", 75), ("f32", 90), ("fp16", 75), ("fp16", 80), ("fp16", 90), ("bf16", 80), ("bf16", 90)]
CARDS = [75, 80, 86, 89, 90]
# Generations with machine code of their own. The assembler makes the same instructions for sm_89 as for sm_86, and such a card runs both.
MACHINE_CODE_CARDS = [75, 80, 86, 90]
# With more registers per thread than this, only one block of 256 threads fits on a multiprocessor.
MANY_REGISTERS = 128
# Kernels that have arrays indexed at run time, in local memory. Everything else has its values in registers.
LOCAL_MEMORY = {"structural_score"}


class Nvrtc:
    """The functions of libnvrtc that are needed, called by ctypes."""

    def __init__(self):
        found = None
        for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
            try:
                spec = importlib.util.find_spec(package)
            except ModuleNotFoundError:
                continue
            for folder in (spec.submodule_search_locations if spec else []):
                found = next(pathlib.Path(folder).glob("lib/libnvrtc.so.*"), found)
        if found is None:
            sys.exit("no NVRTC: pip install -r scripts/kernels-requirements.txt")
        for builtins in found.parent.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(found))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, precision, arch):
        """Returns (PTX, log); exits with the compiler's messages on an error."""
        program = self.compiled(precision, arch)
        return self.text(program, "PTX"), self.text(program, "ProgramLog")

    def machine_code(self, precision, arch):
        """The machine code of a generation of cards, as bytes."""
        return self.text(self.compiled(precision, arch), "CUBIN", raw=True)

    def compiled(self, precision, arch):
        program = ctypes.c_void_p()
        source = (KERNELS / "paragon.cu").read_bytes()
        self.lib.nvrtcCreateProgram(ctypes.byref(program), source, b"paragon.cu", 0, None, None)
        options = [
            f"--gpu-architecture={arch}",
            "--std=c++17",
            f"--include-path={KERNELS}",
            f"-DPRECISION={PRECISIONS[precision]}",
        ]
        if arch.startswith("sm_"):
            options.append("--ptxas-options=-v")
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        status = self.lib.nvrtcCompileProgram(program, len(options), array)
        if status != 0:
            sys.exit(f"{precision} for {arch}:\n{self.text(program, 'ProgramLog')}")
        return program

    def text(self, program, what, raw=False):
        size = ctypes.c_size_t()
        getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.lib, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw if raw else buffer.value.decode()


def without_comments(ptx):
    """The code alone. Comments contain the build of the compiler, and calls are numbered by what the process compiled before."""
    lines = (re.sub(r"\s*//.*", "", line) for line in ptx.splitlines() if not line.startswith("//"))
    return "\n".join(lines).strip()


def resources(log):
    """{kernel: (registers, bytes of local memory, spilled bytes)} from the assembler's log."""
    found, name, local, spilled = {}, None, 0, 0
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            name, local, spilled = m[1], 0, 0
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            local, spilled = int(m[1]), int(m[2]) + int(m[3])
        elif (m := re.search(r"Used (\d+) registers", line)) and name:
            found[name] = (int(m[1]), local, spilled)
    return found


def interface(check):
    """Writes kernels/interface.cuh from the Rust sources, or, with `check`, returns a list of errors."""
    environment = dict(os.environ)
    if not check:
        environment["PARAGON_WRITE_INTERFACE"] = "1"
    # with --workspace the program of the tests is the one that .ci/run runs later
    test = ["cargo", "test", "--release", "--workspace", "--quiet", "--lib", "kernel_interface"]
    done = subprocess.run(test, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    if "is not what the Rust sources declare" in done.stdout + done.stderr:
        return ["kernels/interface.cuh is not what the Rust sources declare: run scripts/build_kernels.py"]
    sys.exit(f"{' '.join(test)}:\n{done.stdout}{done.stderr}")


def cell(used):
    """Registers, and bytes of local memory if there are any."""
    return f"{used[0]}+{used[1]}" if used[1] else str(used[0])


def committed(name):
    """The text of a committed file, decompressed; None if it does not exist."""
    path = PTX / name
    if not path.exists():
        return None
    data = path.read_bytes()
    # Texts are compared, since the compressed bytes depend on the version of zstd.
    return (zstandard.ZstdDecompressor().decompress(data) if path.suffix == ".zst" else data).decode()


def ptx_file(precision, card):
    """The name of the committed PTX that the program has for a type of activations on a generation of cards."""
    return f"{precision}_{max(g for p, g in MODULES if p == precision and g <= card)}.ptx.zst"


def find_assembler():
    """The path of ptxas."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        spec = None
    for folder in (spec.submodule_search_locations if spec else []):
        for tool in pathlib.Path(folder).glob("bin/ptxas*"):
            return str(tool)
    sys.exit("no ptxas: pip install -r scripts/kernels-requirements.txt")


def assemble(assembler, ptx, card):
    """Returns (machine code, log) of PTX, given as text, for a generation of cards."""
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = pathlib.Path(folder) / "kernels.ptx", pathlib.Path(folder) / "kernels.cubin"
        text.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name=sm_{card}", "--output-file", str(cubin), str(text)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return cubin.read_bytes(), done.stdout + done.stderr


def fnv1a(data):
    """The FNV-1a sum of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def header(ptx):
    """The header of machine code made from this compressed PTX, as src/backend/cuda/fingerprint.rs has it: a frame that decoders skip."""
    return b"\x50\x2a\x4d\x18\x10\0\0\0" + f"{fnv1a(ptx):016x}".encode()


def machine_code_file(assembler, precision, card):
    """Returns (name, contents) of a file of machine code, made from the committed PTX that the program has for these cards."""
    ptx = ptx_file(precision, card)
    code, log = assemble(assembler, committed(ptx), card)
    for kernel, (_, _, spilled) in resources(log).items():
        if spilled:
            sys.exit(f"{kernel} ({precision}, sm_{card}) spills {spilled} bytes")
    compressed = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(code)
    return f"{precision}_{card}.cubin.zst", header((PTX / ptx).read_bytes()) + compressed


def write_machine_code(assembler, out):
    """Writes the machine code of all types and generations into a folder."""
    wanted = [(p, c) for p in PRECISIONS for c in MACHINE_CODE_CARDS if any(m == p and g <= c for m, g in MODULES)]
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*.cubin.zst"):
        stale.unlink()
    total = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, data in pool.map(lambda w: machine_code_file(assembler, *w), wanted):
            (out / name).write_bytes(data)
            total += len(data)
            print(f"{out / name}: {len(data):,} bytes", flush=True)
    print(f"{len(wanted)} files, {total:,} bytes; the next build embeds those in {CUBIN}")


def check_machine_code():
    """Assembles one small kernel for every generation and compares the header with the published sum of a word."""
    assembler = find_assembler()
    for card in MACHINE_CODE_CARDS:
        code, log = assemble(assembler, ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry nothing() { ret; }\n", card)
        assert code.startswith(b"\x7fELF") and list(resources(log)) == ["nothing"], log
    assert header(b"foobar").endswith(b"85944171f73967e8"), "FNV-1a is wrong"
    assert zstandard.ZstdDecompressor().stream_reader(header(b"") + zstandard.compress(b"code"), read_across_frames=True).read() == b"code"


def compiled_module(module):
    """Returns the PTX of a module, given as (precision, generation), without comments, and what is wrong with it."""
    precision, generation = module
    ptx, _ = Nvrtc().compile(precision, f"compute_{generation}")
    where = f"({precision}, sm_{generation})"
    wrong = [f"{kernel} {where}: a part of a warp may reach `{instruction}`" for kernel, instruction in ptx_branches.partial_warps(ptx)]
    for kernel in ptx_branches.wrong_starts(ptx, waits=generation >= 90):
        wrong.append(f"{kernel} {where}: it must wait for the kernel ahead of it on cards from sm_90 on, before anything else")
    return without_comments(ptx), wrong


def registers_on(card):
    """Returns what the kernels need on a card, given as (precision, generation): {kernel: (registers, local memory, spilled bytes)}."""
    return resources(Nvrtc().compile(card[0], f"sm_{card[1]}")[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    parser.add_argument("--show", metavar="MODULE", help="print the PTX of a committed module")
    parser.add_argument("--machine-code", action="store_true", help="write the machine code of the committed PTX")
    parser.add_argument("--assembler", metavar="PTXAS", help="another assembler for --machine-code")
    parser.add_argument("--out", type=pathlib.Path, default=CUBIN, help="the folder for --machine-code")
    args = parser.parse_args()
    if args.machine_code:
        write_machine_code(args.assembler or find_assembler(), args.out)
        return
    if args.show:
        text = committed(f"{args.show}.ptx.zst")
        sys.stdout.write(text if text is not None else sys.exit(f"there is no module {args.show}"))
        return
    wrong = interface(args.check)
    ptx_branches.check_itself()
    if args.check:
        check_machine_code()
    cards = [(precision, card) for precision in PRECISIONS for card in CARDS if precision != "bf16" or card >= 80]
    files, table, many = {}, {}, []
    # the compiler uses one core
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as workers:
        modules, used_on = workers.map(compiled_module, MODULES), workers.map(registers_on, cards)
        for (precision, generation), (code, faults) in zip(MODULES, modules):
            files[f"{precision}_{generation}.ptx.zst"] = f"// activations: {precision}\n{code}\n"
            wrong.extend(faults)
        for (precision, card), kernels in zip(cards, used_on):
            for kernel, used in kernels.items():
                table.setdefault((kernel, precision), {})[card] = used
                if used[2] > 0:
                    wrong.append(f"{kernel} ({precision}, sm_{card}) spills {used[2]} bytes")
                if used[1] > 0 and kernel not in LOCAL_MEMORY:
                    wrong.append(f"{kernel} ({precision}, sm_{card}) has {used[1]} bytes of local memory")
                if used[0] > MANY_REGISTERS:
                    many.append(f"{kernel} ({precision}, sm_{card}): {used[0]} registers")
    lines = [
        "# Registers of every kernel",
        "",
        f"Written by `scripts/build_kernels.py` with NVRTC {Nvrtc().version}. No kernel spills registers. `+40` are bytes of local memory a thread. "
        "Shared memory is dynamic; the launches state it. The program compares the table with what the driver's assembler made.",
        "",
        "| kernel | type | " + " | ".join(f"sm_{c}" for c in CARDS) + " |",
        "|---|---|" + "---|" * len(CARDS),
    ]
    for (kernel, precision), cards in sorted(table.items()):
        lines.append(f"| `{kernel}` | {precision} | " + " | ".join(cell(cards[c]) if c in cards else "" for c in CARDS) + " |")
    files["RESOURCES.md"] = "\n".join(lines) + "\n"
    print(files["RESOURCES.md"])
    for line in many:
        print(f"note: {line}")
    if args.check:
        for name, text in files.items():
            if committed(name) != text:
                wrong.append(f"kernels/ptx/{name} is not what the sources give: run scripts/build_kernels.py")
        strays = {p.name for p in PTX.glob("*")} - set(files)
        wrong.extend(f"kernels/ptx/{name} is no output of this script: delete it" for name in sorted(strays))
    else:
        PTX.mkdir(exist_ok=True)
        for name, text in files.items():
            data = text.encode()
            (PTX / name).write_bytes(zstandard.ZstdCompressor(level=19).compress(data) if name.endswith(".zst") else data)
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(table)} kernels, {len(files) - 1} modules, no spills")


if __name__ == "__main__":
    main()
