"""The contract of a residual topology."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.norms.base import Norm
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy
from mhc_jax.registry import required

State = Any


def streams_of(state: State) -> Any:
    """The streams, or the single stream (B, T, D), of a state: the state itself, or ``"streams"`` of a dict."""
    return state["streams"] if isinstance(state, dict) else state


def with_streams(state: State, h: jax.Array | Streams) -> State:
    """The state with its streams replaced."""
    return {**state, "streams": h} if isinstance(state, dict) else h


class Residual(nnx.Module):
    """The path of the residual state through one site, around a branch such as a mixer.

    The state is :class:`~mhc_jax.ops.streams.Streams`, accessed only through :mod:`mhc_jax.ops.streams`, or one array
    (B, T, D), or a dict with either of them under ``"streams"`` and with further entries. It is the carry of the scan
    over layers: a pytree of fixed shapes and dtypes. Streams may have a narrower dtype than coefficients
    (``policy.streams``): sums are taken in the dtype of the coefficients, and :meth:`post` rounds the new streams once.
    The state of a token must not depend on other tokens, so that decoding needs no residual cache.

    Attributes:
        views: number of reads per site. With V > 1, :meth:`pre` returns (V, B, T, D): a branch with V inputs gets all
            of them, any other branch their mean.
        branches: number of runs of the branch per site, with the same weights on different reads. With I > 1,
            :meth:`pre` returns and :meth:`post` takes (I, B, T, D).
        normalised: whether :meth:`pre` returns a normalised array, so that the site does not normalise it again.
        fuses_norm: whether :meth:`pre` can take the norm of the site, and then returns the input of the branch.
    """

    views: int = 1
    branches: int = 1
    normalised: bool = False
    fuses_norm: bool = False

    @required
    def pre(self, state: State, scope: Scope, norm: Norm | None = None) -> tuple[jax.Array, Any]:
        """The input of the branch, (B, T, D), and the context that :meth:`post` needs.

        Args:
            norm: only given if the topology fuses norms: normalises the input, which then has the dtype of products.
        """

    @required
    def post(self, state: State, y: jax.Array | Streams, ctx: Any, scope: Scope) -> State:
        """The state after the branch has returned ``y``, which is (B, T, D), or streams if it differs between them.

        Its streams may be :class:`~mhc_jax.nn.deferred.Deferred`, which the next site of the same topology reads.
        """


@dataclasses.dataclass(frozen=True)
class ResidualConfig(Config):
    """Base of all topology configurations; ``views`` and ``branches`` as in :class:`Residual`.

    Attributes:
        carries: names of the entries of the state beside the streams.
    """

    axis: ClassVar[str] = "residual"
    views: ClassVar[int] = 1
    branches: ClassVar[int] = 1
    carries: ClassVar[frozenset[str]] = frozenset()

    @property
    @required
    def stream_count(self) -> int | None:
        """Number of parallel streams in the state, or None if the state is one array (B, T, D)."""

    def begin(self, h: jax.Array | Streams) -> State:
        """The state before the first site, from the expanded streams."""
        return h

    def check(self, width: int) -> None:
        """Raises ConfigError if the topology cannot be built for that width."""

    def check_kernels(self, width: int, policy: Policy) -> None:
        """Raises ConfigError if kernels are asked for that cannot take that width in these dtypes."""

    @required
    def build(self, width: int, policy: Policy, init: Init) -> Residual: ...
