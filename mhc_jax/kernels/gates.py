"""Coefficients of a token from a projection of its streams: what kernels have to know of a site."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mhc_jax.ops.sinkhorn import HalfSteps


class Gates(NamedTuple):
    """How projected numbers of a token become its coefficients.

    Attributes:
        of: K arrays of one shape, an entry for each token, to as many numbers, element by element: whatever weighs
            reads and writes, and behind them the logits of the matrix, row by row.
        streams: N, so that the last N * N are logits.
        iters, half_steps: Sinkhorn's iterations, begun on these logits.
    """

    of: Callable[[Sequence[jax.Array]], list[jax.Array]]
    streams: int
    iters: int
    half_steps: HalfSteps

    @property
    def sinkhorn(self) -> tuple[int, HalfSteps]:
        """Number and order of the iterations."""
        return self.iters, self.half_steps


class Site(NamedTuple):
    """What a site does, but for its parameters.

    Attributes:
        channels, eps: of the mean square in :func:`mhc_jax.ops.hyper.flat_weights`, over all streams.
        norm, dtype: of the read, as in :class:`mhc_jax.kernels.streams.Normalised`.
        gates: of the K projected numbers.
    """

    channels: int
    eps: float
    norm: Callable[..., jax.Array]
    dtype: Any
    gates: Gates

    def logits(self, sums_LC: jax.Array, scale_K1: jax.Array, bias_K1: jax.Array) -> jax.Array:
        """(K, tokens) of the products with phi and, behind them, the sum of all squares (K + 1, tokens)."""
        products_KC, squares_1C = sums_LC[:-1], sums_LC[-1:]
        return scale_K1 * products_KC * jax.lax.rsqrt(squares_1C / self.channels + self.eps) + bias_K1


class Params(NamedTuple):
    """Float32 parameters of a site: phi (K, N * D), scale and bias of the logits (K, 1), matrices of the norm."""

    phi: jax.Array
    scale: jax.Array
    bias: jax.Array
    norm: tuple[jax.Array, ...]
