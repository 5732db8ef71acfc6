"""The head of a language model with its loss: logits exist only in the memory of a TPU's core, tile by tile.

After Cut Cross-Entropy (Wijmans, Huval, Hertzberg, Koltun and Kraehenbuehl, arXiv 2411.09009). The gradient of the
logits of a token is ``a softmax + b onehot``, of which only the numbers a and b are unknown at first. So the first
kernel, which goes over the vocabulary for each tile of tokens, under differentiation also sums the rows of the head by
their probabilities, as attention sums values, which gives the gradient of the input. The second goes over the tokens
for each tile of the head and writes that tile's gradient once. Each computes the logits, so there are four products,
where three do if logits are kept.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float, Int

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.sharding import axes, by_device
from mhc_jax.kernels.vocabulary_tpu import LEAST, NONE, gradient, sums


def fault(dtype: Any, target: str | None) -> str | None:
    """Why that platform has no kernels for a head of that dtype, and what to do; None if it has.

    Args:
        target: the platform, or None while it is not known.
    """
    if target == "gpu":
        return "the kernels of the head are for TPUs; take implementation 'xla'"
    if dtype not in (jnp.float32, jnp.bfloat16):
        what = f"the kernels of the head take float32 or bfloat16, not {jnp.dtype(dtype)}"
        return f"{what}; take such a policy, or implementation 'xla'"
    return None


def normalisers(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The logarithm of the softmax's denominator over ``hidden @ head.T``, and the logit of the target; float32.

    Both inputs have first derivatives in reverse mode. Probabilities and gradients of logits are rounded to the dtype
    of the inputs, as factors of products; if that is float32, products round no factor.

    Args:
        hidden_BTD, head_VD: float32 or bfloat16; if they differ, both are taken to float32.
        targets_BT: rows of the head; for any other number the logit is NaN, and must have no cotangent.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows. The mesh's
            other axes slice the vocabulary if they divide it; if not, their devices all do the same.

    Raises:
        ConfigError: there is no kernel for such inputs, see :func:`fault`, or none so wide.
    """
    dtype = jnp.promote_types(hidden_BTD.dtype, head_VD.dtype)
    if reason := fault(dtype, target_backend()):
        raise ConfigError(reason)
    if not targets_BT.size:  # kernels have no empty grid
        return (jnp.zeros(targets_BT.shape, jnp.float32),) * 2
    found: Any = _normalisers(batch_sharding, hidden_BTD.astype(dtype), head_VD.astype(dtype), targets_BT)
    return found


class _Slices(NamedTuple):
    """Axes of the mesh that slice the rows of the batch, and those that slice the vocabulary."""

    rows: tuple[str, ...]
    vocabulary: tuple[str, ...]

    @staticmethod
    def of(batch_sharding: Sharding | None, vocabulary: int) -> "_Slices":
        rows, others = axes(batch_sharding)
        return _Slices(rows, () if vocabulary % math.prod(others.values()) else tuple(others))

    @property
    def specs(self) -> tuple[PartitionSpec, PartitionSpec]:
        """Of an array (B, ...), and of the head."""
        return PartitionSpec(self.rows), PartitionSpec(self.vocabulary)

    def own(self, targets: jax.Array, vocabulary: int) -> jax.Array:
        """The targets as rows of the device's slice of the head, which has so many."""
        first = vocabulary * jax.lax.axis_index(self.vocabulary) if self.vocabulary else 0
        return jnp.where((targets >= first) & (targets < first + vocabulary), targets - first, NONE)

    def over_vocabulary(self, x: jax.Array) -> jax.Array:
        """The sum of all slices."""
        return jax.lax.psum(x, self.vocabulary) if self.vocabulary else x

    def over_rows(self, x: jax.Array) -> jax.Array:
        """The sum of all slices."""
        return jax.lax.psum(x, self.rows) if self.rows else x

    def joined(self, lse: jax.Array) -> jax.Array:
        """The logarithm of the whole denominator."""
        if not self.vocabulary:
            return lse
        most = jnp.maximum(jax.lax.pmax(lse, self.vocabulary), LEAST)
        return most + jnp.log(self.over_vocabulary(jnp.exp(lse - most)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalisers(batch_sharding, hidden_BTD, head_VD, targets_BT):
    lse_BT, picked_BT, *_ = _run_sums(batch_sharding, hidden_BTD, head_VD, targets_BT, means=False)
    return lse_BT, picked_BT


def _forward(batch_sharding, hidden_BTD, head_VD, targets_BT):
    found: Any = _run_sums(batch_sharding, hidden_BTD, head_VD, targets_BT, means=True)
    lse_BT, picked_BT, rest_BT, mean_BTD = found
    return (lse_BT, picked_BT), (hidden_BTD, head_VD, targets_BT, lse_BT, rest_BT, mean_BTD)


def _run_sums(batch_sharding, hidden_BTD, head_VD, targets_BT, *, means):
    slices, V = _Slices.of(batch_sharding, len(head_VD)), len(head_VD)

    @not_differentiable
    def run(hidden_BTD, head_VD, targets_BT):
        def by_row(x):
            return x.reshape(*targets_BT.shape, *x.shape[1:])

        own_M = slices.own(targets_BT.reshape(-1), len(head_VD))
        own_lse, picked, rest, mean = sums(jax.lax.collapse(hidden_BTD, 0, 2), head_VD, own_M, means=means)
        lse = slices.joined(own_lse)
        if slices.vocabulary:
            picked, share = slices.over_vocabulary(picked), jnp.exp(own_lse - lse)
            rest, *mean = (slices.over_vocabulary((share * x.T).T) for x in (rest, *mean))
        is_row = (targets_BT >= 0) & (targets_BT < V)
        return by_row(lse), jnp.where(is_row, by_row(picked), jnp.nan), *map(by_row, (rest, *mean))

    by_row, by_token = slices.specs
    return by_device(run, batch_sharding, (by_row, by_token, by_row), by_row)(hidden_BTD, head_VD, targets_BT)


def _backward(batch_sharding, saved, cotangents):
    slices = _Slices.of(batch_sharding, len(saved[1]))

    @not_differentiable
    def run(hidden_BTD, head_VD, targets_BT, lse_BT, rest_BT, mean_BTD, a_BT, b_BT):
        own_BT = slices.own(targets_BT, len(head_VD))
        row_BTD = jnp.where(own_BT[..., None] == NONE, 0, head_VD.at[own_BT].get(mode="clip").astype(jnp.float32))
        # The target's row apart from the others: where it is likely, its probability nearly cancels b / a = -1.
        of_row_BT = (a_BT + b_BT) - a_BT * rest_BT
        dhidden_BTD = a_BT[..., None] * mean_BTD + of_row_BT[..., None] * slices.over_vocabulary(row_BTD)
        numbers = [x.reshape(-1) for x in (own_BT, lse_BT, a_BT, b_BT)]
        dtype = jnp.float32 if slices.rows else head_VD.dtype
        dhead_VD = slices.over_rows(gradient(jax.lax.collapse(hidden_BTD, 0, 2), head_VD, numbers, dtype))
        return dhidden_BTD.astype(hidden_BTD.dtype), dhead_VD.astype(head_VD.dtype)

    by_row, by_token = slices.specs
    run = by_device(run, batch_sharding, (by_row, by_token, *[by_row] * 6), (by_row, by_token))
    return *run(*saved, *cotangents), None


_normalisers.defvjp(_forward, _backward)
