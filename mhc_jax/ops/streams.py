"""Parallel residual streams: how they are held, read, mixed and written.

This file alone owns their layout, a tuple of arrays. An array with an axis of streams costs an accelerator more,
wherever the axis stands, as slices of it are padded back in the backward pass; sums over a tuple fuse, on a CPU too.

Streams may be held in a narrower dtype than their coefficients. Results have the wider of the two, so that a caller who
adds up a new state rounds it once, at the end.

Orientation: ``mix[i, j]`` is the weight from source stream j to destination stream i.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of the arrays that hold all streams for taps and for other frameworks.
STREAM_AXIS = -2


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Streams:
    """N parallel streams, each (B, T, D). Opaque outside this file: a pytree to be carried and handed on.

    Attributes:
        parts: the streams.
    """

    parts: tuple[jax.Array, ...]

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of every stream."""
        return self.parts[0].dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B, T)."""
        return self.parts[0].shape[:-1]

    def astype(self, dtype: jnp.dtype) -> "Streams":
        """The streams rounded to that dtype."""
        return each(lambda x: x.astype(dtype), self)


def each(function: Callable[..., jax.Array], h: Streams, *others: Streams | Sequence[Any]) -> Streams:
    """``function(h_i, other_i, ...)`` for every stream i; the others are streams too, or hold one thing for each."""
    columns = [other.parts if isinstance(other, Streams) else other for other in others]
    return Streams(tuple(function(*row) for row in zip(h.parts, *columns, strict=True)))


def each_or_one(function: Callable[[jax.Array], jax.Array], x: jax.Array | Streams) -> jax.Array | Streams:
    """``function`` of every stream, or of the one array."""
    return each(function, x) if isinstance(x, Streams) else function(x)


def stack(h: Streams) -> Float[Array, "*B N D"]:
    """One array of all streams."""
    return jnp.stack(h.parts, axis=STREAM_AXIS)


def unstack(h_BTND: Float[Array, "*B N D"]) -> Streams:
    """The inverse of :func:`stack`."""
    return Streams(jnp.unstack(h_BTND, axis=STREAM_AXIS))


def copies(x_BTD: Float[Array, "*B D"], streams: int) -> Streams:
    """The same array as every stream."""
    return Streams((x_BTD,) * streams)


def split_streams(x_BTM: Float[Array, "*B M"], streams: int) -> Streams:
    """Cuts the last axis into ``streams`` equal runs; run i becomes stream i."""
    return Streams(tuple(jnp.split(x_BTM, streams, axis=-1)))


def join_streams(h: Streams) -> Float[Array, "*B M"]:
    """The inverse of :func:`split_streams`."""
    return jnp.concatenate(h.parts, axis=-1)


def fractions(h: Streams, count: int) -> Streams:
    """``count`` equal parts of the width of every stream, as streams: fraction f of stream s is number f * N + s."""
    return Streams(tuple(part for cut in zip(*(split_streams(x, count).parts for x in h.parts)) for part in cut))


def join_fractions(pieces: Streams, count: int) -> Streams:
    """The inverse of :func:`fractions`."""
    n = len(pieces) // count
    return Streams(tuple(join_streams(Streams(pieces.parts[i::n])) for i in range(n)))


def total(h: Streams) -> Float[Array, "*B D"]:
    """The sum of all streams."""
    return functools.reduce(operator.add, h.parts)


def add(h: Streams, g: Streams) -> Streams:
    """Stream by stream."""
    return each(operator.add, h, g)


def read(h: Streams, weight_N: Float[Array, "*B N"]) -> Float[Array, "*B D"]:
    """``u = sum_i weight[i] * h_i``; the weights may be static (N,) or per token (B, T, N)."""
    return total(_weighted(h, weight_N))


def mix(h: Streams, mix_MN: Float[Array, "*B M N"]) -> Streams:
    """``h'_i = sum_j mix[i, j] * h_j``; the matrix may be static (M, N) or per token (B, T, M, N)."""
    return Streams(tuple(read(h, row_N) for row_N in jnp.unstack(mix_MN, axis=-2)))


def write(y: Float[Array, "*B D"] | Streams, weight_N: Float[Array, "*B N"]) -> Streams:
    """``weight[i] * y_i`` for every stream i; y is one array for all streams, or differs by stream."""
    return _weighted(y if isinstance(y, Streams) else copies(y, weight_N.shape[-1]), weight_N)


def _weighted(h: Streams, weight_N: jax.Array) -> Streams:
    weights = Streams(tuple(w[..., None] for w in jnp.unstack(weight_N, axis=-1)))
    return each(operator.mul, weights, h)


def project(h: Streams, phi_KM: Float[Array, "K M"]) -> Float[Array, "*B K"]:
    """``phi @ x`` with x all streams of a token as one vector, stream after stream."""
    return total(each(lambda x, phi_KD: x @ phi_KD.T, h, split_streams(phi_KM, len(h))))


def mean_square(h: Streams) -> Float[Array, "*B 1"]:
    """The mean of the squares of all streams of a token."""
    return total(each(lambda x: jnp.mean(jnp.square(x), axis=-1, keepdims=True), h)) / len(h)


def diversity(h: Streams) -> Float[Array, ""]:
    """The stream-diversity term of mHC-SSM: ``mean |G - I|`` over the cosine matrix G of the mean streams.

    0 when the mean streams are orthogonal, (N - 1) / N when they coincide.
    """
    mean_ND = stack(each(lambda x: jnp.mean(x, axis=(0, 1)), h))
    squared = jnp.sum(jnp.square(mean_ND), axis=-1, keepdims=True)
    # The inner where keeps the derivative of sqrt finite at zero.
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    unit_ND = mean_ND / jnp.maximum(norm, 1e-8)
    return jnp.mean(jnp.abs(unit_ND @ unit_ND.T - jnp.eye(mean_ND.shape[0], dtype=mean_ND.dtype)))
