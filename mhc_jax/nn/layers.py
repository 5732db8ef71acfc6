"""Small pieces that every model uses: dense layers, dropout, rows apart."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.backend import target_backend
from mhc_jax.nn.init import Init, Initializer, uniform


class Dense(nnx.Module):
    """``x @ kernel + bias``; kernel (in, out). PyTorch's default initialisation unless given.

    ``bias`` is its initialiser, or False for a layer without one; ``axes`` and ``uses`` are those of the kernel, as in
    :class:`~mhc_jax.nn.init.Init`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        init: Init,
        axes: tuple[str, str],
        *,
        kernel: Initializer | None = None,
        bias: Initializer | Literal[False] | None = None,
        uses: float = 1.0,
    ):
        self.kernel = init("kernel", kernel or uniform(inputs), inputs, outputs, role="kernel", axes=axes, uses=uses)
        # A bias of the model's width is added to whole rows: slices of it would have the rows moved to them.
        added = ("features" if axes[1] == "embed" else axes[1],)
        self.bias = None if bias is False else init("bias", bias or uniform(inputs), outputs, axes=added)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes in the dtype of ``x``."""
        y = _product(x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def _product(x: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    if target_backend() != "cpu":
        return x @ kernel_IO
    # Of one matrix: for a gradient that sums over two axes XLA would copy the cotangent, transposed. The compiler for
    # TPUs, on the other hand, then estimates a fifth more for the step of GPT-2.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ kernel_IO
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


class DepthwiseFilter(nnx.Module):
    """Filter (K, D) and bias (D,), if any, of a causal depth-wise convolution; as PyTorch begins unless given."""

    def __init__(self, taps: int, width: int, init: Init, *, filter: Initializer | None = None, bias: bool = True):
        self.filter = init("filter", filter or uniform(taps), taps, width, role="filter", axes=("tap", "channel"))
        self.bias = init("bias", uniform(taps), width, axes=("channel",)) if bias else None

    def taps(self, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
        """Both in that dtype, zeros for no bias."""
        filter_KD = self.filter[...].astype(dtype)
        return filter_KD, jnp.zeros_like(filter_KD[0]) if self.bias is None else self.bias[...].astype(dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity when ``key`` is None (evaluation) or ``rate`` is 0."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def by_rows(function: Callable[..., Any], *rows: Any) -> Any:
    """``function`` of every row of the trees ``rows``, of all at once if ``vmap`` can, otherwise of one after another.

    It has no rule for some operations, such as the products of experts.
    """
    try:
        return jax.vmap(function)(*rows)
    except NotImplementedError:
        return jax.lax.map(lambda row: function(*row), rows)


def where_rows(which_B: jax.Array, new: Any, old: Any) -> Any:
    """Rows of the tree ``new`` where ``which_B`` says so, otherwise those of ``old``."""
    return jax.tree.map(lambda n, o: jnp.where(which_B.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)
