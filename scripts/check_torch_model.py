#!/usr/bin/env python3
"""Checks paragonsr2_torch.py against golden numbers: outputs, losses and every gradient of all variants, in float64 and
in float32. Depends on torch and safetensors; the exit code is 1 if a difference is larger than rounding explains.

    check_torch_model.py [GOLDEN_DIR]      (default: $PARAGON_SHARED/golden, else ../shared/golden beside the repository)
"""

import os
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from paragonsr2_torch import VARIANTS

# Largest relative errors of (output, gradients). In float64 the float32 storage of the golden files limits them, in float32 the arithmetic.
LIMITS = {torch.float64: (1e-6, 1e-6), torch.float32: (2e-6, 2e-5)}
PUBLISHED = {("paragonsr2_realtime", 2): 16780, ("paragonsr2_realtime", 4): 44620, ("paragonsr2_stream", 2): 110092,
             ("paragonsr2_stream", 4): 221068, ("paragonsr2_photo", 2): 745292, ("paragonsr2_photo", 4): 1188428,
             ("paragonsr2_pro", 2): 1993420, ("paragonsr2_pro", 4): 2436556}  # fmt: skip


def error(a, b):
    """||a - b|| / ||b||"""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def check(path, dtype):
    with safe_open(path, "pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    if meta["arch"] not in VARIANTS:
        return True  # scripts/peers/golden.py checks the networks of other authors
    net = VARIANTS[meta["arch"]](scale=int(meta["scale"]))
    net.load_state_dict({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    net.to(dtype)
    x = tensors["input"].to(dtype).requires_grad_()
    y = net(x)
    loss = (y - tensors["target"].to(dtype)).abs().mean()
    loss.backward()
    output = error(y.detach(), tensors["output"])
    worst, where = error(x.grad, tensors["grad_input"]), "grad_input"
    for name, p in net.named_parameters():
        if p.requires_grad and not name.endswith("token_ca.k_proj.bias"):  # this gradient is zero in exact arithmetic
            e = error(p.grad, tensors["grad." + name])
            if e > worst:
                worst, where = e, name
    e_loss = abs(float(loss.detach()) / float(tensors["loss.l1"]) - 1)
    good = output <= LIMITS[dtype][0] and worst <= LIMITS[dtype][1] and e_loss <= 1e-6
    kind = str(dtype).split(".")[1]
    print(f"{'ok  ' if good else 'FAIL'} {path.name:34} {kind}: output {output:.1e}  l1 {e_loss:.1e}  worst gradient {worst:.1e} ({where})")
    return good


def main():
    beside = Path(os.environ.get("PARAGON_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else beside / "golden"
    files = sorted(folder.glob("*_x*_*x*x*.safetensors"))
    if not files:
        print(f"SKIP check_torch_model: no golden files in {folder}")
        return 0
    good = True
    for (name, scale), count in PUBLISHED.items():
        ours = sum(p.numel() for p in VARIANTS[name](scale=scale).parameters())
        if ours != count:
            print(f"FAIL {name} x{scale}: {ours} parameters, published {count}")
            good = False
    for path in files:
        for dtype in LIMITS:
            good &= check(path, dtype)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
