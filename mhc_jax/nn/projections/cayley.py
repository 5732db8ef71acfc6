"""The Cayley transform."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.projections.base import EXACT, NEAR, ProjectionConfig, Promise
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "cayley")
@dataclasses.dataclass(frozen=True)
class CayleyConfig(ProjectionConfig):
    """Orthogonal, with entries of both signs (JPmHC). Rows sum to one at the identity only.

    Attributes:
        alpha: step length.
        steps: fixed-point steps; 0 is the exact transform, the paper takes 2.
    """

    alpha: float = 0.1
    steps: int = 0

    def validate(self):
        super().validate()
        self.require(self.alpha > 0, f"alpha must be positive, got {self.alpha}")
        self.require_not_negative("steps")

    @property
    def promise(self):
        return Promise(orthogonal=EXACT if self.steps == 0 else NEAR)

    def near_identity(self, streams, strength):
        """Zero, which gives the identity itself for any strength."""
        return jnp.zeros(self.shape(streams))

    def project(self, logits, streams):
        return projections.cayley(logits, alpha=self.alpha, steps=self.steps)
