"""Layer normalisation."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.init import Init, ones, zeros
from mhc_jax.nn.norms.base import Norm, NormConfig
from mhc_jax.ops.norm import LAYER_NORM_EPS, layer_norm
from mhc_jax.registry import register


@register("norm", "ln")
@dataclasses.dataclass(frozen=True)
class LayerNormConfig(NormConfig):
    """LayerNorm with a gain.

    Attributes:
        eps: added to the variance.
        bias: whether it has a bias, too.
    """

    eps: float = LAYER_NORM_EPS
    bias: bool = True

    def validate(self):
        super().validate()
        self.require_not_negative("eps")

    def with_bias(self):
        return self.replace(bias=True)

    def build(self, width, init, channels="width"):
        return LayerNorm(self, width, init, channels)


class LayerNorm(Norm):
    """See :class:`LayerNormConfig`."""

    fusible = True

    def __init__(self, config: LayerNormConfig, width: int, init: Init, channels: str):
        self.config = config
        self.scale = init("scale", ones, width, axes=(channels,))
        self.bias = init("bias", zeros, width, axes=(channels,)) if config.bias else None

    def __call__(self, x):
        scale = self.scale[...].astype(x.dtype)
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...].astype(x.dtype)
        return layer_norm(x, scale, bias, eps=self.config.eps)
