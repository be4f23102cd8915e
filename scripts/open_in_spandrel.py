#!/usr/bin/env python3
"""Checks in both directions that Compact and SPAN files fit spandrel, the library by which chaiNNer opens networks. Depends on torch,
spandrel, safetensors, numpy and pillow; the exit code is 1 where pixels differ by more than --limit.

    open_in_spandrel.py compare MODEL.safetensors INPUT.png UPSCALED.png
        Opens a network that paragon trained with spandrel's ModelLoader, upscales INPUT by it, and compares the pixels with
        UPSCALED, which `paragon upscale --model MODEL.safetensors INPUT.png UPSCALED.png` wrote.

    open_in_spandrel.py make FOLDER [--paragon target/release/paragon]
        Writes networks of spandrel's own classes with random weights: Compact at x1, x2 and x4, SPAN with and without `norm` at x2
        and x4; an image, `input.png`; and the image as spandrel upscales it, NAME.png beside NAME.safetensors. With --paragon,
        upscales it by that program too (NAME_paragon.png) and compares; scale and sizes must be found without flags.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SPAN import SPAN

# odd sides, and larger than the receptive field of the networks made here
WIDTH, HEIGHT = 83, 71


def read(path):
    """[H, W, 3] u8"""
    return np.asarray(Image.open(path).convert("RGB"))


def write(path, pixels):
    Image.fromarray(pixels).save(path)


def as_tensor(pixels):
    """[H, W, 3] u8 -> [1, 3, H, W] in 0..1"""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def upscale(path, pixels):
    """Opens the file as a user of spandrel does and upscales [H, W, 3] u8. Returns the opened network and the pixels."""
    opened = ModelLoader(device="cpu").load_from_file(str(path))
    if not isinstance(opened, ImageModelDescriptor):
        sys.exit(f"{path}: spandrel opens it as {type(opened).__name__}, which is not a network for single images")
    opened.eval()
    with torch.inference_mode():
        y = opened(as_tensor(pixels))[0]
    return opened, y.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


def compare(name, ours, theirs, limit):
    """Prints how far two images [H, W, 3] u8 are apart; true if they are within `limit`."""
    if ours.shape != theirs.shape:
        print(f"FAIL {name}: paragon's image is {ours.shape[1]} x {ours.shape[0]}, spandrel's {theirs.shape[1]} x {theirs.shape[0]}")
        return False
    off = np.abs(ours.astype(int) - theirs.astype(int))
    good = off.max() <= limit
    print(f"{'ok  ' if good else 'FAIL'} {name}: at most {off.max()}/255 apart, {100 * np.mean(off > 0):.3f} % of the values differ")
    return bool(good)


def describe(opened):
    tags = " ".join(opened.tags)
    return f"{opened.architecture.id} x{opened.scale} {tags}, {sum(p.numel() for p in opened.model.parameters()):,} parameters"


def compare_files(a):
    opened, theirs = upscale(a.model, read(a.input))
    print(f"{a.model}: spandrel opens it as {describe(opened)}")
    return compare(a.upscaled.name, read(a.upscaled), theirs, a.limit)


def drawn_image():
    """Gradients, edges and noise: [HEIGHT, WIDTH, 3] u8."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rng = np.random.default_rng(5)
    smooth = np.stack([255 * x / WIDTH, 255 * y / HEIGHT, 127 + 120 * np.sin(x / 5 + y / 9)], -1)
    edges = 80 * (((x // 11 + y // 7) % 2)[..., None] - 0.5)
    return np.clip(smooth + edges + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def networks():
    """Name and network of spandrel's classes, at random start values."""
    for scale in (1, 2, 4):
        yield f"compact_x{scale}", Compact(num_feat=24, num_conv=5, upscale=scale, act_type="prelu")
    for scale in (2, 4):
        for norm in (True, False):
            yield f"span_x{scale}_norm_{str(norm).lower()}", SPAN(num_in_ch=3, num_out_ch=3, feature_channels=32, upscale=scale, norm=norm)


def scale_output(deviation):
    """A forward hook for SPAN's Conv3XC: scales the module's weights and biases so that its output has this deviation."""

    def hook(module, _input, output):
        gain = deviation / output.std()
        for conv in (module.sk, module.conv[2]):  # both paths end in these
            conv.weight.mul_(gain)
            conv.bias.mul_(gain)
        moved = torch.empty_like(module.sk.bias).uniform_(-0.3, 0.3)
        module.sk.bias.add_(moved)
        return output * gain + moved.view(-1, 1, 1, 1)

    return hook


def spread(net, x):
    """Changes a new network so that its image depends visibly on every part of it, and is hardly clamped.

    At their start values SPAN's blocks add less than 1/255, and an error in them would not be seen. The last convolution is linear:
    its output for `x` is scaled to a deviation of 0.1 (Compact, which adds the input) or 0.2 (SPAN, around 0.5).
    """
    compact = isinstance(net, Compact)
    last = net.body[-1] if compact else net.upsampler[0]
    found = []
    hooks = [last.register_forward_hook(lambda _module, _input, output: found.append(output))]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.PReLU):
                module.weight.uniform_(-0.2, 0.6)  # another slope for each channel
            elif hasattr(module, "eval_conv"):  # Conv3XC
                hooks.append(module.register_forward_hook(scale_output(1.5)))
        net.eval()
        net(x)
        for hook in hooks:
            hook.remove()
        mean, deviation = found[0].mean((0, 2, 3)), found[0].std((0, 2, 3))
        gain = (0.1 if compact else 0.2) / deviation
        last.weight.mul_(gain.view(-1, 1, 1, 1))
        last.bias.copy_((last.bias - mean) * gain + (0 if compact else 0.5))
        net(x)  # SPAN composes its `eval_conv` tensors anew


def make_files(a):
    a.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    pixels, good = drawn_image(), True
    write(a.folder / "input.png", pixels)
    for name, net in networks():
        spread(net, as_tensor(pixels))
        path = a.folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
        opened, theirs = upscale(path, pixels)
        write(a.folder / f"{name}.png", theirs)
        clamped = 100 * np.mean((theirs == 0) | (theirs == 255))
        print(f"wrote {path}: {describe(opened)}; {clamped:.1f} % of the values of its image are 0 or 255")
        if a.paragon is None:
            continue
        ours = a.folder / f"{name}_paragon.png"
        command = [str(a.paragon), "upscale", "--model", str(path), str(a.folder / "input.png"), str(ours)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            print(f"FAIL {name}: {' '.join(command)}: {run.stderr.strip()}")
            good = False
        else:
            good &= compare(name, read(ours), theirs, a.limit)
    return good


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("compare", help="compare an image that paragon upscaled with spandrel's")
    one.add_argument("model", type=Path, help="network file that paragon wrote")
    one.add_argument("input", type=Path, help="image that was upscaled")
    one.add_argument("upscaled", type=Path, help="the result of `paragon upscale`")
    one.set_defaults(run=compare_files)
    many = commands.add_parser("make", help="write networks and images of spandrel's own classes")
    many.add_argument("folder", type=Path, help="folder to write to")
    many.add_argument("--paragon", type=Path, help="program that upscales the image too")
    many.set_defaults(run=make_files)
    for command in (one, many):
        command.add_argument("--limit", type=int, default=1, help="largest difference allowed, in 1/255 [default: 1]")
    a = p.parse_args()
    return 0 if a.run(a) else 1


if __name__ == "__main__":
    sys.exit(main())
