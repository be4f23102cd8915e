#!/usr/bin/env python3
"""Times the PyTorch network on one image, u8 to u8, to compare with `paragon bench upscale`. Depends on torch; prints the median
of five images after an untimed one, and the peak memory of the process.

    torch_upscale.py SIZE cl|nchw fp32|bf16 [c]     (SIZE: side of the LQ image; c: torch.compile)
"""

import resource
import statistics
import sys
import time

import torch

from paragonsr2_torch import VARIANTS


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    size, layout, precision, *rest = sys.argv[1:]
    size = int(size)
    layout = torch.channels_last if layout == "cl" else torch.contiguous_format
    torch.manual_seed(0)
    net = VARIANTS["realtime"](scale=2).to(memory_format=layout).eval()
    run = torch.compile(net) if "c" in rest else net
    picture = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            x = picture.permute(2, 0, 1)[None].float().div(255).contiguous(memory_format=layout)
            y = run(x)[0].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous()
        assert y.shape == (2 * size, 2 * size, 3)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"median s/image {statistics.median(times[1:]):.4f} RSS MB {peak}")


if __name__ == "__main__":
    main()
