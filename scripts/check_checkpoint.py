#!/usr/bin/env python3
"""Loads a network of paragon into the PyTorch network with strict=True. If images are given, upscales one with PyTorch and
compares it with the result of `paragon upscale`. Depends on torch, safetensors, numpy and Pillow; exit code 1 on a mismatch.

    check_checkpoint.py MODEL.safetensors [--input in.png --upscaled out.png]
"""

import argparse
import json
import sys

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from paragonsr2_torch import VARIANTS


def load(path):
    """(network, description) of a network file; the description is the JSON value of the metadata key `paragon`."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        text = (file.metadata() or {}).get("paragon")
    if text is None:
        sys.exit(f"{path}: no `paragon` entry in the metadata")
    about = json.loads(text)
    options = {k: about[k] for k in ("upsampler_alpha",) if k in about}
    net = VARIANTS[about["arch"]](scale=about["scale"], **options)
    taps = {k: v.clone() for k, v in net.state_dict().items() if k.startswith("base.")}
    net.load_state_dict(tensors, strict=True)
    for name, value in taps.items():
        if not torch.equal(net.state_dict()[name], value):
            sys.exit(f"{path}: {name} is not the published filter")
    return net.eval(), about


def picture(path):
    return np.asarray(Image.open(path).convert("RGB"))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--input", help="the image that was upscaled")
    p.add_argument("--upscaled", help="the result of `paragon upscale` (PNG)")
    a = p.parse_args()
    if bool(a.input) != bool(a.upscaled):
        p.error("--input and --upscaled go together")
    net, about = load(a.model)
    parameters = sum(v.numel() for v in net.parameters())
    print(f"{a.model}: {about['arch']} x{about['scale']}, {parameters} parameters, loaded with strict=True")
    if not a.input:
        return 0
    ours = picture(a.upscaled).astype(np.int16)
    x = torch.from_numpy(picture(a.input).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        y = net(x)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy().astype(np.int16)
    if y.shape != ours.shape:
        print(f"FAIL {a.upscaled} is {ours.shape[1]}x{ours.shape[0]}, PyTorch makes {y.shape[1]}x{y.shape[0]}")
        return 1
    difference = np.abs(y - ours)
    verdict = "ok" if difference.max() <= 1 else "FAIL"
    print(f"{verdict} largest difference {difference.max()} levels, {np.count_nonzero(difference)} of {difference.size} values differ")
    return 0 if verdict == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
