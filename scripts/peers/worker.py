"""Measures one mode of PyTorch in a process of its own, and prints one line of JSON: median seconds and the peak resident memory.
Started by `cpu_peers.py` as `python -m peers.worker step|image NETWORK ...`. Depends on torch.

A step is forward, L1, backward, gradient clipping, AdamW and EMA, as in `paragon bench step`; the batch is in place, as float32. An
image is upscaled from u8 to u8.
"""

import argparse
import json
import resource
import statistics
import time

import torch

from peers.cases import CASES
from peers.networks import ATTENTION, build


def seconds_of(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def faster_optimizer(parameters):
    """AdamW, fused or foreach: whichever is the faster for the gradients that `parameters` hold. Returns it and its name."""
    found = []
    for kind in ("fused", "foreach"):
        optimizer = torch.optim.AdamW(parameters, lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4, **{kind: True})
        optimizer.step()  # makes its state
        found.append((min(seconds_of(optimizer.step) for _ in range(3)), kind, optimizer))
    _, kind, optimizer = min(found, key=lambda f: f[0])
    return optimizer, kind


def time_step(net, run, a):
    """Seconds of the timed steps, and what was chosen."""
    layout = getattr(torch, a.layout)
    x = torch.rand(a.batch, 3, a.lq, a.lq).contiguous(memory_format=layout)
    t = torch.rand(a.batch, 3, a.lq * a.scale, a.lq * a.scale).contiguous(memory_format=layout)
    parameters = [p for p in net.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]

    def gradients():
        with torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
            loss = (run(x) - t).abs().mean()
        loss.backward()

    gradients()  # compiles
    optimizer, kind = faster_optimizer(parameters)

    def step():
        optimizer.zero_grad(set_to_none=True)
        gradients()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.001)

    step()
    return [seconds_of(step) for _ in range(a.repeat)], kind


def time_image(net, run, a):
    """Seconds of the timed images."""
    net.eval()
    image = torch.randint(0, 256, (a.size, a.size, 3), dtype=torch.uint8)

    def upscale():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=a.precision == "bf16"):
            x = image.permute(2, 0, 1)[None].float().div(255).contiguous(memory_format=getattr(torch, a.layout))
            y = run(x)[0].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous()
        assert y.shape == (a.scale * a.size, a.scale * a.size, 3)

    upscale()  # compiles
    upscale()
    return [seconds_of(upscale) for _ in range(a.repeat)], ""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("step", "image"))
    p.add_argument("network", choices=CASES)
    p.add_argument("--scale", type=int, default=2)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--lq", type=int, default=64)
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    p.add_argument("--layout", choices=("channels_last", "contiguous_format"), default="channels_last")
    p.add_argument("--attention", choices=ATTENTION, default="fused", help="how window attention is computed")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--repeat", type=int, default=4)
    p.add_argument("--sizes", type=json.loads, default={}, help="arguments of the network, as a JSON object")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    net = build(a.network, a.scale, a.attention, **a.sizes).to(memory_format=getattr(torch, a.layout))
    run = torch.compile(net) if a.compile else net
    times, optimizer = (time_step if a.what == "step" else time_image)(net, run, a)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"seconds": statistics.median(times), "mb": peak, "optimizer": optimizer, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
