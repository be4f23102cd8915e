#!/usr/bin/env python3
"""Cuts golden trainings to a size that the repository can hold (tests/data/README.md): their first iterations, with the start values and
the expected loss, gradient norm and learning rate of each. The final parameters are left out, because they belong to the last iteration.
Needs only Python's standard library.

    scripts/cut_reference.py ../shared/golden tests/data/golden
"""

import json
import struct
import sys
from pathlib import Path

# file, number of iterations that are kept
CUTS = [("train_realtime_x2", 2), ("train_realtime_x2_accum", 1), ("train_realtime_x2_mssim", 1)]


def read(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    body = data[8 + length :]
    return metadata, {name: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for name, t in header.items()}


def write(path, metadata, tensors):
    header, body = {"__metadata__": metadata}, b""
    # The widest types come first, so that the offset of every tensor is a multiple of its element's size.
    for name, (dtype, shape, data) in sorted(tensors.items(), key=lambda t: (-int(t[1][0][1:]), t[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def cut(source, target, steps):
    metadata, tensors = read(source)
    config = json.loads(metadata["config"])
    batches = steps * config["accum_iter"]
    kept = {}
    for name, (dtype, shape, data) in tensors.items():
        kind, _, number = name.partition(".")
        if name in ("loss", "grad_norm", "lr"):
            kept[name] = (dtype, [steps], data[: 8 * steps])
        elif kind == "param_init" or (kind in ("lq", "hr") and int(number) < batches):
            kept[name] = (dtype, shape, data)
    config["steps"] = steps
    write(target, {"config": json.dumps(config)}, kept)


def main():
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    for name, steps in CUTS:
        cut(source / f"{name}.safetensors", target / f"{name}_first{steps}.safetensors", steps)
    for name in ("realtime_x2_1x33x17.safetensors", "metrics_set5_pillow_bicubic_x2.json"):
        (target / name).write_bytes((source / name).read_bytes())


if __name__ == "__main__":
    main()
