"""Tasks whose batches are drawn: the kind of data that a person writes in twenty lines."""

import dataclasses

import numpy as np

from mhc_jax.config import ConfigError
from mhc_jax.registry import required
from train.data.batches import cut, numbered, rows_of
from train.data.errors import DataError
from train.data.files import sha256_json
from train.data.kind import IGNORE, Batch, Data, DataConfig, EvalBatches

# The seeds of the splits, which share no draws.
STREAMS = {"train": 0, "validation": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class GeneratedConfig(DataConfig):
    """A task with endless batches. A subclass states its ``vocab_size`` and draws its rows.

    Attributes:
        epoch_steps: optimizer steps that count as an epoch.
        eval_count: batches of an evaluation, the same ones every time.
    """

    epoch_steps: int = 1000
    eval_count: int = 8

    def validate(self):
        super().validate()
        self.require_counts(1, "epoch_steps", "eval_count")

    @required
    def draw(self, random: np.random.Generator, rows: int) -> Batch:
        """``inputs`` and ``targets``, integers of shape (rows, ``seq_len``); a target of -100 is left out.

        Args:
            random: all randomness; the same one gives the same rows.
        """

    def staged(self, drawn: Batch, step: int) -> Batch:
        """What a training step, counted from 0, takes of its drawn rows, for a curriculum; evaluation takes all."""
        return drawn

    def load(self, needed=()):
        return Generated(self)


class Generated(Data):
    """Batch ``i`` of a split depends only on the configuration and on ``i``."""

    def __init__(self, config: GeneratedConfig):
        self.config = config
        first, again = ({name: x.tolist() for name, x in self._batch(0, 0).items()} for _ in range(2))
        if first != again:
            raise DataError(f"data {config.label!r} draws other rows from the same generator: it must use no other")
        self.fingerprint = sha256_json([config.to_dict(), first])

    def check(self, vocab_size):
        if self.config.vocab_size() > vocab_size:
            raise DataError(
                f"the model's vocabulary of {vocab_size} is smaller than the {self.config.vocab_size()} tokens of data "
                f"{self.config.label!r}; leave --model.vocab-size at 0 to follow the data"
            )

    def introduction(self, baselines):
        return f"data: {self.config.label}, drawn as it is needed; {self.config.eval_count} batches of validation"

    def steps_per_epoch(self):
        return self.config.epoch_steps

    def targets_share(self):
        return float((self._batch(STREAMS["train"], 0)["targets"] != IGNORE).mean())

    def train(self, host=0, hosts=1):
        rows = rows_of(self.config, host, hosts)
        return numbered(lambda step: cut(self._batch(STREAMS["train"], step), rows))

    def evaluation(self, split="validation", host=0, hosts=1):
        if split not in STREAMS:
            raise ConfigError(f"data {self.config.label!r} has no {split} split")
        rows = rows_of(self.config, host, hosts)
        return EvalBatches(self.config.eval_count, lambda index: cut(self._batch(STREAMS[split], index), rows))

    def _batch(self, stream: int, index: int) -> Batch:
        config = self.config
        # Drawn whole, so that hosts agree, and seeded by its number, so that any can be the first after a restart.
        drawn = config.draw(np.random.default_rng([config.seed, stream, index]), config.batch_size)
        wanted, known = config.arrays(), isinstance(drawn, dict)
        shapes = {name: np.shape(array) for name, array in drawn.items()} if known else type(drawn).__name__
        if shapes != wanted:
            raise DataError(f"data {config.label!r} drew {shapes}; it must draw arrays of shapes {wanted}")
        if stream == STREAMS["train"]:
            drawn = config.staged(drawn, index)
        for name, array in drawn.items():
            self._check_ids(name, np.asarray(array))
        if (np.asarray(drawn["targets"]) == IGNORE).all():
            raise DataError(f"data {config.label!r} drew a batch without a target; every batch must have one")
        return {name: np.asarray(array, np.int32) for name, array in drawn.items()}

    def _check_ids(self, name: str, array: np.ndarray) -> None:
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"data {self.config.label!r} drew {name} of dtype {array.dtype}; they must be integers")
        below = self.config.vocab_size() if name in ("inputs", "targets") else 2**31
        wrong = (array < 0) | (array >= below)
        if name == "targets":
            wrong &= array != IGNORE
        if wrong.any():
            raise DataError(
                f"data {self.config.label!r} drew {array[wrong][0]} among its {name}, outside 0..{below - 1}"
            )
