"""Small parametrised pieces that every model uses: dense layers, norms, dropout."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.init import Init, Initializer, ones, uniform, zeros
from mhc_jax.ops.norm import LAYER_NORM_EPS, RMS_EPS, layer_norm, rms_norm

NormName = Literal["rms", "ln"]
EPSILONS: dict[NormName, float] = {"rms": RMS_EPS, "ln": LAYER_NORM_EPS}


class Dense(nnx.Module):
    """``x @ kernel + bias``; kernel (in, out). PyTorch's default initialisation unless told otherwise.

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
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Norm(nnx.Module):
    """RMSNorm (``"rms"``) or LayerNorm (``"ln"``, with or without bias) over the last axis, in its input's dtype.

    ``eps`` is added to the variance; :data:`EPSILONS` of its kind if None.
    """

    def __init__(
        self,
        width: int,
        name: NormName,
        init: Init,
        *,
        biased: bool = True,
        eps: float | None = None,
        axis: str = "width",
    ):
        self.name, self.eps = name, EPSILONS[name] if eps is None else eps
        self.scale = init("scale", ones, width, axes=(axis,))
        self.bias = init("bias", zeros, width, axes=(axis,)) if name == "ln" and biased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...].astype(x.dtype)
        if self.name == "rms":
            return rms_norm(x, scale, eps=self.eps)
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...].astype(x.dtype)
        return layer_norm(x, scale, bias, eps=self.eps)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity when ``key`` is None (evaluation) or ``rate`` is 0."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
