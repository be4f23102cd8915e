"""The networks that `cpu_peers.py` compares, with the sizes of a step. Depends on the standard library alone, so that `--help`
needs no torch.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One network: what PyTorch builds, what paragon is asked for, and the default sizes of a training step."""

    title: str
    batch: int  # patches in a batch
    lq: int  # side of an LQ patch in pixels
    program: str  # the name that paragon knows the network by, whose default sizes are `sizes`
    sizes: dict[str, int] = field(default_factory=dict)  # what `--set` can change


CASES = {
    "nano": Case("Nano", 16, 128, "nano"),
    "stream": Case("Stream", 4, 128, "paragonsr2_stream"),
    "span": Case("SPAN", 8, 64, "span_s", {"features": 48}),
    "compact": Case("Compact", 8, 64, "compact", {"features": 64, "convolutions": 16}),
}
