"""Training pairs for super-resolution at the speed of memory.

    import paragon

    paragon.shard("photos", out="shards", scale=2, lq_size=128)   # once
    for batch in paragon.Loader("shards", batch_size=16, lq_size=64):
        lq, hr = batch.torch()                                      # float32 NCHW in [0, 1], no copy

`Loader` reads sets of shards with threads of its own, in an order that depends on the seed alone.
`ShardSet` gives single pairs. `shard` makes a set. `paragon.torch` has a dataset for PyTorch's
DataLoader. The command `paragon` is installed with the module.
"""

from ._paragon import Array, Batch, DamagedError, Error, Loader, __version__
from ._commands import ShardSet, shard

__all__ = ["Array", "Batch", "DamagedError", "Error", "Loader", "ShardSet", "shard", "__version__"]
