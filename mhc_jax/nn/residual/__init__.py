"""Residual topologies, one per file."""

from mhc_jax.nn.residual.adapters import StreamAdapters, StreamAdaptersConfig
from mhc_jax.nn.residual.base import EndsConfig, Residual, ResidualConfig, StreamEnds
from mhc_jax.nn.residual.dense_ends import DenseEndsConfig
from mhc_jax.nn.residual.dynamic_mhc import DynamicMHCConfig
from mhc_jax.nn.residual.plain import IdentityEndsConfig, PlainConfig
from mhc_jax.nn.residual.projections import (
    CayleyConfig,
    CirculantConfig,
    ClampedSinkhornConfig,
    DeepseekSinkhornConfig,
    IdentityProjectionConfig,
    KroneckerConfig,
    NewtonConfig,
    OrthostochasticConfig,
    PermutationsConfig,
    ProjectionConfig,
    SinkhornConfig,
    SpectralSphereConfig,
)
from mhc_jax.nn.residual.simplex_mhc import SimplexMHCConfig
from mhc_jax.nn.residual.static_mhc import StaticMHCConfig

__all__ = [
    "CayleyConfig",
    "CirculantConfig",
    "ClampedSinkhornConfig",
    "DeepseekSinkhornConfig",
    "DenseEndsConfig",
    "DynamicMHCConfig",
    "EndsConfig",
    "IdentityEndsConfig",
    "IdentityProjectionConfig",
    "KroneckerConfig",
    "NewtonConfig",
    "OrthostochasticConfig",
    "PermutationsConfig",
    "PlainConfig",
    "ProjectionConfig",
    "Residual",
    "ResidualConfig",
    "SimplexMHCConfig",
    "SinkhornConfig",
    "SpectralSphereConfig",
    "StaticMHCConfig",
    "StreamAdapters",
    "StreamAdaptersConfig",
    "StreamEnds",
]
