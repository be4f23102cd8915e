#!/usr/bin/env python3
"""Draws docs/images/terminal.svg: the commands of a first day and what the program prints, run here on drawn images.

usage: scripts/draw_terminal.py   (after `cargo build --release`; needs only Python's standard library)

Lines that are cut are shown with an ellipsis; nothing else is changed.
"""
import html
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/paragon"
COLUMNS = 104
LINE, LEFT, TOP = 17, 14, 30
COMMANDS = [
    # command, most lines that are shown
    ("paragon shard photos --val 4", 8),
    ("paragon train --name first --preset quick --iterations 600 --batch-size 8 --lq-size 64 --log-every 150 --val-every 300", 26),
    ("paragon eval shards/val -m runs/first", 12),
]


def output(command, folder):
    done = subprocess.run([str(BINARY), *command.split()[1:]], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return (done.stderr + done.stdout).strip("\n").split("\n")


def main():
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(BINARY), "synth", "photos", "--count", "40", "--size", "512"], cwd=folder, check=True, capture_output=True)
        for command, most in COMMANDS:
            lines.append(("command", command))
            printed = output(command, folder)
            lines += [("text", line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…") for line in printed[:most]]
            if len(printed) > most:
                lines.append(("text", f"… {len(printed) - most} more lines"))
            lines.append(("text", ""))
    width = LEFT * 2 + round(COLUMNS * 7.83)
    height = TOP + LINE * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#14161a"/>',
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="13" xml:space="preserve">',
    ]
    for index, (kind, line) in enumerate(lines):
        y = TOP + LINE * index
        if kind == "command":
            shown = line if len(line) <= COLUMNS - 2 else line[: COLUMNS - 3] + "…"
            parts.append(f'<text x="{LEFT}" y="{y}" fill="#7ee787">$ <tspan fill="#ffffff">{html.escape(shown)}</tspan></text>')
        elif line:
            parts.append(f'<text x="{LEFT}" y="{y}" fill="#c9d1d9">{html.escape(line)}</text>')
    parts += ["</g>", "</svg>", ""]
    (ROOT / "docs/images/terminal.svg").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
