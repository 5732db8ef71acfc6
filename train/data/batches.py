"""Batches without end whose position can be kept, and the rows of a batch that belong to a host."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mhc_jax.config import ConfigError
from train.data.kind import Batch, DataConfig, TrainBatches

if TYPE_CHECKING:
    import grain


def restorable(batches: "grain.MapDataset[Batch]") -> TrainBatches:
    """The batches in order, from a position that can be kept."""
    import grain

    # They come from memory in microseconds: threads and buffers would only cost.
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def numbered(make: Callable[[int], Batch]) -> TrainBatches:
    """The batches ``make(0)``, ``make(1)`` and so on."""
    import grain

    return restorable(grain.MapDataset.range(sys.maxsize).map(make))


def rows_of(config: DataConfig, host: int, hosts: int) -> slice:
    """Rows of the global batch that belong to this host.

    Raises:
        ConfigError: they cannot be shared equally.
    """
    if config.batch_size % hosts:
        raise ConfigError(f"--data.batch-size {config.batch_size} is not a multiple of the {hosts} hosts")
    share = config.batch_size // hosts
    return slice(host * share, (host + 1) * share)


def cut(batch: Batch, rows: slice) -> Batch:
    """Those rows of a global batch."""
    return {name: array[rows] for name, array in batch.items()}
