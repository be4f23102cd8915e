"""Makes tests/data/checkpoints: small checkpoints as torch.save writes them, an image, and what
spandrel's own Compact and SPAN make of it. Run it with torch, spandrel and Pillow:

    python scripts/make_checkpoints.py tests/data/checkpoints
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SPAN import SPAN


def randomize(net, seed, size):
    """Weights that give the network an effect on the image."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.empty_like(p).uniform_(-size, size, generator=g))
    return net


def upscaled(net, image):
    x = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        y = net.eval()(x)[0].permute(1, 2, 0).clamp(0, 1)
    return Image.fromarray((y.numpy() * 255).round().astype(np.uint8))


def non_contiguous(tensor):
    """The same values with other strides: the axes are stored in reverse order."""
    axes = list(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)


def shared(state):
    """The same values as views of one storage, with a gap between them."""
    flat = torch.cat([torch.cat([t.flatten(), torch.zeros(3)]) for t in state.values()])
    out, at = OrderedDict(), 0
    for key, t in state.items():
        out[key] = flat[at : at + t.numel()].view(t.shape)
        at += t.numel() + 3
    return out


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    image = small.resize((21, 17), Image.Resampling.BICUBIC)
    image.save(folder / "input.png")
    compact = randomize(Compact(num_feat=6, num_conv=2, upscale=2), 1, 0.15)
    upscaled(compact, image).save(folder / "compact.png")
    state = compact.state_dict()
    other = OrderedDict((k, torch.zeros_like(v)) for k, v in state.items())
    optimizer = torch.optim.Adam(compact.parameters())

    def save(name, value, **more):
        torch.save(value, folder / name, **more)

    save("compact_ema.pth", {"params": other, "params_ema": state})
    save("compact_legacy.pth", {"params": state}, _use_new_zipfile_serialization=False)
    save("compact_half.pt", {"params": OrderedDict((k, v.half()) for k, v in state.items())})
    save("compact_bf16.pth", OrderedDict((k, v.bfloat16()) for k, v in state.items()))
    save("compact_double.pth", {"model": {k: v.double() for k, v in state.items()}})
    save("compact_strides.pth", {"net": {k: non_contiguous(v) for k, v in state.items()}})
    save("compact_views.pth", shared(state), pickle_protocol=4)
    save("compact_parameters.pth", dict(compact.named_parameters()), pickle_protocol=5)
    lightning = {
        "epoch": 3,
        "global_step": 2**40,
        "hyper_parameters": {"lr": 1e-4, "name": "x", "sizes": (1, 2.5, None, True)},
        "optimizer_states": [optimizer.state_dict()],
        "state_dict": OrderedDict(("net_g.module._orig_mod." + k, v) for k, v in state.items()),
    }
    save("compact_lightning.ckpt", lightning)
    for norm in (True, False):
        # weights at which the image has neither one colour nor values outside 0 to 1 alone
        span = randomize(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=2, upscale=2, norm=norm), 2, 0.18 if norm else 0.45)
        name = "span_norm" if norm else "span"
        upscaled(span, image).save(folder / f"{name}.png")
        # one storage: an archive takes some hundred bytes for each
        save(f"{name}.pth", {"params_ema": shared(span.state_dict())})
    save("foreign.pth", {"params": {"conv_first.weight": torch.zeros(1), "body.0.rdb1.conv1.weight": torch.zeros(1)}})


main(Path(sys.argv[1]))
