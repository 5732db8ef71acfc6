"""Coefficients of a token from a projection of its streams: what kernels have to know of a site."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from mhc_jax.ops.sinkhorn import HalfSteps


class Gates(NamedTuple):
    """How projected numbers of a token become its coefficients.

    Attributes:
        of: maps arrays of one shape, an entry for each token, to the N weights of reads, the N of writes, and N * N
            logits or, without iterations, entries of the matrix, row by row.
        streams: N.
        iters, half_steps: Sinkhorn's iterations, begun on the logits; 0 iterations for none.
    """

    of: Callable[[Sequence[jax.Array]], list[jax.Array]]
    streams: int
    iters: int
    half_steps: HalfSteps

    @property
    def count(self) -> int:
        """Number of coefficients."""
        return 2 * self.streams + self.streams**2


class Site(NamedTuple):
    """What a site does, but for its parameters.

    Attributes:
        channels, eps: of the mean square in :func:`mhc_jax.ops.hyper.flat_weights`, over all streams.
        norm, dtype: of the read, as in :class:`mhc_jax.kernels.streams.Normalised`.
        gates: of the K projected numbers, to C coefficients.
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
