#!/usr/bin/env python3
"""Runs the demo and puts its table, its comparison image and the memory table of the default recipe into the README.

usage: scripts/update_readme.py   (after `cargo build --release`; needs only Python's standard library)
"""
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
import datetime

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/paragon"


def run(*args, cwd):
    done = subprocess.run([str(BINARY), *args], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(args)} failed:\n{done.stderr}")
    return done


def processor():
    text = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*)", text.read_text()) if text.exists() else []
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def replace(text, mark, body):
    pattern = rf"(<!-- {mark}:begin -->\n).*?(<!-- {mark}:end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)


def main():
    readme = ROOT / "README.md"
    text = readme.read_text()
    with tempfile.TemporaryDirectory() as folder:
        demo = run("demo", "--out", "demo", cwd=folder)
        table = demo.stdout.strip("\n").split("\n\nWith images")[0]
        shutil.copy(f"{folder}/demo/comparison.png", ROOT / "docs/images/demo.png")
        run("synth", "pictures", "--count", "20", "--size", "512", cwd=folder)
        run("shard", "pictures", cwd=folder)
        train = run("train", "--iterations", "1", "--warmup", "0", cwd=folder)
        memory = re.search(r"memory, known before the first step\n(.*?total +[^\n]*)", train.stderr, flags=re.S)[1]
    date = datetime.date.today().isoformat()
    caption = f"`paragon demo` on {processor()}, {date} (`scripts/update_readme.py`):"
    text = replace(text, "demo", f"{caption}\n\n```\n{table}\n```")
    text = replace(text, "memory", f"The default recipe (Nano x2, LQ 128, batch 16, f32):\n\n```\n{memory}\n```\n")
    readme.write_text(text)


if __name__ == "__main__":
    main()
