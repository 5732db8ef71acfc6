"""Mixtures of cyclic shifts."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.projections.base import ProjectionConfig
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "circulant")
@dataclasses.dataclass(frozen=True)
class CirculantConfig(ProjectionConfig):
    """A mixture of the n cyclic shifts (C-mHC): exactly doubly stochastic.

    Attributes:
        gamma: share of the mixture; the rest is the identity.
    """

    gamma: float = 0.5

    def validate(self):
        super().validate()
        self.require(0 < self.gamma <= 1, f"gamma must lie in (0, 1], got {self.gamma}")

    def shape(self, streams):
        return (streams,)

    def near_identity(self, streams, strength):
        return jnp.zeros(streams).at[0].set(strength)

    def project(self, logits, streams):
        return projections.circulant(logits, gamma=self.gamma)
