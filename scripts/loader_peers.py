#!/usr/bin/env python3
"""Compares the loader with other common loaders, on one machine, in one run, in turn.

  loader_peers.py PHOTOS WORK --paragon target/release/paragon [--rounds 3] [--seconds 6] [--steps 0]

PHOTOS is a folder of photographs. They are placed edge to edge at their own resolution and cut into tiles of HR 512 x 512 and
LQ 256 x 256 (Pillow's antialiased bicubic), PNG, compression level 3; `paragon shard` and LitData make their sets from the
tiles, in WORK. Then these run in turn:

  torch     PyTorch DataLoader: OpenCV decodes the tiles, aligned random crop, flips, transposition, float32 CHW
  litdata   LitData, zstd (each sample by itself, the faster of its modes), the same augmentation and tensors
  paragon.Loader  the Python module: float32 NCHW tensors, augmented; and u8 NHWC, flips and turns off
  paragon   `paragon bench loader`, compressed and raw, u8 batches with augmentation codes as training uses them

All with batches of 16 pairs of LQ 128 / HR 256. A loader of Python has delivered a batch when the tensors are in the script.
With --steps N, Compact (64 features, 16 convolutions) is also trained for N batches in PyTorch with the DataLoader (2 workers)
and with the module (2 threads): seconds, seconds that the loop waited for data, and peak memory of all processes.
Needs torch, numpy, pillow, opencv-python-headless, litdata, zstd and the module paragon (`pip install .`).
"""
import argparse
import glob
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

LQ, HR, TILE, BATCH, WARM_UP = 128, 256, 512, 16, 2.0


def photographs(folder):
    """Yields the photographs of each orientation as arrays, cut to the smallest size among them."""
    import numpy as np
    from PIL import Image

    groups = {}
    for path in sorted(p for p in glob.glob(f"{folder}/**/*", recursive=True) if p.lower().endswith((".png", ".jpg", ".jpeg"))):
        image = np.asarray(Image.open(path).convert("RGB"))
        groups.setdefault(image.shape[1] >= image.shape[0], []).append(image)
    for group in groups.values():
        h, w = (min(i.shape[k] for i in group) // 2 * 2 for k in (0, 1))
        yield [i[:h, :w] for i in group]


def make_tiles(photos, out):
    """Makes mosaics of whole photographs and cuts them into tiles."""
    import cv2
    import numpy as np
    from PIL import Image

    for kind in ("hr", "lq"):
        os.makedirs(f"{out}/{kind}", exist_ok=True)
    count = 0
    for group in photographs(photos):
        columns = max(1, int(len(group) ** 0.5))
        rows = len(group) // columns
        lines = [np.concatenate(group[r * columns:(r + 1) * columns], 1) for r in range(rows)]
        hr = np.concatenate(lines, 0)
        lq = np.asarray(Image.fromarray(hr).resize((hr.shape[1] // 2, hr.shape[0] // 2), Image.BICUBIC))
        for y in range(0, hr.shape[0] - TILE + 1, TILE):
            for x in range(0, hr.shape[1] - TILE + 1, TILE):
                parts = {"hr": hr[y:y + TILE, x:x + TILE], "lq": lq[y // 2:(y + TILE) // 2, x // 2:(x + TILE) // 2]}
                for kind, part in parts.items():
                    cv2.imwrite(f"{out}/{kind}/{count:05d}.png", part[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
                count += 1
    return count


def tile_pairs(task):
    """Returns the four pairs of a tile, for LitData."""
    import cv2

    folder, name = task
    lq, hr = (cv2.cvtColor(cv2.imread(f"{folder}/{kind}/{name}"), cv2.COLOR_BGR2RGB) for kind in ("lq", "hr"))
    for y in (0, LQ):
        for x in (0, LQ):
            yield {"lq": lq[y:y + LQ, x:x + LQ].copy(), "hr": hr[2 * y:2 * (y + LQ), 2 * x:2 * (x + LQ)].copy()}


def turned(lq, hr):
    """Flips and transposes u8 HWC arrays; returns float CHW tensors."""
    import numpy as np
    import torch

    coins = [random.random() < 0.5 for _ in range(3)]
    out = []
    for image in (lq, hr):
        if coins[0]:
            image = image[:, ::-1]
        if coins[1]:
            image = image[::-1]
        if coins[2]:
            image = image.transpose(1, 0, 2)
        out.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255.0))
    return tuple(out)


def torch_loader(work, workers):
    import cv2
    from torch.utils.data import DataLoader, Dataset

    cv2.setNumThreads(1)
    names = sorted(os.listdir(f"{work}/tiles/hr"))

    class Tiles(Dataset):
        def __len__(self):
            return len(names) * 50

        def __getitem__(self, i):
            name = names[i % len(names)]
            lq, hr = (cv2.cvtColor(cv2.imread(f"{work}/tiles/{kind}/{name}"), cv2.COLOR_BGR2RGB) for kind in ("lq", "hr"))
            y, x = random.randint(0, lq.shape[0] - LQ), random.randint(0, lq.shape[1] - LQ)
            return turned(lq[y:y + LQ, x:x + LQ], hr[2 * y:2 * (y + LQ), 2 * x:2 * (x + LQ)])

    return DataLoader(Tiles(), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)


def litdata_loader(work, workers):
    import litdata

    class Pairs(litdata.StreamingDataset):
        def __getitem__(self, index):
            pair = super().__getitem__(index)
            return turned(pair["lq"], pair["hr"])

    # By default 256 samples are decoded ahead, which a shuffled reader discards.
    data = Pairs(f"{work}/litdata", shuffle=True, drop_last=True, batch_decode=1)
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=workers > 0)

    def endless():
        while True:
            yield from loader

    return endless()


def module_loader(work, threads, codec, **options):
    import paragon

    for batch in paragon.Loader(f"{work}/{codec}", BATCH, lq_size=LQ, threads=threads, endless=True, quiet=True, **options):
        yield batch.torch()


LOADERS = {
    "torch": torch_loader,
    "litdata": litdata_loader,
    "float32-predict": lambda work, threads: module_loader(work, threads, "predict"),
    "float32-raw": lambda work, threads: module_loader(work, threads, "raw"),
    "uint8-predict": lambda work, threads: module_loader(work, threads, "predict", dtype="uint8", layout="NHWC", augment=False),
    "uint8-raw": lambda work, threads: module_loader(work, threads, "raw", dtype="uint8", layout="NHWC", augment=False),
}


def train(kind, work, workers, steps):
    """Trains Compact for some batches; returns seconds, seconds that the loop waited, and peak memory in MiB."""
    import resource

    import torch
    from torch import nn

    body = [layer for _ in range(16) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64))]
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64), *body, nn.Conv2d(64, 12, 3, padding=1), nn.PixelShuffle(2))
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    waited, started, asked = 0.0, time.time(), time.time()
    loader = iter(LOADERS[kind](work, workers))
    for _ in range(steps):
        lq, hr = next(loader)
        waited += time.time() - asked
        loss = nn.functional.l1_loss(network(lq) + nn.functional.interpolate(lq, scale_factor=2), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        asked = time.time()
    seconds = time.time() - started
    del loader
    peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return seconds, waited, peak[0] + workers * peak[1] * (kind == "torch")


def measure(kind, work, workers, seconds):
    """Returns the pairs per second of one Python loader, in this fresh process."""
    import torch

    torch.set_num_threads(1)
    loader = iter(LOADERS[kind](work, workers))
    started = time.time()
    while time.time() - started < WARM_UP:
        next(loader)
    pairs, started = 0, time.time()
    while time.time() - started < seconds:
        pairs += next(loader)[0].shape[0]
    return pairs / (time.time() - started)


def litdata_set(work):
    import litdata

    cache = f"{work}/litdata-cache"
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"], os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{cache}/chunks", f"{cache}/data"
    names = sorted(os.listdir(f"{work}/tiles/hr"))
    # Every tile occurs several times, because short epochs would measure the start of workers.
    litdata.optimize(fn=tile_pairs, inputs=[(f"{work}/tiles", n) for n in names] * 4, output_dir=f"{work}/litdata", num_workers=2,
                     chunk_bytes="64MB", compression="zstd", compression_level="sample", verbose=False)
    shutil.rmtree(cache, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("work")
    parser.add_argument("--paragon", default="target/release/paragon")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "WORKERS"), help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, metavar=("KIND", "WORKERS"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.train:
        print(*train(a.train[0], a.work, int(a.train[1]), a.steps))
        return
    if a.measure:
        print(measure(a.measure[0], a.work, int(a.measure[1]), a.seconds))
        return
    work = os.path.abspath(a.work)
    if not os.path.isdir(f"{work}/tiles"):
        print(f"{make_tiles(a.photos, f'{work}/tiles')} tiles", file=sys.stderr)
    for codec in ("predict", "raw"):
        subprocess.run([a.paragon, "shard", f"{work}/tiles", "--out", f"{work}/{codec}", "--codec", codec, "--overwrite"], check=True,
                       stdout=subprocess.DEVNULL)
    if not os.path.isdir(f"{work}/litdata"):
        litdata_set(work)

    def python(kind, workers):
        command = [sys.executable, __file__, a.photos, work, "--seconds", str(a.seconds), "--measure", kind, str(workers)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    def ours(codec, threads):
        command = [a.paragon, "bench", "loader", "--json", "--shards", f"{work}/{codec}", "--threads", str(threads),
                   "--seconds", str(a.seconds), "--batch", str(BATCH)]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return report["runs"][0]["pairs_per_second"]

    rows = [("PyTorch DataLoader, PNG tiles, %d workers", lambda n: python("torch", n), (0, 2)),
            ("LitData, zstd, %d workers", lambda n: python("litdata", n), (0, 2))]
    rows += [("paragon.Loader, float32 NCHW tensors, compressed, %d threads", lambda n: python("float32-predict", n), (1, 2)),
             ("paragon.Loader, float32 NCHW tensors, raw, %d threads", lambda n: python("float32-raw", n), (1, 2)),
             ("paragon.Loader, uint8 NHWC, compressed, %d threads", lambda n: python("uint8-predict", n), (1, 2)),
             ("paragon bench loader, compressed, %d threads", lambda n: ours("predict", n), (1, 2)),
             ("paragon.Loader, uint8 NHWC, raw, %d threads", lambda n: python("uint8-raw", n), (1, 2)),
             ("paragon bench loader, raw, %d threads", lambda n: ours("raw", n), (1, 2))]
    found = {}
    for _ in range(a.rounds):
        for name, run, counts in rows:
            for n in counts:
                found.setdefault(name % n, []).append(run(n))
    best = max(statistics.median(v) for k, v in found.items() if k.startswith("PyTorch"))
    print("| | pairs/s, median | of the faster PyTorch |\n|---|---|---|")
    for name, values in found.items():
        median = statistics.median(values)
        print(f"| {name} | {median:,.0f} | {median / best:.1f}x |")
    if a.steps:
        compare_training(a, work)


def compare_training(a, work):
    """Trains with both loaders in turn and prints medians."""
    found = {}
    for _ in range(a.rounds):
        for name, kind in (("PyTorch DataLoader, 2 workers", "torch"), ("paragon.Loader, 2 threads", "float32-predict")):
            command = [sys.executable, __file__, a.photos, work, "--steps", str(a.steps), "--train", kind, "2"]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.setdefault(name, []).append([float(value) for value in out.split()[-3:]])
    print(f"\n| Compact in PyTorch, {a.steps} batches | s | of these waiting | peak memory |\n|---|---|---|---|")
    for name, runs in found.items():
        seconds, waited, peak = (statistics.median(column) for column in zip(*runs))
        print(f"| {name} | {seconds:.1f} | {waited:.2f} | {peak:,.0f} MiB |")


if __name__ == "__main__":
    main()
