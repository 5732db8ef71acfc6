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
from mhc_jax.kernels.vocabulary_tpu import NONE, gradient, sums


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
    inputs = hidden_BTD.astype(dtype), head_VD.astype(dtype), targets_BT.astype(jnp.int32)
    found: Any = _normalisers(batch_sharding, *inputs)
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

    def greatest(self, x: jax.Array) -> jax.Array:
        """Of all slices of the vocabulary."""
        return jax.lax.pmax(x, self.vocabulary) if self.vocabulary else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalisers(batch_sharding, hidden_BTD, head_VD, targets_BT):
    lse_BT, picked_BT, *_ = _run_sums(batch_sharding, hidden_BTD, head_VD, targets_BT, means=False)
    return lse_BT, picked_BT


def _forward(batch_sharding, hidden_BTD, head_VD, targets_BT):
    found: Any = _run_sums(batch_sharding, hidden_BTD, head_VD, targets_BT, means=True)
    lse_BT, picked_BT, rest_BT, mean_BTD = found
    return (lse_BT, picked_BT), (hidden_BTD, head_VD, targets_BT, lse_BT, rest_BT, mean_BTD)


def _run_sums(batch_sharding, hidden_BTD, head_VD, targets_BT, *, means):
    """Denominators and logits of targets, the probability of all but the target, and, if asked for, the sum of their
    rows by their probabilities."""
    slices, V = _Slices.of(batch_sharding, len(head_VD)), len(head_VD)

    @not_differentiable
    def run(hidden_BTD, head_VD, targets_BT):
        own_BT = slices.own(targets_BT, len(head_VD))
        own_most, total, mean = sums(jax.lax.collapse(hidden_BTD, 0, 2), head_VD, own_BT.reshape(-1), means=means)
        most = slices.greatest(own_most)
        others_BT = most + jnp.log(slices.over_vocabulary(total * jnp.exp(own_most - most)))
        others_BT = others_BT.reshape(targets_BT.shape)
        picked_BT = slices.over_vocabulary(jnp.sum(hidden_BTD * _rows(head_VD, own_BT), axis=-1))
        is_row_BT = (targets_BT >= 0) & (targets_BT < V)
        lse_BT = jnp.where(is_row_BT, jnp.logaddexp(others_BT, picked_BT), others_BT)
        share_BT1 = jnp.exp(own_most.reshape(lse_BT.shape) - lse_BT)[..., None]
        means_BTD = [slices.over_vocabulary(share_BT1 * x.reshape(hidden_BTD.shape)) for x in mean]
        return lse_BT, jnp.where(is_row_BT, picked_BT, jnp.nan), jnp.exp(others_BT - lse_BT), *means_BTD

    by_row, by_token = slices.specs
    return by_device(run, batch_sharding, (by_row, by_token, by_row), by_row)(hidden_BTD, head_VD, targets_BT)


def _rows(head_VD, own_BT):
    """Of the head, for the targets; zeros for :data:`NONE`."""
    return jnp.where(own_BT[..., None] == NONE, 0, head_VD.at[own_BT].get(mode="clip")).astype(jnp.float32)


def _backward(batch_sharding, saved, cotangents):
    slices = _Slices.of(batch_sharding, len(saved[1]))

    @not_differentiable
    def run(hidden_BTD, head_VD, targets_BT, lse_BT, rest_BT, mean_BTD, a_BT, b_BT):
        own_BT = slices.own(targets_BT, len(head_VD))
        row_BTD = _rows(head_VD, own_BT)
        # The target's row apart from the others: where it is likely, its probability nearly cancels b / a = -1.
        of_row_BT = (a_BT + b_BT) - a_BT * rest_BT
        dhidden_BTD = a_BT[..., None] * mean_BTD + of_row_BT[..., None] * slices.over_vocabulary(row_BTD)
        numbers = [x.reshape(-1) for x in (own_BT, lse_BT, a_BT, of_row_BT)]
        dtype = jnp.float32 if slices.rows else head_VD.dtype
        dhead_VD = slices.over_rows(gradient(jax.lax.collapse(hidden_BTD, 0, 2), head_VD, numbers, dtype))
        return dhidden_BTD.astype(hidden_BTD.dtype), dhead_VD.astype(head_VD.dtype)

    by_row, by_token = slices.specs
    run = by_device(run, batch_sharding, (by_row, by_token, *[by_row] * 6), (by_row, by_token))
    return *run(*saved, *cotangents), None


_normalisers.defvjp(_forward, _backward)
