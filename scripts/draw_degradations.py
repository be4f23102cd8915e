#!/usr/bin/env python3
"""Draws the pictures of docs/degradation.md: the HR crop, then variants of each step and each preset.

The photograph is "astronaut" of scikit-image (NASA, public domain). All draws have fixed seeds.

usage: draw_degradations.py [--paragon target/release/paragon] [--out docs/images/degradation]

Needs `pip install -r scripts/requirements-degrade.txt`.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

from PIL import Image
from skimage import data

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIDE, COUNT, GAP, QUALITY = 160, 4, 4, 88
# left and top of the crop
CROP = (150, 40)
# keys that show a step better than its defaults
KEYS = {
    "blur": {"kernels": ["isotropic", "anisotropic", "plateau_anisotropic", "sinc", "motion", "median"]},
    "sharpen": {"amount": [0.5, 2]},
    "resize": {"range": [0.3, 1], "directions": "down", "filters": ["area", "bilinear", "lanczos", "nearest_exact"], "antialias": False},
    "to_lq": {"filters": ["area", "bilinear", "bicubic", "lanczos"]},
    "jpeg": {"quality": [5, 50]},
    "webp": {"quality": [0, 40]},
    "quantise": {"levels": [4, 16]},
    "chroma_shift": {"x": [-4, 4], "y": [-4, 4]},
    "colour": {"gamma": [0.7, 1.4], "saturation": [0.5, 1.5], "cast": [-0.08, 0.08]},
}
STEPS = ["blur", "sharpen", "halo", "resize", "to_lq", "gaussian_noise", "poisson_noise", "jpeg", "webp", "quantise", "chroma_shift", "colour"]
PRESETS = {"real-esrgan": 4, "real-esrgan-light": 4, "jpeg": 1, "denoise": 1, "web": 2}


def draw(paragon, hr, recipe, scale, folder, out):
    place = folder / out.stem
    command = [paragon, "degrade", hr, place, "--recipe", recipe, "--scale", scale, "--count", COUNT, "--whole", "--seed", 3]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    images = [Image.open(hr)] + [Image.open(place / f"000-hr-lq{i}.png") for i in range(COUNT)]
    sheet = Image.new("RGB", (len(images) * SIDE + (len(images) - 1) * GAP, SIDE), "white")
    for column, image in enumerate(images):
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (column * (SIDE + GAP), 0))
    sheet.save(out, quality=QUALITY, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paragon", default=str(ROOT / "target/release/paragon"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/images/degradation")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        left, top = CROP
        hr = folder / "hr.png"
        Image.fromarray(data.astronaut()).convert("RGB").crop((left, top, left + SIDE, top + SIDE)).save(hr)
        for step in STEPS:
            recipe = folder / f"{step}.yml"
            recipe.write_text(json.dumps({"steps": [{step: KEYS.get(step, {})}]}))
            draw(options.paragon, hr, recipe, 2 if step == "to_lq" else 1, folder, options.out / f"{step}.jpg")
        for preset, scale in PRESETS.items():
            draw(options.paragon, hr, preset, scale, folder, options.out / f"preset-{preset}.jpg")
    total = sum(file.stat().st_size for file in options.out.glob("*.jpg"))
    print(f"{options.out}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
