"""Projections of free logits onto mixing matrices, one kind a file."""

from mhc_jax.nn.projections.base import ProjectionConfig, Promise
from mhc_jax.nn.projections.cayley import CayleyConfig
from mhc_jax.nn.projections.circulant import CirculantConfig
from mhc_jax.nn.projections.clamped_sinkhorn import ClampedSinkhornConfig
from mhc_jax.nn.projections.clipped_sinkhorn import ClippedSinkhornConfig
from mhc_jax.nn.projections.deepseek_sinkhorn import DeepseekSinkhornConfig
from mhc_jax.nn.projections.identity import IdentityProjectionConfig
from mhc_jax.nn.projections.kronecker import KroneckerConfig
from mhc_jax.nn.projections.newton import NewtonConfig
from mhc_jax.nn.projections.orthostochastic import OrthostochasticConfig
from mhc_jax.nn.projections.permutations import PermutationsConfig
from mhc_jax.nn.projections.sinkhorn import SinkhornConfig
from mhc_jax.nn.projections.spectral_sphere import SpectralSphereConfig

__all__ = [
    "CayleyConfig",
    "CirculantConfig",
    "ClampedSinkhornConfig",
    "ClippedSinkhornConfig",
    "DeepseekSinkhornConfig",
    "IdentityProjectionConfig",
    "KroneckerConfig",
    "NewtonConfig",
    "OrthostochasticConfig",
    "PermutationsConfig",
    "ProjectionConfig",
    "Promise",
    "SinkhornConfig",
    "SpectralSphereConfig",
]
