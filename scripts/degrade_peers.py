#!/usr/bin/env python3
"""Measures Real-ESRGAN's degradation by its parts in OpenCV and NumPy, beside `cargo bench --bench degrade`.

The chain is that of the preset `real-esrgan` (HR 256, LQ 64) with the functions that a data loader of BasicSR would call on the
CPU: filters and resizing by OpenCV on f32, noise by NumPy, JPEG by OpenCV in memory. One process for each core, one thread each.

With --margin N, N pixels more on each side of the HR are degraded too and cut off at the end, as paragon's margins are; Real-ESRGAN
itself degrades 400 x 400 pixels for 256 x 256, which is a margin of 72.

usage: degrade_peers.py [--processes 2] [--seconds 10] [--margin 0]

Needs `pip install -r scripts/requirements-degrade.txt`.
"""
import argparse
import math
import multiprocessing
import time

import cv2
import numpy as np
from scipy import special

SCALE = 4
HR = 256  # and the margin on both sides


def kernel(rng, sigma, sinc=0.1, low=None):
    n = 2 * rng.integers(3, 11) + 1
    axis = np.arange(n) - n // 2
    x, y = np.meshgrid(axis, axis)
    if rng.random() < sinc:
        c = rng.uniform(np.pi / 3 if low or n < 13 else np.pi / 5, np.pi)
        with np.errstate(all="ignore"):
            w = c * special.j1(c * np.hypot(x, y)) / (2 * np.pi * np.hypot(x, y))
        w[n // 2, n // 2] = c * c / (4 * np.pi)
        return w / w.sum()
    kind = rng.choice(6, p=[0.45, 0.25, 0.12, 0.03, 0.12, 0.03])
    sx, sy = rng.uniform(*sigma, 2)
    t = rng.uniform(-np.pi, np.pi)
    if kind % 2 == 0:
        sy, t = sx, 0
    u = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    inverse = np.linalg.inv(u @ np.diag([sx * sx, sy * sy]) @ u.T)
    points = np.stack([x, y], -1)
    q = np.sum(points @ inverse * points, 2)
    if kind >= 4:
        b = rng.uniform(1, 1) if rng.random() < 0.5 else rng.uniform(1, 2)
        w = 1 / (q**b + 1)
    else:
        b = 1 if kind < 2 else rng.uniform(0.5, 1) if rng.random() < 0.5 else rng.uniform(1, 4)
        w = np.exp(-0.5 * q**b)
    return w / w.sum()


def blur(image, weights):
    return cv2.filter2D(image, -1, weights, borderType=cv2.BORDER_REFLECT_101)


def resize(rng, image, size):
    way = rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC])
    return cv2.resize(image, size, interpolation=int(way))


def noise(rng, image, sigma, scale):
    grey = rng.random() < 0.4
    if rng.random() < 0.5:
        shape = image.shape[:2] + ((1,) if grey else (3,))
        added = rng.standard_normal(shape, dtype=np.float32) * (rng.uniform(*sigma) / 255)
    else:
        source = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if grey else image
        source = np.clip((source * 255).round(), 0, 255) / 255
        values = 2 ** math.ceil(math.log2(len(np.unique(source))))
        added = ((rng.poisson(source * values) / values - source) * rng.uniform(*scale)).astype(np.float32)
    return np.clip(image + added, 0, 1)


def jpeg(rng, image):
    _, data = cv2.imencode(".jpg", np.clip(image, 0, 1) * 255, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 96))])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(np.float32) / 255


def sharpen(image):
    smooth = lambda x: cv2.GaussianBlur(x, (51, 51), 0)
    difference = image - smooth(image)
    mask = smooth((np.abs(difference) * 255 > 10).astype(np.float32))
    return mask * np.clip(image + 0.5 * difference, 0, 1) + (1 - mask) * image


def degrade(rng, hr):
    lq = HR // SCALE
    out = sharpen(hr.astype(np.float32) / 255)
    out = blur(out, kernel(rng, (0.2, 3)))
    way = rng.choice(3, p=[0.2, 0.7, 0.1])
    factor = [rng.uniform(1, 1.5), rng.uniform(0.15, 1), 1][way]
    out = resize(rng, out, (int(HR * factor), int(HR * factor)))
    out = jpeg(rng, noise(rng, out, (1, 30), (0.05, 3)))
    if rng.random() < 0.8:
        out = blur(out, kernel(rng, (0.2, 1.5)))
    way = rng.choice(3, p=[0.3, 0.4, 0.3])
    factor = [rng.uniform(1, 1.2), rng.uniform(0.3, 1), 1][way]
    out = resize(rng, out, (int(lq * factor), int(lq * factor)))
    out = noise(rng, out, (1, 25), (0.05, 2.5))
    last = kernel(rng, (1, 1), 1, True) if rng.random() < 0.8 else None
    ring = lambda x: x if last is None else blur(x, last)
    if rng.random() < 0.5:
        out = jpeg(rng, ring(resize(rng, out, (lq, lq))))
    else:
        out = ring(resize(rng, jpeg(rng, out), (lq, lq)))
    return (np.clip(out, 0, 1) * 255).round().astype(np.uint8)


def drawing(rng):
    """Shapes that hide one another, with texture."""
    image = np.zeros((HR, HR, 3), np.uint8)
    for _ in range(200):
        centre, radius = tuple(int(v) for v in rng.integers(0, HR, 2)), int(rng.integers(4, 50))
        cv2.circle(image, centre, radius, tuple(int(v) for v in rng.integers(0, 256, 3)), -1, cv2.LINE_AA)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def work(arguments):
    number, seconds = arguments
    cv2.setNumThreads(1)
    rng = np.random.default_rng(number)
    images = [drawing(rng) for _ in range(16)]
    for hr in images:
        degrade(rng, hr)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        degrade(rng, images[done % 16])
        done += 1
    return done / (time.perf_counter() - start)


def parts():
    """Milliseconds of single steps at the HR size."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    image = drawing(rng).astype(np.float32) / 255
    wide = np.exp(-0.5 * np.hypot(*np.mgrid[-10:11, -10:11]) / 3)
    grey = image * 0 + rng.random(image.shape, dtype=np.float32)
    for name, step in [
        ("usm, 51 taps", lambda: sharpen(image)),
        ("blur, 21 x 21", lambda: blur(image, wide / wide.sum())),
        ("resize, bicubic", lambda: cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC)),
        ("gaussian noise", lambda: np.clip(image + rng.standard_normal(image.shape, dtype=np.float32) * 0.06, 0, 1)),
        ("poisson noise", lambda: np.clip(image + (rng.poisson(grey * 256) / 256 - grey), 0, 1)),
        ("jpeg, 4:2:0", lambda: jpeg(rng, image)),
    ]:
        step()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < 1:
            step()
            count += 1
        print(f"{name:<20} {1000 * (time.perf_counter() - start) / count:9.3f} ms on one thread")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--margin", type=int, default=0, help="HR pixels on each side, a multiple of 4")
    options = parser.parse_args()
    global HR
    HR += 2 * options.margin  # before the processes are forked
    with multiprocessing.Pool(options.processes) as pool:
        rates = pool.map(work, [(i, options.seconds) for i in range(options.processes)], chunksize=1)
    print(f"real-esrgan by OpenCV and NumPy: {sum(rates):.1f} pairs/s, {options.processes} processes, {HR} x {HR} pixels degraded")
    parts()


if __name__ == "__main__":
    main()
