"""The loader as a dataset of PyTorch, with the dicts that BasicSR, traiNNer-redux and neosr expect.

    from torch.utils.data import DataLoader
    from paragon.torch import PairedDataset

    dataset = PairedDataset("shards", batch_size=16, lq_size=64)
    loader = DataLoader(dataset, batch_size=None, num_workers=0)
    for data in loader:
        data["lq"], data["gt"]      # float32 NCHW RGB in [0, 1]
"""

from __future__ import annotations

from typing import Any, Iterator, Optional

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ._paragon import Batch, Loader

__all__ = ["PairedDataset", "to_device"]


def _process(rank: Optional[int], world_size: Optional[int]) -> tuple[int, int]:
    """This process among those of the training: as given, else as torch.distributed knows it."""
    if (rank is None) != (world_size is None):
        raise ValueError("give rank and world_size together, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def to_device(batch: Batch, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies a batch to a device; returns `(lq, hr)` there.

    From pinned memory (`Loader(..., pin_memory=True)`) the copies run beside the computation, and the
    loader does not fill the memory again before they have ended.
    """
    device = torch.device(device)
    lq, hr = batch.torch()
    copies = lq.to(device, non_blocking=True), hr.to(device, non_blocking=True)
    if device.type == "cuda":
        ended = torch.cuda.Event()
        ended.record(torch.cuda.current_stream(device))
        batch.keep_until(ended)
    return copies


class PairedDataset(IterableDataset):
    """Whole batches for `DataLoader(dataset, batch_size=None, num_workers=0)`.

    Each item is a dict: `lq` and `gt` (float32 NCHW RGB in [0, 1], views of the loader's memory),
    `lq_path` and `gt_path` (for each sample the image that it was cut from).

    `for` gives the rest of the present epoch, and the next `for` goes on after it. With
    torch.distributed every rank gets its own samples, and together they are those that one process
    would get. The keyword arguments are those of `paragon.Loader`.
    """

    def __init__(
        self,
        shards: Any,
        batch_size: int = 16,
        *,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
        paths: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        rank, world_size = _process(rank, world_size)
        self.loader = Loader(shards, batch_size, rank=rank, world_size=world_size, **options)
        self._paths = paths

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise RuntimeError(
                "PairedDataset has threads of its own: use DataLoader(dataset, batch_size=None, num_workers=0)"
            )
        for batch in self.loader:
            lq, gt = batch.torch()
            data: dict[str, Any] = {"lq": lq, "gt": gt}
            if self._paths:
                images = batch.images
                data.update(lq_path=images, gt_path=list(images))
            # The tensors keep the memory; the batch must not, or it would be held one step longer.
            del batch, lq, gt
            yield data
            del data

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """The position, also in the middle of an epoch: the next batch is the first after it."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.loader.load_state_dict(state)
