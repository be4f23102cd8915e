#!/usr/bin/env python3
"""Renews what documents show of the program's output: the demo's table and comparison image in docs/how-to.md, and the memory
table of the default recipe in docs/memory.md.

usage: scripts/update_documents.py   (after `cargo build --release`; needs only Python's standard library)
"""
import datetime
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/paragon"


def run(*args, cwd):
    done = subprocess.run([str(BINARY), *args], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(args)} failed:\n{done.stderr}")
    return done.stdout


def processor():
    text = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*)", text.read_text()) if text.exists() else []
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def replace(document, mark, body):
    """Replaces what stands between the marks `mark:begin` and `mark:end` of a document."""
    path = ROOT / document
    pattern = rf"(<!-- {mark}:begin -->\n).*?(<!-- {mark}:end -->)"
    text, count = re.subn(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", path.read_text(), flags=re.S)
    if count != 1:
        raise SystemExit(f"{document} has {count} places marked {mark}")
    path.write_text(text)


def main():
    with tempfile.TemporaryDirectory() as folder:
        demo = run("demo", "--out", "demo", cwd=folder)
        table = demo.strip("\n").split("\n\nWith images")[0]
        shutil.copy(f"{folder}/demo/comparison.png", ROOT / "docs/images/demo.png")
        plan = run("plan", "--batch-size", "16", "--lq-size", "128", cwd=folder)
        memory = re.search(r"( *step arena.*?\n *total +[^\n]*)", plan, flags=re.S)[1]
    date = datetime.date.today().isoformat()
    caption = f"`paragon demo` on {processor()}, {date} (`scripts/update_documents.py`):"
    replace("docs/how-to.md", "demo", f"{caption}\n\n```\n{table}\n```")
    replace("docs/memory.md", "memory", f"The default recipe (Nano x2, LQ 128, batch 16, f32):\n\n```\n{memory}\n```\n")


if __name__ == "__main__":
    main()
