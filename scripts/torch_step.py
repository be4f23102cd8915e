#!/usr/bin/env python3
"""Times one training step of the PyTorch network on the CPU, to compare with `paragon`: L1, AdamW, clipping. Depends on
torch; prints the median of four steps after an untimed one, and the peak memory of the process.

    torch_step.py realtime|stream|photo|pro BATCH LQ_SIZE cl|nchw fp32|bf16 [c]     (c: torch.compile)
"""

import resource
import statistics
import sys
import time

import torch

from paragonsr2_torch import VARIANTS


def main():
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    variant, batch, lq, layout, precision, *rest = sys.argv[1:]
    batch, lq, scale = int(batch), int(lq), 2
    layout = torch.channels_last if layout == "cl" else torch.contiguous_format
    torch.manual_seed(0)
    net = VARIANTS[variant](scale=scale).to(memory_format=layout)
    run = torch.compile(net) if "c" in rest else net
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    x = torch.rand(batch, 3, lq, lq).contiguous(memory_format=layout)
    t = torch.rand(batch, 3, lq * scale, lq * scale).contiguous(memory_format=layout)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = (run(x) - t).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    step = statistics.median(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"median s/step {step:.4f} pairs/s {batch / step:.2f} RSS MB {peak}")


if __name__ == "__main__":
    main()
