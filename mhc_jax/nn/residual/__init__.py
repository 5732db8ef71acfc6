"""Residual topologies, one per file."""

from mhc_jax.nn.residual.adapters import StreamAdapters, StreamAdaptersConfig
from mhc_jax.nn.residual.base import EndsConfig, Residual, ResidualConfig, StreamEnds
from mhc_jax.nn.residual.dense_ends import DenseEndsConfig
from mhc_jax.nn.residual.plain import IdentityEndsConfig, PlainConfig
from mhc_jax.nn.residual.simplex_mhc import SimplexMHCConfig

__all__ = [
    "DenseEndsConfig",
    "EndsConfig",
    "IdentityEndsConfig",
    "PlainConfig",
    "Residual",
    "ResidualConfig",
    "SimplexMHCConfig",
    "StreamAdapters",
    "StreamAdaptersConfig",
    "StreamEnds",
]
