"""Value residual (ResFormer, arXiv 2410.17897): every layer also uses the values of the first layer."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init, constant


@dataclasses.dataclass(frozen=True)
class ValueResidualConfig(Config):
    """``a v + b v_first`` in place of the values v of every layer's sequence mixer, the first layer included.

    Attributes:
        constrained: ``(a, b)`` is the softmax of two logits that start at (0, -8), which is nearly the model without
            value residual; else ``a`` and ``b`` are free and start at 0.5.
    """

    constrained: bool = False


class ValueResidual(nnx.Module):
    """Holds the two weights of one layer, ``lambdas`` (2,)."""

    def __init__(self, config: ValueResidualConfig, init: Init):
        self.config = config
        start = jnp.array([0.0, -8.0]) if config.constrained else jnp.array([0.5, 0.5])
        self.lambdas = init("lambdas", constant(start), 2, axes=("coefficient",))

    def weights(self) -> jax.Array:
        """(a, b) as they act."""
        lambdas = self.lambdas[...]
        return jax.nn.softmax(lambdas) if self.config.constrained else lambdas


class FirstValues(NamedTuple):
    """What layers hand on, (B, T, E); devices that slice the heads of mixers slice E."""

    v_BTE: jax.Array


class ValueMix:
    """The hook that a mixer's values pass through; afterwards ``first`` holds the first layer's values."""

    def __init__(self, weights: jax.Array, layer: jax.Array, first: FirstValues):
        self.weights, self.layer, self.first = weights, layer, first

    def __call__(self, v_BTD: jax.Array) -> jax.Array:
        self.first = FirstValues(jnp.where(self.layer == 0, v_BTD, self.first.v_BTE))
        a, b = self.weights.astype(v_BTD.dtype)
        return a * v_BTD + b * self.first.v_BTE
