"""What recurrences in chunks share: a sequence cut into pieces of one size, and sums between two of its tokens."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mhc_jax.registry import unknown

Form = Literal["recurrent", "chunked"]
Implementation = Literal["xla", "pallas"]

# The logarithm of a decay that forgets: its exponential is zero in float32 and float64, and sums of it are finite.
FORGET = -1e4


@dataclasses.dataclass(frozen=True)
class Chunks:
    """``length`` tokens in pieces of ``size``, the last of them filled up with zeros."""

    length: int
    size: int

    @staticmethod
    def check(form: str, implementation: str, **sizes: int) -> None:
        """Raises ValueError for an unknown form or implementation, two that do not go together, or a size below 1."""
        for what, name, known in (("form", form, Form), ("implementation", implementation, Implementation)):
            if name not in get_args(known):
                raise ValueError(unknown(what, name, get_args(known)))
        if implementation != "xla" and form != "chunked":
            raise ValueError(f"implementation {implementation!r} has no form {form!r}; use 'chunked', or 'xla'")
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")

    @staticmethod
    def fitting(size: int, length: int) -> int:
        """The size of pieces that are not longer than the sequence; 1 for an empty one."""
        return max(1, min(size, length))

    @staticmethod
    def with_resets(log_decay_BTM: Float[Array, "B T *M"], reset_BT: Bool[Array, "B T"] | None) -> jax.Array:
        """The logarithms of decays with :data:`FORGET` at resets."""
        if reset_BT is None:
            return log_decay_BTM
        return jnp.where(reset_BT.reshape(*reset_BT.shape, *(1,) * (log_decay_BTM.ndim - 2)), FORGET, log_decay_BTM)

    @staticmethod
    def finite(log_decay: jax.Array) -> jax.Array:
        """The same with :data:`FORGET` for all below it: 0 times minus infinity would be no number."""
        return jnp.maximum(log_decay, FORGET)

    @staticmethod
    def by_head(x_BCM: Float[Array, "B C M"], heads: int) -> Float[Array, "B H C K"]:
        """The channels of every head, which lie side by side.

        Until they are in a piece they should stay so: an accelerator fills an array of heads of 64 up to twice its
        size, or else turns it about, and then slices of it are slow.
        """
        B, C, M = x_BCM.shape
        return jnp.swapaxes(x_BCM.reshape(B, C, heads, M // heads), 1, 2)

    @staticmethod
    def side_by_side(x_BHCK: Float[Array, "B H C K"]) -> Float[Array, "B C M"]:
        """Inverse of :meth:`by_head`."""
        return jax.lax.collapse(jnp.swapaxes(x_BHCK, 1, 2), 2)

    @staticmethod
    def borders(size: int) -> Iterator[tuple[int, Bool[np.ndarray, "C C"]]]:
        """All pairs of a later token ``i`` and an earlier one ``j`` among ``size``, by the border between them.

        Halves of ``s`` = 1, 2, 4 ... tokens meet at borders: the second of two halves looks back at the first. A
        product of whole matrices with such a mask keeps the shape that accelerators are made for, as small blocks
        would not.

        Returns:
            ``s``, and a mask that is true at ``[i, j]``.
        """
        half = np.arange(size)
        for s in (1 << level for level in range((size - 1).bit_length())):
            second = half // s % 2 == 1
            yield s, second[:, None] & (half[:, None] // s == half // s + 1)

    @property
    def count(self) -> int:
        """Number of pieces."""
        return -(-self.length // self.size)

    def cut(self, x_BTM: jax.Array) -> jax.Array:
        """(count, B, size, ...)."""
        B, T, *rest = x_BTM.shape
        padded = jnp.pad(x_BTM, [(0, 0), (0, self.count * self.size - T)] + [(0, 0)] * len(rest))
        return jnp.moveaxis(padded.reshape(B, self.count, self.size, *rest), 1, 0)

    def join(self, y_NBCM: jax.Array) -> jax.Array:
        """Inverse of :meth:`cut`, (B, length, ...)."""
        N, B, C, *rest = y_NBCM.shape
        return jnp.moveaxis(y_NBCM, 0, 1).reshape(B, N * C, *rest)[:, : self.length]

    def scan(self, inside: Callable[..., Any], s0: Any, inputs: Sequence[jax.Array]) -> tuple[Any, jax.Array]:
        """``inside(state, pieces) -> (state, outputs of the piece)``, one piece after another.

        Only the states between pieces are kept for the backward pass, which computes the rest again.

        Returns:
            The last state, and the outputs of all tokens.
        """
        if self.count == 1:
            s, y_BCM = inside(s0, tuple(self.cut(x)[0] for x in inputs))
            return s, y_BCM[:, : self.length]
        s, y_NBCM = jax.lax.scan(jax.checkpoint(inside), s0, tuple(self.cut(x) for x in inputs))
        return s, self.join(y_NBCM)


@dataclasses.dataclass(frozen=True)
class Walk:
    """One token after another: ``step(state, token) -> (state, output)`` over the tokens of a piece."""

    step: Callable[..., Any]

    def __call__(self, s0: Any, inputs: Sequence[jax.Array]) -> tuple[Any, jax.Array]:
        s, y_TBM = jax.lax.scan(self.step, s0, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tuple(inputs)))
        return s, jnp.swapaxes(y_TBM, 0, 1)


def sums_between(x_CK: Float[Array, "*B C K"]) -> Float[Array, "*B C C K"]:
    """The sum of the rows after ``j`` up to and with ``i``, at ``[i, j]``; zero where there is none.

    No difference of cumulative sums: beside rows of -1000 small ones keep all their digits.
    """
    ones_CC = jnp.ones((x_CK.shape[-2],) * 2, x_CK.dtype)
    later_CCK = x_CK[..., :, None, :] * jnp.tril(ones_CC, -1)[..., None]
    return jnp.einsum("il,...ljk->...ijk", jnp.tril(ones_CC), later_CCK, precision="highest")
