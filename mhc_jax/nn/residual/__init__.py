"""Residual topologies, one per file."""

from mhc_jax.nn.residual.adapters import StreamAdapters, StreamAdaptersConfig
from mhc_jax.nn.residual.base import EndsConfig, Residual, ResidualConfig, StreamEnds
from mhc_jax.nn.residual.copy_ends import CopyEndsConfig
from mhc_jax.nn.residual.dense_ends import DenseEndsConfig
from mhc_jax.nn.residual.dynamic_mhc import DynamicMHCConfig
from mhc_jax.nn.residual.frac_connections import FracConnectionsConfig
from mhc_jax.nn.residual.gated_residual import GatedResidualConfig
from mhc_jax.nn.residual.hyper_connections import HyperConnectionsConfig
from mhc_jax.nn.residual.multi_branch_hc import MultiBranchHCConfig
from mhc_jax.nn.residual.per_stream_mhc import PerStreamMHCConfig
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
from mhc_jax.nn.residual.single_pass_mhc import SinglePassMHCConfig
from mhc_jax.nn.residual.static_mhc import StaticMHCConfig

__all__ = [
    "CayleyConfig",
    "CirculantConfig",
    "ClampedSinkhornConfig",
    "CopyEndsConfig",
    "DeepseekSinkhornConfig",
    "DenseEndsConfig",
    "DynamicMHCConfig",
    "EndsConfig",
    "FracConnectionsConfig",
    "GatedResidualConfig",
    "HyperConnectionsConfig",
    "IdentityEndsConfig",
    "IdentityProjectionConfig",
    "KroneckerConfig",
    "MultiBranchHCConfig",
    "NewtonConfig",
    "OrthostochasticConfig",
    "PerStreamMHCConfig",
    "PermutationsConfig",
    "PlainConfig",
    "ProjectionConfig",
    "Residual",
    "ResidualConfig",
    "SinglePassMHCConfig",
    "SinkhornConfig",
    "SpectralSphereConfig",
    "StaticMHCConfig",
    "StreamAdapters",
    "StreamAdaptersConfig",
    "StreamEnds",
]
