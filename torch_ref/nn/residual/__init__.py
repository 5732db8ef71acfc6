"""Residual topologies, one per file."""

from torch_ref.nn.residual.base import Residual
from torch_ref.nn.residual.dynamic_mhc import DynamicMHC
from torch_ref.nn.residual.frac_connections import FracConnections
from torch_ref.nn.residual.gated_residual import GatedResidual
from torch_ref.nn.residual.hyper_connections import HyperConnections
from torch_ref.nn.residual.multi_branch_hc import MultiBranchHC
from torch_ref.nn.residual.per_stream_mhc import PerStreamMHC
from torch_ref.nn.residual.plain import PlainResidual
from torch_ref.nn.residual.shc import SHC
from torch_ref.nn.residual.single_pass_mhc import SinglePassMHC
from torch_ref.nn.residual.static_mhc import StaticMHC

__all__ = [
    "DynamicMHC",
    "FracConnections",
    "GatedResidual",
    "HyperConnections",
    "MultiBranchHC",
    "PerStreamMHC",
    "PlainResidual",
    "Residual",
    "SHC",
    "SinglePassMHC",
    "StaticMHC",
]
