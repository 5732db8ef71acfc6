"""The contract of a residual topology, and of the two ends of its streams."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.taps import Tap, no_tap
from mhc_jax.precision import Policy

State = Any


class Residual(nnx.Module):
    """How the residual state passes one site (a branch such as a mixer). Position-wise by contract.

    The state is a pytree of fixed shapes, the carry of the scan over layers. No token's state may
    depend on another token, so decoding needs no residual cache.
    """

    def pre(self, state: State, *, key: jax.Array | None = None, tap: Tap = no_tap) -> tuple[jax.Array, Any]:
        """What the branch reads, (B, T, D), and the context that :meth:`post` needs. ``key`` drives dropout."""
        raise NotImplementedError

    def post(self, state: State, y: jax.Array, ctx: Any, *, key: jax.Array | None = None, tap: Tap = no_tap) -> State:
        """The state after the branch has returned ``y``: (B, T, D), or (B, T, N, D) if it differs by stream."""
        raise NotImplementedError


class StreamEnds(nnx.Module):
    """How the embedding becomes the residual state, and how the state becomes the output."""

    def expand(self, x_BTD: jax.Array) -> State:
        raise NotImplementedError

    def collapse(self, state: State) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ResidualConfig(Config):
    """Base of all topology configurations."""

    axis: ClassVar[str] = "residual"

    @property
    def stream_count(self) -> int | None:
        """Number of parallel streams in the state (B, T, N, D), or None if the state is (B, T, D)."""
        raise NotImplementedError

    def build(self, width: int, policy: Policy, init: Init) -> Residual:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EndsConfig(Config):
    """Base of all stream-end configurations."""

    axis: ClassVar[str] = "ends"

    def check(self, stream_count: int | None) -> None:
        """Raises ConfigError if these ends cannot serve a state of that many streams (None: no stream axis)."""
        raise NotImplementedError

    def build(self, width: int, stream_count: int | None, policy: Policy, init: Init) -> StreamEnds:
        raise NotImplementedError
