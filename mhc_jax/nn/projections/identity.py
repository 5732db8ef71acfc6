"""No mixing."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.projections.base import ProjectionConfig
from mhc_jax.registry import register


@register("projection", "identity")
@dataclasses.dataclass(frozen=True)
class IdentityProjectionConfig(ProjectionConfig):
    """The identity, without logits: streams interact only through reads and writes (iHC)."""

    def shape(self, streams):
        return (0,)

    def is_identity(self, streams):
        return True

    def near_identity(self, streams, strength):
        return jnp.zeros(0)

    def project(self, logits, streams):
        return jnp.eye(streams, dtype=logits.dtype)
