"""Normalisation over the last axis. Statistics are taken in the dtype of the input."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

RMS_EPS = 1e-6
LAYER_NORM_EPS = 1e-5
NORM_CLAMP = 1e-12


def rms_norm(x: Float[Array, "*B D"], scale_D: Float[Array, " D"], *, eps: float = RMS_EPS) -> Float[Array, "*B D"]:
    """``x / sqrt(mean(x^2) + eps) * scale`` (Zhang & Sennrich 2019, eq. 4)."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * scale_D


def layer_norm(
    x: Float[Array, "*B D"],
    scale_D: Float[Array, " D"] | float = 1.0,
    bias_D: Float[Array, " D"] | float = 0.0,
    *,
    eps: float = LAYER_NORM_EPS,
) -> Float[Array, "*B D"]:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with the biased variance (Ba et al. 2016)."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps) * scale_D + bias_D


def unit_rms_norm(x: Float[Array, "*B D"], gamma_D: Float[Array, " D"]) -> Float[Array, "*B D"]:
    """``x / max(|x|, 1e-12) * sqrt(D) * (1 + gamma)``: the norm inside hyper-connections (lucidrains, tokenbender)."""
    return x * inverse_unit_rms(x) * (1 + gamma_D)


def inverse_unit_rms(x: Float[Array, "*B D"]) -> Float[Array, "*B 1"]:
    """``sqrt(D) / max(|x|, 1e-12)``."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Clamped before the square root, whose derivative is not finite at zero.
    return lax.rsqrt(jnp.maximum(squared, NORM_CLAMP**2)) * math.sqrt(x.shape[-1])
