"""Normalisation over the last axis. Statistics are taken in the dtype of the input."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

RMS_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


def rms_norm(x: Float[Array, "*B D"], scale_D: Float[Array, " D"], *, eps: float = RMS_EPS) -> Float[Array, "*B D"]:
    """``x / sqrt(mean(x^2) + eps) * scale`` (Zhang & Sennrich 2019, eq. 4)."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * scale_D


def layer_norm(
    x: Float[Array, "*B D"], scale_D: Float[Array, " D"], bias_D: Float[Array, " D"], *, eps: float = LAYER_NORM_EPS
) -> Float[Array, "*B D"]:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with the biased variance (Ba et al. 2016)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps) * scale_D + bias_D
