"""The contract of a residual topology."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy

State = Any


def streams_of(state: State) -> Any:
    """The streams, or the one residual stream (B, T, D), of a state: itself, or the entry ``"streams"`` of a dict."""
    return state["streams"] if isinstance(state, dict) else state


def with_streams(state: State, h: jax.Array | Streams) -> State:
    """The state with its streams replaced."""
    return {**state, "streams": h} if isinstance(state, dict) else h


class Residual(nnx.Module):
    """How the residual state passes one site (a branch such as a mixer). Position-wise by contract.

    The state is :class:`~mhc_jax.ops.streams.Streams`, touched through :mod:`mhc_jax.ops.streams` alone, or one array
    (B, T, D), or a dict that holds either under ``"streams"`` beside what else is carried: a pytree of fixed shapes and
    dtypes, the carry of the scan over layers. Streams may be narrower than coefficients (``policy.streams``): sums are
    taken in the dtype of the coefficients, and :meth:`post` rounds the new streams once. No token's state may depend on
    another token, so decoding needs no residual cache.

    Attributes:
        views: reads per site. With V > 1, :meth:`pre` gives (V, B, T, D): a branch that takes V inputs gets them all,
            any other their mean.
        branches: runs of the branch per site, with the same weights on different reads. With I > 1, :meth:`pre` gives
            and :meth:`post` takes (I, B, T, D).
        normalised: what the branch reads is normalised already, so the site does not normalise it again.
    """

    views: int = 1
    branches: int = 1
    normalised: bool = False

    def pre(self, state: State, scope: Scope) -> tuple[jax.Array, Any]:
        """What the branch reads, (B, T, D), and the context that :meth:`post` needs."""
        raise NotImplementedError

    def post(self, state: State, y: jax.Array | Streams, ctx: Any, scope: Scope) -> State:
        """The state after the branch has returned ``y``: (B, T, D), or streams if it differs by stream."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ResidualConfig(Config):
    """Base of all topology configurations; ``views`` and ``branches`` as in :class:`Residual`.

    Attributes:
        carries: what the state holds beside the streams, by name.
    """

    axis: ClassVar[str] = "residual"
    views: ClassVar[int] = 1
    branches: ClassVar[int] = 1
    carries: ClassVar[frozenset[str]] = frozenset()

    @property
    def stream_count(self) -> int | None:
        """Number of parallel streams in the state, or None if the state is one array (B, T, D)."""
        raise NotImplementedError

    def begin(self, h: jax.Array | Streams) -> State:
        """The state before the first site, from the expanded streams."""
        return h

    def build(self, width: int, policy: Policy, init: Init) -> Residual:
        raise NotImplementedError
