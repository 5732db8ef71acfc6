"""Products of mixtures of pairs."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.projections.base import ProjectionConfig
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "kronecker")
@dataclasses.dataclass(frozen=True)
class KroneckerConfig(ProjectionConfig):
    """A Kronecker product of 2 by 2 mixtures (KromHC): exactly doubly stochastic, two logits for each doubling."""

    def check(self, streams):
        self.require(
            streams & (streams - 1) == 0, f"streams must be a power of two for a product of pairs, got {streams}"
        )

    def shape(self, streams):
        return streams.bit_length() - 1, 2

    def near_identity(self, streams, strength):
        """The same margin for every factor."""
        return jnp.broadcast_to(jnp.array([strength, 0.0]), self.shape(streams))

    def project(self, logits, streams):
        return projections.kronecker_mixture(logits)
