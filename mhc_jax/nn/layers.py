"""Small parametrised pieces that every model uses: dense layers, norms, dropout."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.init import Init, Initializer, ones, uniform, zeros
from mhc_jax.ops.norm import layer_norm, rms_norm

NormName = Literal["rms", "ln"]


class Dense(nnx.Module):
    """``x @ kernel + bias``; kernel (in, out). PyTorch's default initialisation unless told otherwise."""

    def __init__(self, inputs: int, outputs: int, init: Init, *, kernel: Initializer | None = None, bias=None):
        self.kernel = init("kernel", kernel or uniform(inputs), inputs, outputs)
        self.bias = init("bias", bias or uniform(inputs), outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes in the dtype of ``x``."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """RMSNorm (``"rms"``) or LayerNorm (``"ln"``) over the last axis, in the dtype of its input."""

    def __init__(self, width: int, name: NormName, init: Init):
        self.scale = init("scale", ones, width)
        if name == "ln":
            self.bias = init("bias", zeros, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...].astype(x.dtype)
        if hasattr(self, "bias"):
            return layer_norm(x, scale, self.bias[...].astype(x.dtype))
        return rms_norm(x, scale)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity when ``key`` is None (evaluation) or ``rate`` is 0."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def fold(key: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """``jax.random.fold_in``, passing None through."""
    return None if key is None else jax.random.fold_in(key, data)
