#!/usr/bin/env python3
"""Compares `paragon degrade` with NumPy, SciPy, OpenCV and Pillow: kernels, resizing, noise, codecs, sharpening,
the order of Real-ESRGAN's chain, and whole chains without noise.

usage: check_degrade.py [--paragon target/release/paragon]
       check_degrade.py --write-samples tests/data/degrade

Needs `pip install -r scripts/requirements-degrade.txt`. Prints one line for each check and ends with 1 if one fails.
--write-samples writes the numbers that the library's tests compare with; it needs torch as well.
"""
import argparse
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import cv2
import numpy as np
from PIL import Image
from scipy import special

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAILED = []


def check(name, value, limit, above=False):
    good = value >= limit if above else value <= limit
    print(f"{'ok  ' if good else 'FAIL'} {name}: {value:.3g} ({'at least' if above else 'at most'} {limit:g})")
    if not good:
        FAILED.append(name)


def psnr(a, b):
    error = np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def drawing(height, width):
    """Waves, edges and colours, as 8-bit RGB."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    planes = [127 + 80 * np.sin(x * (0.05 + 0.02 * c)) * np.cos(y * 0.07) + 35 * (((x // 17 + y // 23) % 2) - 0.5) for c in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


class Program:
    def __init__(self, path, folder):
        self.path, self.folder, self.calls = path, pathlib.Path(folder), 0

    def run(self, steps, image, scale=1, count=1, seed=0):
        """The drawn steps and the LQ of each variant."""
        self.calls += 1
        place = self.folder / str(self.calls)
        place.mkdir()
        Image.fromarray(image).save(place / "in.png")
        recipe = steps
        if isinstance(steps, list):
            recipe = place / "recipe.yml"
            recipe.write_text(json.dumps({"steps": steps}))
        command = [self.path, "degrade", place / "in.png", place / "out", "--recipe", recipe, "--whole", "--json", "--weights"]
        command += ["--scale", scale, "--count", count, "--seed", seed]
        done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
        variants = json.loads(done.stdout)["images"][0]["variants"]
        files = [place / "out" / f"000-in-lq{i}.png" for i in range(count)]
        return [(v["steps"], np.array(Image.open(f))) for v, f in zip(variants, files)]


def kernel(step):
    """The kernel of a drawn blur, from the definitions of Real-ESRGAN's paper."""
    n = step["size"]
    axis = np.arange(n) - n // 2
    x, y = np.meshgrid(axis, axis)
    if step["kernel"] == "sinc":
        c = step["cutoff"] * np.pi
        r = np.hypot(x, y)
        with np.errstate(all="ignore"):
            w = c * special.j1(c * r) / (2 * np.pi * r)
        w[n // 2, n // 2] = c * c / (4 * np.pi)
        return w / w.sum()
    t = np.radians(step["rotation"])
    u = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    inverse = np.linalg.inv(u @ np.diag(np.square(step["sigma"])) @ u.T)
    points = np.stack([x, y], -1)
    q = np.einsum("...i,ij,...j", points, inverse, points)
    b = step["beta"]
    w = 1 / (q**b + 1) if step["kernel"].startswith("plateau") else np.exp(-0.5 * q**b)
    return w / w.sum()


def check_kernels(program):
    shapes = ["isotropic", "anisotropic", "generalised_isotropic", "generalised_anisotropic", "plateau_isotropic", "plateau_anisotropic", "sinc"]
    image = drawing(48, 56)
    for shape in shapes:
        worst, difference = 0, 0
        for (step,), lq in program.run([{"blur": {"kernels": shape}}], image, count=20):
            weights = np.array(step["weights"]).reshape(step["size"], -1)
            worst = max(worst, np.abs(weights - kernel(step)).max())
            expected = cv2.filter2D(image.astype(np.float32), -1, kernel(step), borderType=cv2.BORDER_REFLECT_101)
            difference = max(difference, np.abs(np.clip(expected, 0, 255) - lq).max())
        check(f"kernel {shape}, weights", worst, 1e-6)
        check(f"kernel {shape}, filtered image in levels", difference, 0.51)


def resize_matrix(name, antialias, n, m):
    """`[m, n]`: the weights of a resize by the ratio of the sizes."""
    out = np.zeros((m, n))
    ratio = n / m
    kernels = {
        "bilinear": (1, lambda x, a: np.maximum(0, 1 - abs(x))),
        "bicubic": (2, lambda x, a: np.where(abs(x) <= 1, (a + 2) * abs(x) ** 3 - (a + 3) * x**2 + 1, np.where(abs(x) < 2, a * (abs(x) ** 3 - 5 * x**2 + 8 * abs(x) - 4), 0))),
        "lanczos": (3, lambda x, a: np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)),
    }
    for i in range(m):
        if name == "area":
            first, end = i * n // m, -(-(i + 1) * n // m)
            out[i, first:end] = 1 / (end - first)
        elif name == "nearest_exact":
            out[i, min(int((i + 0.5) * ratio), n - 1)] = 1
        elif name == "box":
            for j in range(n):
                out[i, j] = max(0, min((i + 1) * ratio, j + 1) - max(i * ratio, j))
        else:
            support, f = kernels[name]
            centre = (i + 0.5) * ratio
            stretch = max(ratio, 1) if antialias else 1
            if antialias:
                j = np.arange(n)
                out[i] = f((j + 0.5 - centre) / stretch, -0.5) * (abs(j + 0.5 - centre) <= support * stretch + 0.5)
            else:
                base = int(np.floor(centre - 0.5))
                for j in range(base - support + 1, base + support + 1):
                    out[i, min(max(j, 0), n - 1)] += f(np.float64(j + 0.5 - centre), -0.75)
        out[i] /= out[i].sum()
    return out


def resized(image, name, antialias, size):
    rows = resize_matrix(name, antialias, image.shape[0], size[1])
    columns = resize_matrix(name, antialias, image.shape[1], size[0])
    return np.einsum("ij,jkc,lk->ilc", rows, image, columns, optimize=True)


def check_resizes(program):
    image = drawing(60, 84)
    for name in ["area", "box", "bilinear", "bicubic", "lanczos", "nearest_exact"]:
        for antialias in [False, True]:
            worst = 0
            steps = [{"resize": {"filters": name, "antialias": antialias, "range": [0.2, 1.6], "clamp": False, "directions": {"up": 1, "down": 2}}}, {"to_lq": {"filters": name, "antialias": antialias, "clamp": False}}]
            for drawn, lq in program.run(steps, image, scale=3, count=8):
                expected = image.astype(float)
                for step in drawn:
                    expected = resized(expected, step["filter"], step["antialias"], step["to"])
                worst = max(worst, np.abs(np.clip(expected, 0, 255) - lq).max())
            check(f"resize {name}, {'' if antialias else 'not '}antialiased, in levels", worst, 0.51)
    small = [lq for _, lq in program.run([{"to_lq": {"filters": "bicubic"}}], image, scale=2)][0]
    pillow = Image.fromarray(image).resize((42, 30), Image.Resampling.BICUBIC)
    check("resize bicubic against Pillow in levels", np.abs(np.asarray(pillow, float) - small).max(), 1.01)


def check_noise(program):
    level = np.full((256, 256, 3), 120, np.uint8)
    for sigma in [2, 10, 20]:
        for grey in [0, 1]:
            _, lq = program.run([{"gaussian_noise": {"sigma": sigma, "grey": grey}}], level)[0]
            noise = lq.astype(float) - 120
            deviation = np.sqrt(noise.var() - 1 / 12)
            check(f"gaussian {sigma}, grey {grey}: deviation off by", abs(deviation / sigma - 1), 0.02)
            check(f"gaussian {sigma}, grey {grey}: mean", abs(noise.mean()), 0.15)
            between = np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]
            check(f"gaussian {sigma}, grey {grey}: correlation of channels off by", abs(between - grey), 0.02 if not grey else 0.03)
    # all 256 levels occur, so there are as many photons as levels; the lower half has one level each
    for value in [10, 60, 180]:
        image = np.full((256, 256, 3), value, np.uint8)
        image[0] = np.arange(256)[:, None]
        _, lq = program.run([{"poisson_noise": {"scale": 1, "grey": 0}}], image)[0]
        noise = lq[1:].astype(float) - value
        # counts are whole, so rounding to 8 bits moves the mean: of the same formula with NumPy's counts
        x = value / 255
        drawn = np.random.default_rng(value).poisson(x * 256, noise.shape) / 256 - x
        expected = np.rint(np.clip(x + drawn, 0, 1) * 255) - value
        check(f"poisson at {value}: variance off by", abs(noise.var() / expected.var() - 1), 0.03)
        check(f"poisson at {value}: mean off by", abs(noise.mean() - expected.mean()), 0.15)


def pillow_jpeg(image, quality, sampling):
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "JPEG", quality=quality, subsampling={"444": 0, "422": 1, "420": 2}[sampling])
    return np.array(Image.open(memory))


def check_codecs(program):
    for height, width in [(64, 96), (61, 83), (7, 5), (16, 1)]:
        image = drawing(height, width)
        image = np.clip(image + np.random.default_rng(1).normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        worst = 99
        for sampling in ["444", "422", "420"]:
            for quality in [1, 10, 30, 50, 75, 90, 95, 100]:
                _, lq = program.run([{"jpeg": {"quality": quality, "sampling": sampling}}], image)[0]
                worst = min(worst, psnr(lq, pillow_jpeg(image, quality, sampling)))
        check(f"jpeg {width}x{height} against libjpeg, worst PSNR (99 = equal)", worst, 45, above=True)
    worst = 99
    image = drawing(61, 83)
    for quality in [5, 30, 60, 95]:
        memory = io.BytesIO()
        Image.fromarray(image).save(memory, "WEBP", quality=quality, method=4)
        _, lq = program.run([{"webp": {"quality": quality}}], image)[0]
        worst = min(worst, psnr(lq, np.array(Image.open(memory).convert("RGB"))))
    check("webp against Pillow's libwebp, worst PSNR (99 = equal)", worst, 45, above=True)


def sharpened(image, taps=51, amount=0.5, threshold=10):
    """Unsharp masking with a soft mask; values from 0 to 1."""
    blur = lambda x: cv2.GaussianBlur(x, (taps, taps), 0, borderType=cv2.BORDER_REFLECT_101)
    difference = image - blur(image)
    mask = blur((np.abs(difference) * 255 > threshold).astype(np.float32))
    return mask * np.clip(image + amount * difference, 0, 1) + (1 - mask) * image


def check_sharpening(program):
    image = drawing(80, 96)
    for taps in [7, 51]:
        _, lq = program.run([{"sharpen": {"size": taps}}], image)[0]
        expected = sharpened(image.astype(np.float32) / 255, taps) * 255
        # a difference that is just at the threshold may be on either side of it
        wrong = np.mean(np.abs(expected - lq) > 0.51)
        check(f"sharpen, {taps} taps, share of values that are off", wrong, 0.005)


def check_order(program):
    names = {"blur": "b", "resize": "r", "gaussian_noise": "n", "poisson_noise": "n", "jpeg": "j", "sharpen": "s"}
    pattern = re.compile("sbr?nj" "b?rn" "(r?b?j|jr?b?)")
    image = drawing(64, 64)
    wrong = 0
    second_blur, sinc, gaussian, total = 0, 0, 0, 0
    for seed in range(8):
        for drawn, _ in program.run("real-esrgan", image, scale=4, count=64, seed=seed):
            word = "".join(names[step["step"]] for step in drawn)
            wrong += pattern.fullmatch(word) is None
            total += 1
            gaussian += sum(step["step"] == "gaussian_noise" for step in drawn) / 2
            last = [i for i, step in enumerate(drawn) if step["step"] in ("gaussian_noise", "poisson_noise")][-1]
            sinc += any(step["step"] == "blur" for step in drawn[last:])
            first = [i for i, step in enumerate(drawn) if step["step"] == "jpeg"][0]
            second_blur += any(step["step"] == "blur" for step in drawn[first:last])
    check("real-esrgan: chains in another order", wrong, 0)
    check("real-esrgan: second blur, share off by", abs(second_blur / total - 0.8), 0.05)
    check("real-esrgan: final sinc, share off by", abs(sinc / total - 0.8), 0.05)
    check("real-esrgan: Gaussian noise, share off by", abs(gaussian / total - 0.5), 0.06)


def check_chains(program):
    """Real-ESRGAN's chain without its noise, whole."""
    shown = json.loads(subprocess.run([program.path, "degrade", "--show", "real-esrgan", "--json"], check=True, capture_output=True, text=True).stdout)
    steps = [step for step in shown["steps"] if "noise" not in json.dumps(step)]
    image = drawing(128, 128)
    worst = 99
    for drawn, lq in program.run(steps, image, scale=4, count=24):
        out = image.astype(np.float32) / 255
        for step in drawn:
            if step["step"] == "sharpen":
                out = sharpened(out)
            elif step["step"] == "blur":
                out = cv2.filter2D(out, -1, kernel(step), borderType=cv2.BORDER_REFLECT_101)
            elif step["step"] == "resize":
                out = resized(out, step["filter"], step["antialias"], step["to"]).astype(np.float32)
            elif step["step"] == "jpeg":
                pixels = np.rint(np.clip(out, 0, 1) * 255).astype(np.uint8)
                out = pillow_jpeg(pixels, step["quality"], step["sampling"]).astype(np.float32) / 255
        worst = min(worst, psnr(np.rint(np.clip(out, 0, 1) * 255), lq))
    check("real-esrgan without noise, 24 chains: worst PSNR", worst, 45, above=True)


def write_samples(folder):
    """An image and what libjpeg makes of it, resized lines of torch, and kernels."""
    import torch
    from torch.nn.functional import interpolate

    noise = np.random.default_rng(3).normal(0, 10, (29, 35, 3))
    image = np.clip(drawing(29, 35) + noise, 0, 255).astype(np.uint8)
    coded = [pillow_jpeg(image, quality, sampling) for sampling in ["444", "422", "420"] for quality in [5, 50, 92]]
    (folder / "jpeg.bin").write_bytes(b"".join(pixels.tobytes() for pixels in [image, *coded]))

    line = [0.1, 0.9, 0.3, 0.35, 0.8, 0.05, 0.5, 0.55, 0.95, 0.2, 0.6]
    source = torch.tensor(line, dtype=torch.float64).repeat(1, 1, 2, 1)
    cases = []
    for name, antialias in [("area", False), ("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True), ("nearest_exact", False)]:
        more = {"antialias": antialias, "align_corners": False} if name.startswith("bi") else {}
        for size in [4, 7, 11, 17]:
            values = interpolate(source, size=(2, size), mode=name.replace("_", "-"), **more)[0, 0, 0].tolist()
            cases.append({"filter": name, "antialias": antialias, "to": size, "values": values})
    (folder / "resize.json").write_text(json.dumps({"source": f"torch {torch.__version__}", "line": line, "resized": cases}))

    steps = [
        {"kernel": "isotropic", "size": 7, "sigma": [1.3, 1.3], "rotation": 0, "beta": 1},
        {"kernel": "anisotropic", "size": 9, "sigma": [0.7, 2.5], "rotation": 33, "beta": 1},
        {"kernel": "generalised_anisotropic", "size": 7, "sigma": [1.1, 2.0], "rotation": -120, "beta": 0.6},
        {"kernel": "plateau_anisotropic", "size": 7, "sigma": [0.4, 1.9], "rotation": 71, "beta": 1.8},
        {"kernel": "sinc", "size": 13, "cutoff": 0.45},
    ]
    for step in steps:
        step["weights"] = kernel(step).ravel().tolist()
    (folder / "kernels.json").write_text(json.dumps({"source": "NumPy and SciPy", "kernels": steps}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paragon", default=str(ROOT / "target/release/paragon"))
    parser.add_argument("--write-samples", type=pathlib.Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.write_samples:
        return write_samples(options.write_samples)
    with tempfile.TemporaryDirectory() as folder:
        program = Program(options.paragon, folder)
        for part in [check_kernels, check_resizes, check_noise, check_codecs, check_sharpening, check_order, check_chains]:
            part(program)
    print(f"{len(FAILED)} failed")
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
