"""The contract of the two ends of the residual streams."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.residual.base import ResidualConfig, State
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy
from mhc_jax.registry import required


class StreamEnds(nnx.Module):
    """The maps from the embedding to the residual streams, and from the state to the output."""

    @required
    def expand(self, x_BTD: jax.Array) -> jax.Array | Streams:
        """The streams before the first site; the array itself for a topology without streams."""

    @required
    def collapse(self, state: State) -> jax.Array:
        """The output (B, T, D) from the state after the last site; most ends need only its :func:`streams_of`."""


@dataclasses.dataclass(frozen=True)
class EndsConfig(Config):
    """Base of all stream-end configurations."""

    axis: ClassVar[str] = "ends"

    @required
    def check(self, residual: ResidualConfig) -> None:
        """Raises ConfigError if these ends do not fit the states of that topology."""

    @required
    def build(self, width: int, stream_count: int | None, policy: Policy, init: Init) -> StreamEnds: ...
