"""The spectral sphere."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.projections.base import EXACT, ProjectionConfig, Promise
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "spectral_sphere")
@dataclasses.dataclass(frozen=True)
class SpectralSphereConfig(ProjectionConfig):
    """Rows and columns sum to one, spectral norm at most one, entries of both signs (sHC)."""

    def shape(self, streams):
        return ((streams - 1) * (streams - 2) + streams - 1,)

    @property
    def promise(self):
        return Promise(rows=EXACT, columns=EXACT, norm=EXACT)

    def near_identity(self, streams, strength):
        """No rotation; singular values ``tanh(strength)``."""
        angles = (streams - 1) * (streams - 2)
        return jnp.zeros(self.shape(streams)).at[angles:].set(strength)

    def project(self, logits, streams):
        half = (streams - 1) * (streams - 2) // 2
        u_K, v_K, s_M = logits[..., :half], logits[..., half : 2 * half], logits[..., 2 * half :]
        return projections.spectral_sphere(u_K, v_K, s_M, streams=streams)
