#!/usr/bin/env python3
"""Draws the comparison at the top of the README: LQ, bicubic, a trained network and HR of two photographs.

The photographs are the ones that scikit-image ships and that anyone may use: "astronaut" (NASA, public domain) and "chelsea"
(Stefan van der Walt, CC0). Neither is among the images that the networks of the README were trained on.

usage: draw_first_page.py MODEL OUT.png [--paragon target/release/paragon] [--scale 2] [--name "Nano, 30 minutes on two cores"]

Needs `pip install scikit-image pillow`.
"""
import argparse
import pathlib
import subprocess
import tempfile

from PIL import Image, ImageDraw, ImageFont
from skimage import data

ROOT = pathlib.Path(__file__).resolve().parent.parent
# image, then left, top and side of the crop in HR pixels
CROPS = [("astronaut", 176, 64, 96), ("chelsea", 128, 84, 96)]
CELL = 230
GAP = 6
TITLE = 22


def photograph(name, scale):
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    return image.crop((0, 0, image.width // scale * scale, image.height // scale * scale))


def upscaled(paragon, model, lq, folder):
    source, result = folder / "lq.png", folder / "sr.png"
    lq.save(source)
    subprocess.run([paragon, "upscale", source, result, "-m", model], check=True, capture_output=True)
    return Image.open(result).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--paragon", default=str(ROOT / "target/release/paragon"))
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--name", default="paragon")
    options = parser.parse_args()

    titles = ["LQ", "bicubic", options.name, "HR"]
    width = len(titles) * CELL + (len(titles) - 1) * GAP
    height = TITLE + len(CROPS) * CELL + (len(CROPS) - 1) * GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((column * (CELL + GAP) + CELL // 2, TITLE // 2), title, "black", font, anchor="mm")
    with tempfile.TemporaryDirectory() as folder:
        for row, (name, left, top, side) in enumerate(CROPS):
            hr = photograph(name, options.scale)
            lq = hr.resize((hr.width // options.scale, hr.height // options.scale), Image.Resampling.BICUBIC)
            bicubic = lq.resize(hr.size, Image.Resampling.BICUBIC)
            network = upscaled(options.paragon, options.model, lq, pathlib.Path(folder))
            pixels = lq.resize(hr.size, Image.Resampling.NEAREST)
            for column, image in enumerate([pixels, bicubic, network, hr]):
                crop = image.crop((left, top, left + side, top + side)).resize((CELL, CELL), Image.Resampling.NEAREST)
                sheet.paste(crop, (column * (CELL + GAP), TITLE + row * (CELL + GAP)))
    sheet.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
