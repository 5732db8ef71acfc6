"""Windows of tokens in batches: shuffled or random, and endless, for training, in order and once for evaluation.

A window is ``seq_len`` tokens and the same tokens one further on. Unless they are random, windows do not overlap and a
rest shorter than a window is dropped. Every host makes the same global batches and keeps its own rows.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mhc_jax.config import ConfigError
from train.config import DataConfig
from train.data.errors import DataError
from train.data.tokens import Tokens

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]

IGNORE = -100


class Windows:
    """Random access to the windows of a token array.

    Args:
        tokens: 1-D, integer, ``len`` of them.
        seq_len: tokens of a window, ``T``.

    Window ``i`` of the ``(len - 1) // T`` is ``{"inputs": tokens[i*T : i*T+T], "targets": tokens[i*T+1 : i*T+T+1]}``,
    both int32 of shape (T,).
    """

    def __init__(self, tokens: Tokens, seq_len: int):
        self._tokens = tokens
        self._seq_len = seq_len

    def __len__(self) -> int:
        return max(len(self._tokens) - 1, 0) // self._seq_len

    def __getitem__(self, index: int) -> Batch:
        return _window(self._tokens, index * self._seq_len, self._seq_len)


def steps_per_epoch(tokens: Tokens, config: DataConfig) -> int:
    """Full batches of windows that do not overlap; of random windows, as many.

    Raises:
        DataError: the tokens do not fill one batch.
    """
    windows = len(Windows(tokens, config.seq_len))
    if windows < config.batch_size:
        raise DataError(
            f"{len(tokens)} training tokens make {windows} windows of {config.seq_len}, fewer than one batch of "
            f"{config.batch_size}; use more text, or a smaller --data.seq-len or --data.batch-size"
        )
    return windows // config.batch_size


def train_batches(
    tokens: Tokens, config: DataConfig, *, host: int = 0, hosts: int = 1
) -> "grain.DatasetIterator[Batch]":
    """Batches without end.

    Of packed windows, each epoch visits all in another order and drops the last, short batch. Random windows start at
    each of the positions that leave room for them with equal probability, drawn anew for every step. Either way the
    batches depend on ``config.seed`` alone. ``get_state()`` gives a JSON-compatible position that ``set_state()``
    returns to, on any number of hosts.

    Args:
        tokens: 1-D, integer.
        config: ``seq_len`` T, ``batch_size`` B, ``windows`` and ``seed`` are read.
        host, hosts: this one of so many, which share each batch.

    Returns:
        An iterator of ``{"inputs": int32 (B / hosts, T), "targets": int32 (B / hosts, T)}``.

    Raises:
        DataError: the tokens do not fill one batch.
        ConfigError: the batch cannot be shared equally, or the seed is negative.
    """
    steps_per_epoch(tokens, config)
    rows = _host_rows(config, host, hosts)
    if config.seed < 0:
        raise ConfigError(f"--data.seed must not be negative, got {config.seed}")
    import grain

    make = _random if config.windows == "random" else _shuffled
    # Windows come from memory in microseconds: threads and buffers would only cost.
    return iter(make(tokens, config, rows).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def _shuffled(tokens: Tokens, config: DataConfig, rows: slice) -> "grain.MapDataset[Batch]":
    import grain

    # Grain shuffles epoch e with seed + e; spread, so that neighbouring seeds do not share epochs.
    seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    return (
        grain.MapDataset.source(Windows(tokens, config.seq_len))
        .shuffle(seed)
        .batch(config.batch_size, drop_remainder=True)
        .map(lambda batch: _rows_of(batch, rows))
        .repeat()
    )


def _random(tokens: Tokens, config: DataConfig, rows: slice) -> "grain.MapDataset[Batch]":
    import grain

    def batch(step: int) -> Batch:
        # Seeded by the step, so that any of them can be the first after a restart; drawn whole, so that hosts agree.
        draws = np.random.default_rng([config.seed, step])
        starts = draws.integers(len(tokens) - config.seq_len, size=config.batch_size)
        windows = [_window(tokens, start, config.seq_len) for start in starts[rows].tolist()]
        return {name: np.stack([window[name] for window in windows]) for name in windows[0]}

    return grain.MapDataset.range(sys.maxsize).map(batch)


def eval_batches(tokens: Tokens, config: DataConfig, *, host: int = 0, hosts: int = 1) -> Iterator[Batch]:
    """All windows once, in order, in batches of equal shape: the last is filled up with targets of -100.

    Args and shapes as in :func:`train_batches`; -100 is what the loss leaves out.

    Raises:
        DataError: the tokens do not fill one window.
        ConfigError: the batch cannot be shared equally.
    """
    windows = Windows(tokens, config.seq_len)
    rows = _host_rows(config, host, hosts)
    if len(windows) == 0:
        raise DataError(
            f"{len(tokens)} tokens to evaluate on do not fill one window of {config.seq_len} and its target; "
            "use more text or a smaller --data.seq-len"
        )
    return (_eval_batch(windows, start, config, rows) for start in range(0, len(windows), config.batch_size))


def eval_count(tokens: Tokens, config: DataConfig) -> int:
    """How many batches :func:`eval_batches` gives."""
    return -(-len(Windows(tokens, config.seq_len)) // config.batch_size)


def _eval_batch(windows: Windows, start: int, config: DataConfig, rows: slice) -> Batch:
    """Rows of the batch whose first window is ``start``."""
    shape = (config.batch_size, config.seq_len)
    batch = {"inputs": np.zeros(shape, np.int32), "targets": np.full(shape, IGNORE, np.int32)}
    for row, index in enumerate(range(start, min(start + config.batch_size, len(windows)))):
        for name, values in windows[index].items():
            batch[name][row] = values
    return _rows_of(batch, rows)


def _window(tokens: Tokens, start: int, seq_len: int) -> Batch:
    window = np.asarray(tokens[start : start + seq_len + 1], np.int32)
    return {"inputs": window[:-1], "targets": window[1:]}


def _rows_of(batch: Batch, rows: slice) -> Batch:
    return {name: array[rows] for name, array in batch.items()}


def _host_rows(config: DataConfig, host: int, hosts: int) -> slice:
    if config.batch_size % hosts:
        raise ConfigError(f"--data.batch-size {config.batch_size} is not a multiple of the {hosts} hosts")
    share = config.batch_size // hosts
    return slice(host * share, (host + 1) * share)
