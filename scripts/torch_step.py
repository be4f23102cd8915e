#!/usr/bin/env python3
"""Times one training step of the PyTorch network, to compare with `paragon`: L1, AdamW, clipping. Depends on torch. On a CPU it prints the
median of four steps after an untimed one and the peak memory of the process; on a GPU, the median of five rounds of twenty steps and the
peak memory of the GPU. The batch is already in device memory: nothing is copied from the host.

    torch_step.py realtime|stream|photo|pro BATCH LQ_SIZE cl|nchw fp32|bf16 [c|max] [g] [cuda]

c: torch.compile; max: the same with max-autotune. g: the whole step, optimizer included, captured as one CUDA graph and replayed. On a GPU
fp32 convolutions and products are TF32, as PyTorch allows for training. The peak memory is that of the timed steps, without the
workspaces that cudnn.benchmark tries before them.
"""

import resource
import statistics
import sys
import time

import torch

from paragonsr2_torch import VARIANTS


def time_on_gpu(step, as_graph):
    """Returns the seconds of a step; twenty are launched at a time, as a training loop would do."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(side)
    once = step
    if as_graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        once = graph.replay
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    rounds = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            once()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / 20)
    return statistics.median(rounds[1:])


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
    torch.set_float32_matmul_precision("high")
    mode = "max-autotune-no-cudagraphs" if "max" in rest else "default"
    run = torch.compile(net, mode=mode) if "c" in rest or "max" in rest else net
    more = {"fused": True, "capturable": "g" in rest} if on_gpu else {}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4, **more)
    x = torch.rand(batch, 3, lq, lq, device=device).contiguous(memory_format=layout)
    t = torch.rand(batch, 3, lq * scale, lq * scale, device=device).contiguous(memory_format=layout)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled="g" not in rest):
            loss = (run(x) - t).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    if on_gpu:
        seconds = time_on_gpu(step, "g" in rest)
        print(f"median s/step {seconds:.6f} pairs/s {batch / seconds:.2f} GPU MB {torch.cuda.max_memory_allocated() // 2**20}")
        return
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"median s/step {seconds:.4f} pairs/s {batch / seconds:.2f} RSS MB {peak}")


if __name__ == "__main__":
    main()
