"""The networks that `cpu_peers.py` compares, with the sizes of a step. Depends on the standard library alone, so that `--help`
needs no torch.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One network: what PyTorch builds, what paragon is asked for, and the default sizes of a step and of an image."""

    title: str
    batch: int  # patches in a batch
    lq: int  # side of an LQ patch in pixels
    program: str  # the name that paragon knows the network by, whose default sizes are `sizes`
    sizes: dict[str, int] = field(default_factory=dict)  # what `--set` can change
    image: int = 512  # side in pixels of the image that is upscaled
    # levels of `paragon bench step --recompute`; PyTorch is compared with the first
    recompute: tuple[str, ...] = ("block",)
    # The window attention has several forms in PyTorch (`networks.ATTENTION`), of which the fastest is compared. Such a network is
    # also much slower than the others, so paragon repeats its steps and images less often, and it upscales the image in one tile.
    attention: bool = False


CASES = {
    "nano": Case("Nano", 16, 128, "nano"),
    "stream": Case("Stream", 4, 128, "paragonsr2_stream"),
    "photo": Case("Photo", 2, 128, "paragonsr2_photo", image=512, recompute=("none", "block"), attention=True),
    "pro": Case("Pro", 1, 64, "paragonsr2_pro", image=256, recompute=("none", "block"), attention=True),
    "span": Case("SPAN", 8, 64, "span_s", {"features": 48}),
    "compact": Case("Compact", 8, 64, "compact", {"features": 64, "convolutions": 16}),
}
