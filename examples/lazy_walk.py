"""A projection from outside: the lazy random walk, in which a stream keeps a share of itself."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.models.topologies import Topology
from mhc_jax.nn.projections import ProjectionConfig
from mhc_jax.nn.residual import StaticMHCConfig
from mhc_jax.registry import register


@register("projection", "lazy_walk")
@dataclasses.dataclass(frozen=True)
class LazyWalkConfig(ProjectionConfig):
    """``stay I + (1 - stay) softmax(logits)`` by rows: rows sum to one, so that streams never grow by mixing.

    Attributes:
        stay: share of a stream that is never mixed.
    """

    stay: float = 0.5

    def validate(self):
        super().validate()
        self.require(0 <= self.stay < 1, f"stay must lie in [0, 1), got {self.stay}")

    def project(self, logits, streams):
        return self.stay * jnp.eye(streams, dtype=logits.dtype) + (1 - self.stay) * jax.nn.softmax(logits)


@register("topology", "lazy_walk")
def lazy_walk() -> Topology:
    """Static mHC whose streams mix by a lazy random walk."""
    return Topology(StaticMHCConfig(projection=LazyWalkConfig()))
