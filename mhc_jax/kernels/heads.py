"""Heads side by side in one tile of a TPU, and sums over the tokens of a chunk."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mhc_jax.kernels.products import product


@dataclasses.dataclass(frozen=True)
class Heads:
    """``count`` heads side by side in the last axis, and products of each with its own.

    The second factor is set apart, every head in its own rows with zeros beside it, so that a product of whole matrices
    is that of every head.

    Attributes:
        factor: dtype of factors.
    """

    count: int
    factor: Any

    def apart(self, x_CM: jax.Array) -> jax.Array:
        """(count * C, M): the block-diagonal matrix of the heads."""
        return jnp.concatenate([jnp.where(own, x_CM, 0) for own in self._lanes(x_CM.shape)])

    def times(self, a_RC: jax.Array, b_CM: jax.Array) -> jax.Array:
        """``a b`` of every head, (R, M)."""
        return self._product(a_RC, self.apart(b_CM), 1, 0)

    def times_transposed(self, a_RM: jax.Array, b_CM: jax.Array) -> jax.Array:
        """``a b'`` of every head, (R, count * C)."""
        return self._product(a_RM, self.apart(b_CM), 1, 1)

    def transposed_times(self, a_CV: jax.Array, b_CK: jax.Array) -> jax.Array:
        """``a' b`` of every head, (V / count, K)."""
        rows = jnp.split(self._product(a_CV, b_CK, 0, 0), self.count)
        return sum(jnp.where(own, x, 0) for own, x in zip(self._lanes(rows[0].shape), rows, strict=True))

    def each_times_transposed(self, rows: Sequence[jax.Array], b_CM: jax.Array) -> list[jax.Array]:
        """``a b'`` of every head for each ``a`` of the same shape, in one product."""
        return jnp.split(self.times_transposed(jnp.concatenate(rows), b_CM), len(rows))

    def spread(self, columns: Sequence[jax.Array], width: int) -> jax.Array:
        """A column (C, 1) of every head over its lanes, (C, count * width)."""
        lanes = self._lanes((columns[0].shape[0], self.count * width))
        return sum(jnp.where(own, x, 0) for own, x in zip(lanes, columns, strict=True))

    def pairs(self, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Numbers of the tokens ``i`` and ``j`` at ``[i, j]`` of every head, (C, count * C); C is a power of two."""
        shape = tokens, self.count * tokens
        return iota(shape, 0), iota(shape, 1) & (tokens - 1)

    def sums(self, x_CM: Float[Array, "C M"]) -> "Sums":
        return Sums(list(_halves(x_CM)))

    def recomputed(self, run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """``run``, which computes little from much; the memory of a TPU's core holds both for the backward pass."""
        return run

    def _product(self, a, b, of_a, of_b):
        return product(a, b, of_a, of_b, self.factor)

    def _lanes(self, shape: tuple[int, int]) -> list[jax.Array]:
        lane, width = iota(shape, 1), shape[1] // self.count
        return [(lane >= h * width) & (lane < (h + 1) * width) for h in range(self.count)]


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the tokens of a chunk cut into pieces of 1, 2, 4 ... C tokens, a power of two.

    ``levels`` has for each size those from the start of a token's piece up to and with it, and those after it to the
    piece's end. Nothing is subtracted: beside sums of -1000 small ones keep all their digits.
    """

    levels: Sequence[tuple[Float[Array, "C M"], Float[Array, "C M"]]]

    def to_border(self, s: int) -> Float[Array, "C M"]:
        """From a token to the border between its half of ``s`` tokens and the other: after it in the first."""
        from_start_CM, to_end_CM = self.levels[s.bit_length() - 1]
        return jnp.where(second_half(from_start_CM.shape, s), from_start_CM, to_end_CM)

    def from_start(self) -> Float[Array, "C M"]:
        """Up to every token and with it."""
        return self.levels[-1][0]

    def to_end(self) -> Float[Array, "C M"]:
        """After every token."""
        return self.levels[-1][1]

    def total(self, rows: int) -> Float[Array, "1 M"]:
        """Of all tokens, to go with ``rows`` rows."""
        return self.from_start()[-1:]


def sizes_of_halves(tokens: int) -> Iterator[int]:
    """1, 2, 4 ... up to half of the tokens, a power of two."""
    return (1 << level for level in range(tokens.bit_length() - 1))


def second_half(shape: tuple[int, ...], s: int) -> jax.Array:
    """True at the tokens, the first axis, that are in the second of two halves of ``s``."""
    return iota(shape, 0) & s != 0


def _halves(x_CM):
    from_start_CM, to_end_CM = x_CM, jnp.zeros_like(x_CM)
    yield from_start_CM, to_end_CM
    for s in sizes_of_halves(len(x_CM)):
        second, other_CM = second_half(x_CM.shape, s), _other_half(from_start_CM + to_end_CM, s)
        from_start_CM += jnp.where(second, other_CM, 0)
        to_end_CM += jnp.where(second, 0, other_CM)
        yield from_start_CM, to_end_CM


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _other_half(x_CM, s):
    """The row ``i + s`` in the first of two halves, ``i - s`` in the second; its own transpose."""
    return jnp.where(second_half(x_CM.shape, s), pltpu.roll(x_CM, s, 0), pltpu.roll(x_CM, len(x_CM) - s, 0))


_other_half.defvjp(lambda x_CM, s: (_other_half(x_CM, s), None), lambda s, _, dy_CM: (_other_half(dy_CM, s),))


def iota(shape, axis):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
