"""Windows of tokens in batches: shuffled or random, and endless, for training, in order and once for evaluation.

A window is ``seq_len`` tokens and the same tokens one further on. Unless they are random, windows do not overlap and a
rest shorter than a window is dropped. Every host makes the same global batches and keeps its own rows.
"""

from collections.abc import Sequence

import numpy as np

from train.data.batches import cut, numbered, restorable, rows_of
from train.data.config import CorpusConfig
from train.data.errors import DataError
from train.data.kind import IGNORE, Batch, DataConfig, EvalBatches, TrainBatches
from train.data.tokens import Tokens


class Windows:
    """Random access to the windows of a token array.

    Args:
        tokens: 1-D, integer, ``len`` of them.
        config: ``seq_len`` T and ``documents`` are read.
        end: the end token, which begins a document where documents are apart.

    Window ``i`` of the ``(len - 1) // T`` is ``{"inputs": tokens[i*T : i*T+T], "targets": tokens[i*T+1 : i*T+T+1]}``,
    both int32 of shape (T,). Where documents are apart it also holds ``segments``, their numbers, and ``positions``,
    counted from the first token of each.
    """

    def __init__(self, tokens: Tokens, config: CorpusConfig, end: int | None = None):
        self._tokens, self._seq_len = tokens, config.seq_len
        self._end = end if config.documents == "apart" else None

    def __len__(self) -> int:
        return max(len(self._tokens) - 1, 0) // self._seq_len

    def __getitem__(self, index: int) -> Batch:
        return self.at(index * self._seq_len)

    def at(self, start: int) -> Batch:
        """The window that begins with token ``start``."""
        window = np.asarray(self._tokens[start : start + self._seq_len + 1], np.int32)
        arrays = {"inputs": window[:-1], "targets": window[1:]}
        return arrays if self._end is None else arrays | _documents(window[:-1] == self._end)


def _documents(begins_T: np.ndarray) -> Batch:
    """The document that each token of a window belongs to, and its position there."""
    places_T = np.arange(len(begins_T), dtype=np.int32)
    first_T = np.maximum.accumulate(np.where(begins_T, places_T, 0))
    return {"segments": np.cumsum(begins_T, dtype=np.int32), "positions": places_T - first_T}


def steps_per_epoch(tokens: Tokens, config: CorpusConfig) -> int:
    """Full batches of windows that do not overlap; of random windows, as many.

    Raises:
        DataError: the tokens do not fill one batch.
    """
    windows = len(Windows(tokens, config))
    if windows < config.batch_size:
        raise DataError(
            f"{len(tokens)} training tokens make {windows} windows of {config.seq_len}, fewer than one batch of "
            f"{config.batch_size}; use more text, or a smaller --data.seq-len or --data.batch-size"
        )
    return windows // config.batch_size


def train_batches(
    tokens: Tokens, config: CorpusConfig, *, end: int | None = None, host: int = 0, hosts: int = 1
) -> TrainBatches:
    """Batches without end.

    Of packed windows, each epoch visits all in another order and drops the last, short batch. Random windows start at
    each of the positions that leave room for them with equal probability, drawn anew for every step. Either way the
    batches depend on ``config.seed`` alone. ``get_state()`` gives a JSON-compatible position that ``set_state()``
    returns to, on any number of hosts.

    Args:
        tokens: 1-D, integer.
        config: ``seq_len`` T, ``batch_size`` B, ``windows``, ``documents`` and ``seed`` are read.
        end: see :class:`Windows`.
        host, hosts: index of this host, and the number of hosts that share each batch.

    Returns:
        An iterator of ``{"inputs": int32 (B / hosts, T), "targets": int32 (B / hosts, T), ...}``.

    Raises:
        DataError: the tokens do not fill one batch.
        ConfigError: the batch cannot be shared equally.
    """
    steps_per_epoch(tokens, config)
    rows, windows = rows_of(config, host, hosts), Windows(tokens, config, end)
    return (
        _random(windows, len(tokens), config, rows) if config.windows == "random" else shuffled(windows, config, rows)
    )


def shuffled(windows: Sequence[Batch] | Windows, config: DataConfig, rows: slice) -> TrainBatches:
    """Batches without end, of these rows: every epoch visits all windows in another order and drops a short batch."""
    import grain

    # Grain shuffles epoch e with seed + e; spread, so that neighbouring seeds do not share epochs.
    seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    batches = (
        grain.MapDataset.source(windows)
        .shuffle(seed)
        .batch(config.batch_size, drop_remainder=True)
        .map(lambda batch: cut(batch, rows))
        .repeat()
    )
    return restorable(batches)


def _random(windows: Windows, count: int, config: CorpusConfig, rows: slice) -> TrainBatches:
    def batch(step: int) -> Batch:
        # Seeded by the step, so that any of them can be the first after a restart; drawn whole, so that hosts agree.
        draws = np.random.default_rng([config.seed, step])
        starts = draws.integers(count - config.seq_len, size=config.batch_size)
        drawn = [windows.at(start) for start in starts[rows].tolist()]
        return {name: np.stack([window[name] for window in drawn]) for name in drawn[0]}

    return numbered(batch)


def eval_batches(
    tokens: Tokens, config: CorpusConfig, *, end: int | None = None, host: int = 0, hosts: int = 1
) -> EvalBatches:
    """All windows once, in order, in batches of equal shape: the last is filled up with targets of -100.

    Args and shapes as in :func:`train_batches`; -100 is what the loss leaves out.

    Raises:
        DataError: the tokens do not fill one window.
        ConfigError: the batch cannot be shared equally.
    """
    windows, rows = Windows(tokens, config, end), rows_of(config, host, hosts)
    if len(windows) == 0:
        raise DataError(
            f"{len(tokens)} tokens to evaluate on do not fill one window of {config.seq_len} and its target; "
            "use more text or a smaller --data.seq-len"
        )
    return in_order(windows, config, rows)


def in_order(windows: Sequence[Batch] | Windows, config: DataConfig, rows: slice) -> EvalBatches:
    """All windows once, in batches of these rows; the last is filled up with targets of -100."""
    size = config.batch_size

    def batch(index: int) -> Batch:
        arrays = {name: np.zeros(shape, np.int32) for name, shape in config.arrays().items()}
        arrays["targets"][:] = IGNORE
        for row, window in enumerate(range(index * size, min(index * size + size, len(windows)))):
            for name, values in windows[window].items():
                arrays[name][row] = values
        return cut(arrays, rows)

    return EvalBatches(-(-len(windows) // size), batch)
