"""The contract of every kind of data: a record that travels with a run, and the data that it loads."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from mhc_jax.config import Config, ConfigError
from mhc_jax.registry import required

if TYPE_CHECKING:
    from mhc_jax.functional import Params
    from mhc_jax.nn.model import ModelConfig
    from train.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]

# A target that the loss ignores.
IGNORE = -100

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The data of a run: a kind of the axis ``"data"``.

    Attributes:
        seq_len: tokens per row of a batch; also the model's ``max_len`` unless that is given.
        batch_size: rows in one optimizer step, over all devices and accumulation steps.
        seed: seed of the data's order, or of its draws.
    """

    axis = "data"

    # Whether its tokens stand for text, which a model can continue.
    is_text: ClassVar[bool] = False
    # Fields that may differ between the hosts of a run: they locate the data, but do not define it.
    of_a_host: ClassVar[tuple[str, ...]] = ()
    # Further fields that a resumed run may change: they affect none of its numbers.
    free_on_resume: ClassVar[tuple[str, ...]] = ()

    seq_len: int = 256
    batch_size: int = 16
    seed: int = 1337

    def validate(self):
        super().validate()
        self.require_not_negative("seed")
        self.require_counts(1, "seq_len", "batch_size")

    def settled(self) -> Self:
        """The record, completed with everything that a run must remember about the data."""
        return self

    @property
    def label(self) -> str:
        """A short description; losses are comparable only between runs with the same label."""
        return self.kind or type(self).__name__

    @property
    def identity(self) -> str:
        """The subject of its fingerprint, as used in messages."""
        return "the data"

    @property
    def unit(self) -> str:
        """The kind of token; losses per token are comparable only between runs with the same unit."""
        return "tokens"

    def tokenizer_of_text(self) -> "Tokenizer":
        """The tokenizer that turns its tokens into text.

        Raises:
            ConfigError: the tokens do not stand for text.
        """
        raise ConfigError(f"data {self.label!r} is not text")

    @required
    def vocab_size(self) -> int:
        """The number of different tokens, counting inputs and targets."""

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a batch, ``inputs`` and ``targets`` among them; all are int32.

        ``segments`` and ``positions``, if present, are the arguments of :func:`mhc_jax.apply`.
        """
        shape = self.batch_size, self.seq_len
        return {"inputs": shape, "targets": shape}

    @required
    def load(self, needed: Sequence[str] = SPLITS) -> "Data":
        """The data itself.

        Args:
            needed: splits that must exist.

        Raises:
            DataError: something is missing or wrong.
        """


class TextConfig(DataConfig):
    """Base of data whose tokens a tokenizer makes of text; its kinds have a field ``tokenizer``."""

    is_text = True
    tokenizer: str

    def tokenizer_of_text(self):
        from train.data.tokenizer import load_tokenizer

        return load_tokenizer(self.tokenizer)

    def vocab_size(self):
        return self.tokenizer_of_text().vocab_size


class TrainBatches(Protocol):
    """An endless iterator over the batches of one host, with a position that checkpoints store."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-compatible."""
        ...

    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """A known number of batches; every iteration starts with the first one."""

    count: int
    make: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, range(self.count))


class Data(abc.ABC):
    """Loaded data.

    Attributes:
        config: the record that it was loaded from.
        fingerprint: SHA-256 that differs whenever the training or validation data differ.
    """

    config: DataConfig
    fingerprint: str

    @abc.abstractmethod
    def check(self, vocab_size: int) -> None:
        """Raises DataError if a token lies outside a model's vocabulary."""

    def begun_as(self, fingerprint: str) -> bool:
        """Whether a run that began with data of that fingerprint may continue with this data."""
        return fingerprint == self.fingerprint

    @abc.abstractmethod
    def introduction(self, baselines: Mapping[str, float]) -> str:
        """A description of the data, in lines of at most 80 characters.

        Args:
            baselines: see :meth:`baselines`.
        """

    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches of a pass over the training data.

        Raises:
            DataError: there is not one.
        """

    def targets_share(self) -> float:
        """The share of places of training batches that have a target; the first loss scale of float16 depends on it."""
        return 1.0

    @abc.abstractmethod
    def train(self, host: int = 0, hosts: int = 1) -> TrainBatches:
        """Endless batches for one of several hosts, which share each global batch by rows.

        Raises:
            ConfigError: the rows cannot be shared equally.
        """

    @abc.abstractmethod
    def evaluation(self, split: str = "validation", host: int = 0, hosts: int = 1) -> EvalBatches:
        """All of a split once, in order, in batches of equal shape; the last is filled up with :data:`IGNORE`.

        Raises:
            ConfigError: no such split, or as :meth:`train`.
        """

    def scores(self, split: str, sums: Mapping[str, float], *, thorough: bool = False) -> dict[str, float]:
        """Scores from an objective's sums over a split: the mean of each over targets, and ``tokens``, their number.

        Args:
            thorough: also those that take another look at the whole split.
        """
        count = sums["tokens"]
        means = {name: sums[name] / count for name in ("loss", *sorted(sums.keys() - {"loss", "tokens"}))}
        return means | {"tokens": int(count)}

    def shown(self, scores: Mapping[str, float]) -> str:
        """Scores of validation in words, for one line."""
        return "  ".join(f"val_{name} {value:.4f}" for name, value in scores.items())

    def baselines(self, vocab_size: int) -> dict[str, float]:
        """Losses of simple models on validation data, nats per token, by name, for comparison with the trained model.

        Args:
            vocab_size: vocabulary size of the model.
        """
        return {}

    def closing(self, summary: Mapping[str, Any]) -> str:
        """The outcome of the run, in a line or two."""
        known = {name.removeprefix("val_"): value for name, value in summary.items() if name.startswith("val_")}
        return "validation " + ", ".join(f"{name} {value:.4f}" for name, value in known.items())

    def epilogue(self, model: "ModelConfig", params: "Params", seed: int) -> str:
        """Shows and returns a sample of the trained model's output; empty if there is none."""
        return ""


def places(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Positions and segments of the tokens of a batch, as arguments of :func:`mhc_jax.apply`."""
    return {"positions": batch.get("positions"), "segment_ids": batch.get("segments")}
