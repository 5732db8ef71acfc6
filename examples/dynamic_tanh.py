"""A norm from outside: dynamic tanh (arXiv 2503.10622), which bounds activations and takes no statistics of them."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.init import constant, ones, zeros
from mhc_jax.nn.norms import Norm, NormConfig
from mhc_jax.registry import register


@register("norm", "dynamic_tanh")
@dataclasses.dataclass(frozen=True)
class DynamicTanhConfig(NormConfig):
    """``tanh(alpha x) * scale + bias`` with one learned ``alpha`` for all channels.

    Attributes:
        alpha: its value at initialisation.
    """

    alpha: float = 0.5

    def validate(self):
        super().validate()
        self.require(self.alpha > 0, f"alpha must be positive, got {self.alpha}")

    def build(self, width, init, channels="width"):
        return DynamicTanh(self.alpha, width, init, channels)


class DynamicTanh(Norm):
    def __init__(self, alpha, width, init, channels):
        self.alpha = init("alpha", constant(alpha))
        self.scale = init("scale", ones, width, axes=(channels,))
        self.bias = init("bias", zeros, width, axes=(channels,))

    def __call__(self, x):
        alpha, scale_D, bias_D = (weight[...].astype(x.dtype) for weight in (self.alpha, self.scale, self.bias))
        return jnp.tanh(alpha * x) * scale_D + bias_D
