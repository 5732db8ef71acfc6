"""Residual topologies, one per file."""

from mhc_jax.nn.residual.base import Residual, ResidualConfig
from mhc_jax.nn.residual.dynamic_mhc import DynamicMHCConfig
from mhc_jax.nn.residual.frac_connections import FracConnectionsConfig
from mhc_jax.nn.residual.gated_residual import GatedResidualConfig
from mhc_jax.nn.residual.hyper_connections import HyperConnectionsConfig
from mhc_jax.nn.residual.multi_branch_hc import MultiBranchHCConfig
from mhc_jax.nn.residual.per_stream_mhc import PerStreamMHCConfig
from mhc_jax.nn.residual.plain import PlainConfig
from mhc_jax.nn.residual.shc import SHCConfig
from mhc_jax.nn.residual.single_pass_mhc import SinglePassMHCConfig
from mhc_jax.nn.residual.static_mhc import StaticMHCConfig

__all__ = [
    "DynamicMHCConfig",
    "FracConnectionsConfig",
    "GatedResidualConfig",
    "HyperConnectionsConfig",
    "MultiBranchHCConfig",
    "PerStreamMHCConfig",
    "PlainConfig",
    "Residual",
    "ResidualConfig",
    "SHCConfig",
    "SinglePassMHCConfig",
    "StaticMHCConfig",
]
