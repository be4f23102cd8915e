#!/usr/bin/env python3
"""Times one training step of the PyTorch network, to compare with `paragon`: L1, AdamW, clipping. Depends on torch; prints the
median of four steps (on a GPU: of twenty, after five) after an untimed one, and the peak memory of the process or of the GPU.

    torch_step.py realtime|stream|photo|pro BATCH LQ_SIZE cl|nchw fp32|bf16 [c] [cuda]     (c: torch.compile)
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
    device = "cuda" if "cuda" in rest else "cpu"
    on_gpu = device == "cuda"
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    net = VARIANTS[variant](scale=scale).to(device=device, memory_format=layout)
    run = torch.compile(net) if "c" in rest else net
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    x = torch.rand(batch, 3, lq, lq, device=device).contiguous(memory_format=layout)
    t = torch.rand(batch, 3, lq * scale, lq * scale, device=device).contiguous(memory_format=layout)
    times = []
    for _ in range(26 if on_gpu else 5):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = (run(x) - t).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    step = statistics.median(times[6:] if on_gpu else times[1:])
    if on_gpu:
        print(f"median s/step {step:.6f} pairs/s {batch / step:.2f} GPU MB {torch.cuda.max_memory_allocated() // 2**20}")
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"median s/step {step:.4f} pairs/s {batch / step:.2f} RSS MB {peak}")


if __name__ == "__main__":
    main()
