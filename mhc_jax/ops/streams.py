"""Parallel residual streams: storing, reading, mixing and writing.

Only this file depends on their layout, a tuple of arrays. A single array with an axis of streams is slower on an
accelerator, whatever the place of the axis, because its slices are padded to full size in the backward pass; sums over
a tuple fuse, on a CPU as well.

Streams may have a narrower dtype than their coefficients. Results have the wider of the two, so that a caller who adds
up a new state rounds it only once, at the end.

Orientation: ``mix[i, j]`` is the weight from source stream j to destination stream i.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Axis of the streams in the single array that taps and other frameworks use.
STREAM_AXIS = -2


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Streams:
    """N parallel streams, each (B, T, D): a pytree, so that ``jax.tree.map`` treats one stream like an array.

    Attributes:
        parts: the streams; accessed only in this file.
    """

    parts: tuple[jax.Array, ...]

    @classmethod
    def copies(cls, x_BTD: jax.Array, streams: int) -> Self:
        """Streams that all equal one array."""
        return cls((x_BTD,) * streams)

    @classmethod
    def unstack(cls, h_BTND: jax.Array) -> Self:
        """The streams in one array (B, T, N, D)."""
        return cls(tuple(jnp.unstack(h_BTND, axis=STREAM_AXIS)))

    def stack(self) -> jax.Array:
        """One array (B, T, N, D) of all streams."""
        return jnp.stack(self.parts, axis=STREAM_AXIS)

    def join(self) -> jax.Array:
        """One array (B, T, N * D), stream after stream: the inverse of :func:`split_streams`."""
        return jnp.concatenate(self.parts, axis=-1)

    def fractions(self, count: int) -> "Streams":
        """Each stream cut into ``count`` streams of equal width: fraction f of stream s is number f * N + s."""
        cut = [split_streams(x, count).parts for x in self.parts]
        return Streams(tuple(part for same_fraction in zip(*cut) for part in same_fraction))

    def join_fractions(self, count: int) -> "Streams":
        """The inverse of :meth:`fractions`."""
        n = len(self) // count
        return Streams(tuple(Streams(self.parts[i::n]).join() for i in range(n)))

    def each(self, function: Callable[..., jax.Array], *others: "Streams | Sequence[Any]") -> "Streams":
        """``function(h_i, other_i, ...)`` for every stream i; others are streams, or have one entry for each."""
        columns = [other.parts if isinstance(other, Streams) else other for other in others]
        return Streams(tuple(function(*row) for row in zip(self.parts, *columns, strict=True)))

    def astype(self, dtype: Any) -> "Streams":
        """Every stream in that dtype."""
        return self.each(lambda x: x.astype(dtype))

    def total(self) -> jax.Array:
        """The sum of the streams, (B, T, D)."""
        return functools.reduce(operator.add, self.parts)

    def __add__(self, other: "Streams") -> "Streams":
        return self.each(operator.add, other)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def dtype(self) -> Any:
        """The dtype of every stream."""
        return self.parts[0].dtype

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(B, T)."""
        return self.parts[0].shape[:-1]


def split_streams(x_BTM: Float[Array, "*B M"], streams: int) -> Streams:
    """Cuts the last axis into ``streams`` equal runs; run i becomes stream i."""
    return Streams(tuple(jnp.split(x_BTM, streams, axis=-1)))


def read(h: Streams, weight_N: Float[Array, "*B N"]) -> Float[Array, "*B D"]:
    """``u = sum_i weight[i] * h_i``; the weights may be static (N,) or per token (B, T, N)."""
    return write(h, weight_N).total()


def mix(h: Streams, mix_MN: Float[Array, "*B M N"]) -> Streams:
    """``h'_i = sum_j mix[i, j] * h_j``; the matrix may be static (M, N) or per token (B, T, M, N)."""
    return Streams(tuple(read(h, row_N) for row_N in jnp.unstack(mix_MN, axis=-2)))


def write(y: Float[Array, "*B D"] | Streams, weight_N: Float[Array, "*B N"]) -> Streams:
    """``weight[i] * y_i`` for every stream i; y is one array for all streams, or differs by stream."""
    y = y if isinstance(y, Streams) else Streams.copies(y, weight_N.shape[-1])
    return y.each(lambda x, weight: weight[..., None] * x, jnp.unstack(weight_N, axis=-1))


def project(h: Streams, phi_KM: Float[Array, "K M"]) -> Float[Array, "*B K"]:
    """``phi @ x``, where x is the concatenation of all streams of a token."""
    return h.each(lambda x, phi_KD: jnp.einsum("...d,kd->...k", x, phi_KD), split_streams(phi_KM, len(h))).total()


def diversity(h: Streams) -> Float[Array, ""]:
    """The stream-diversity term of mHC-SSM: ``mean |G - I|`` over the cosine matrix G of the mean streams.

    0 when the mean streams are orthogonal, (N - 1) / N when they coincide.
    """
    mean_ND = h.each(lambda x: jnp.mean(x, axis=(0, 1))).stack()
    squared = jnp.sum(jnp.square(mean_ND), axis=-1, keepdims=True)
    # The inner where keeps the derivative of sqrt finite at zero.
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    unit_ND = mean_ND / jnp.maximum(norm, 1e-8)
    return jnp.mean(jnp.abs(unit_ND @ unit_ND.T - jnp.eye(mean_ND.shape[0], dtype=mean_ND.dtype)))
