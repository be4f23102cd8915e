#!/usr/bin/env python3
"""Compiles kernels/paragon.cu with NVRTC, which needs no GPU and no CUDA toolkit: `pip install -r scripts/kernels-requirements.txt`.

    scripts/build_kernels.py           writes kernels/interface.cuh, then kernels/ptx/*.ptx.zst, which the program embeds, and
                                       kernels/ptx/RESOURCES.md
    scripts/build_kernels.py --check   writes nothing: fails when a committed file differs from what the sources give
    scripts/build_kernels.py --show    prints the PTX of a committed module, e.g. --show f32_75

Writing and checking also compile every kernel to machine code for every generation of cards from sm_75 to sm_90 and tabulate its
registers. Errors are: spilled registers, local memory that LOCAL_MEMORY does not list, and instructions of a whole warp (tensor cores,
shuffles, barriers) that only some of its lanes may reach, and in modules for sm_90 a kernel that touches memory before it has waited for the
one ahead of it (scripts/ptx_branches.py).
"""
import argparse
import ctypes
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import zstandard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import ptx_branches  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
PTX = KERNELS / "ptx"
PRECISIONS = {"f32": 0, "bf16": 1, "fp16": 2}
# The embedded modules. PTX of a generation runs on it and on all later ones. bf16 needs sm_80, where fp16 has wider instructions;
# from sm_90 on a kernel may start while the one ahead of it runs, if it waits for that one itself.
MODULES = [("f32", 75), ("f32", 90), ("fp16", 75), ("fp16", 80), ("fp16", 90), ("bf16", 80), ("bf16", 90)]
CARDS = [75, 80, 86, 89, 90]
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    parser.add_argument("--show", metavar="MODULE", help="print the PTX of a committed module")
    args = parser.parse_args()
    if args.show:
        text = committed(f"{args.show}.ptx.zst")
        sys.stdout.write(text if text is not None else sys.exit(f"there is no module {args.show}"))
        return
    wrong = interface(args.check)
    ptx_branches.check_itself()
    nvrtc = Nvrtc()
    files = {}
    for precision, generation in MODULES:
        ptx, _ = nvrtc.compile(precision, f"compute_{generation}")
        code = without_comments(ptx)
        for kernel, instruction in ptx_branches.partial_warps(ptx):
            wrong.append(f"{kernel} ({precision}, sm_{generation}): a part of a warp may reach `{instruction}`")
        for kernel in ptx_branches.wrong_starts(ptx, waits=generation >= 90):
            wrong.append(f"{kernel} ({precision}, sm_{generation}): it must wait for the kernel ahead of it on cards from sm_90 on, before anything else")
        files[f"{precision}_{generation}.ptx.zst"] = f"// activations: {precision}\n{code}\n"
    table, many = {}, []
    for precision in PRECISIONS:
        for card in CARDS:
            if precision == "bf16" and card < 80:
                continue
            for kernel, used in resources(nvrtc.compile(precision, f"sm_{card}")[1]).items():
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
        f"Written by `scripts/build_kernels.py` with NVRTC {nvrtc.version}. No kernel spills registers. `+40` are bytes of local memory a thread. "
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
