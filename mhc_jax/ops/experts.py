"""Mixtures of gated perceptrons, of which a token visits a few."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def swiglu_experts(
    x_BTD: Float[Array, "*B D"],
    weight_BTE: Float[Array, "*B E"],
    gate_EDF: Float[Array, "E D F"],
    up_EDF: Float[Array, "E D F"],
    down_EFD: Float[Array, "E F D"],
    *,
    k: int,
) -> Float[Array, "*B D"]:
    """``sum_e weight_e * (SiLU(x G_e) * (x U_e)) D_e`` over the k experts of greatest weight; no token is dropped.

    Tokens are sorted by expert, so that a token costs k experts' products whatever the load.

    Args:
        x_BTD: input.
        weight_BTE: at most k of a token are not 0.
        gate_EDF, up_EDF, down_EFD: the experts.
        k: experts of a token.
    """
    (experts, width), leading = gate_EDF.shape[:2], x_BTD.shape[:-1]
    weight_MK, chosen_MK = jax.lax.top_k(weight_BTE.reshape(-1, experts), k)
    chosen = chosen_MK.reshape(-1)
    order = jnp.argsort(chosen, stable=True)
    sizes_E = jnp.bincount(chosen, length=experts).astype(jnp.int32)
    rows = x_BTD.reshape(-1, width)[order // k]
    hidden = jax.nn.silu(jax.lax.ragged_dot(rows, gate_EDF, sizes_E)) * jax.lax.ragged_dot(rows, up_EDF, sizes_E)
    y_MKD = jax.lax.ragged_dot(hidden, down_EFD, sizes_E)[jnp.argsort(order)].reshape(*weight_MK.shape, width)
    return jnp.sum(weight_MK[..., None].astype(y_MKD.dtype) * y_MKD, axis=1).reshape(*leading, width)
