"""A head's chunk as tiles of a GPU's tensor cores, with the operations of :class:`mhc_jax.kernels.heads.Heads`.

Tensor cores multiply numbers of 16 bits and sum them in float32. Where such a rounding would be too coarse, a number is
two of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mhc_jax.kernels.products import of_factors, product

# Of what tensor cores multiply.
FACTOR = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Tile:
    """One head, which has a tile of its own."""

    count = 1

    def times(self, a_RC: jax.Array, b_CM: jax.Array) -> jax.Array:
        """``a b``, (R, M)."""
        return product(a_RC, b_CM, 1, 0, FACTOR)

    def times_transposed(self, a_RM: jax.Array, b_CM: jax.Array) -> jax.Array:
        """``a b'``, (R, C)."""
        return product(a_RM, b_CM, 1, 1, FACTOR)

    def transposed_times(self, a_CV: jax.Array, b_CK: jax.Array) -> jax.Array:
        """``a' b``, (V, K)."""
        return product(a_CV, b_CK, 0, 0, FACTOR)

    def each_times_transposed(self, rows: Sequence[jax.Array], b_CM: jax.Array) -> list[jax.Array]:
        """``a b'`` for each ``a``."""
        return [self.times_transposed(a_RM, b_CM) for a_RM in rows]

    def spread(self, columns: Sequence[Float[Array, " C"]], width: int) -> jax.Array:
        """The head's number for every token over ``width`` channels."""
        [x_C] = columns
        return jax.lax.broadcast_in_dim(x_C, (*x_C.shape, width), (0,))

    def pairs(self, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Numbers of the tokens ``i`` and ``j`` at ``[i, j]``."""
        return _pairs(tokens, tokens)

    def sums(self, x_CM: Float[Array, "C M"]) -> "Sums":
        return Sums(x_CM, *(jax.lax.stop_gradient(part) for part in _parts(x_CM)))

    def recomputed(self, run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """``run``, computed again for the backward pass: registers do not hold what it computes."""
        return jax.checkpoint(run)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the tokens of a chunk, see :class:`mhc_jax.kernels.heads.Sums`: products with matrices of 0 and 1."""

    x_CM: Float[Array, "C M"]
    high_CM: jax.Array
    low_CM: jax.Array

    def to_border(self, s: int) -> Float[Array, "C M"]:
        return self._over(functools.partial(_to_border, s), len(self.x_CM))

    def from_start(self) -> Float[Array, "C M"]:
        return self._over(jnp.greater_equal, len(self.x_CM))

    def to_end(self) -> Float[Array, "C M"]:
        return self._over(jnp.less, len(self.x_CM))

    def total(self, rows: int) -> Float[Array, "R M"]:
        return self._over(_all, rows)

    def _over(self, which, rows):
        return _summed(which, rows, self.x_CM, self.high_CM, self.low_CM)


def _to_border(s, i, j):
    return (i ^ j < s) & jnp.where(i & s != 0, i >= j, i < j)


def _all(i, j):
    return i >= 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(which, rows, x_CM, high_CM, low_CM):
    """At row ``i`` the sum of those rows ``j`` of x, the sum of two parts, where ``which(i, j)``."""
    member_RC = _ones(which(*_pairs(rows, len(x_CM))))
    return of_factors(1, 0, member_RC, high_CM) + of_factors(1, 0, member_RC, low_CM)


def _summed_backward(which, rows, C, dy_RM):
    member_RC = _ones(which(*_pairs(rows, C)))
    high_RM, low_RM = _parts(dy_RM)
    return of_factors(0, 0, member_RC, high_RM) + of_factors(0, 0, member_RC, low_RM), None, None


_summed.defvjp(lambda which, rows, x_CM, *parts: (_summed(which, rows, x_CM, *parts), len(x_CM)), _summed_backward)


def _pairs(rows, columns):
    return tuple(jax.lax.broadcasted_iota(jnp.int32, (rows, columns), axis) for axis in (0, 1))


def _ones(mask):
    return jnp.where(mask, 1.0, 0.0).astype(FACTOR)


def _rounded(x):
    return x.astype(FACTOR)


def _parts(x):
    """Two numbers of 16 bits, whose sum has 16 digits."""
    high = _rounded(x)
    return high, _rounded(x - high.astype(x.dtype))
