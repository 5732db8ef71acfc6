"""A system that cases run: a tiny model under a name, its weights and its batch."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from mhc_jax.config import Config
from mhc_jax.interop.names import torch_shapes
from mhc_jax.nn.model import ModelConfig

VOCAB, POSITIONS, WIDTH, LAYERS, BATCH, TIME = 13, 9, 5, 2, 2, 7

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class System:
    """A model under a name.

    Attributes:
        decoded: whether it is decoded, too, by prefill and single steps.
    """

    name: str
    config: ModelConfig
    decoded: bool = False

    @property
    def covers(self) -> frozenset[str]:
        """The registered parts of the model."""
        return kinds_of(self.config)


def kinds_of(config: Config) -> frozenset[str]:
    """``"axis:kind"`` of the record and of all that it holds."""
    return frozenset(f"{part.axis}:{part.kind}" for part in config.parts() if part.axis and part.kind)


@dataclasses.dataclass(frozen=True)
class Weights(Mapping[str, np.ndarray]):
    """Random values everywhere, so that no part is inert, symmetric or an identity; by the mirror's names.

    They are drawn when first read: the catalogue of cases names hundreds of models and builds none.
    """

    config: ModelConfig

    @functools.cached_property
    def _drawn(self) -> Arrays:
        rng = np.random.default_rng(1)
        return {name: _draw(rng, name, shape) for name, shape in torch_shapes(self.config).items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._drawn)

    def __len__(self) -> int:
        return len(self._drawn)


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    gain = name.endswith("norm.weight") or ".gamma_" in name
    scale = 1.0 if name.endswith(("_logits", "logit_a")) else 0.4
    return np.asarray(float(gain) + scale * rng.standard_normal(shape), np.float32)


def batch(config: ModelConfig, time: int = TIME) -> Arrays:
    """Random tokens and targets, some of which do not count."""
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, config.vocab_size, (2, BATCH, time))
    targets[0, :2] = -100
    return {"tokens": tokens, "targets": targets}


def split(values: Mapping[str, np.ndarray], *groups: str) -> Arrays:
    """The values whose name begins with one of the groups."""
    return {name: value for name, value in values.items() if name.split(" ", 1)[0] in groups}
