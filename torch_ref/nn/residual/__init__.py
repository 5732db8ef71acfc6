"""Residual topologies and stream ends, one per file."""

from torch_ref.nn.residual.adapters import StreamAdapters
from torch_ref.nn.residual.base import Residual, StreamEnds
from torch_ref.nn.residual.dense_ends import DenseEnds
from torch_ref.nn.residual.plain import IdentityEnds, PlainResidual
from torch_ref.nn.residual.simplex_mhc import SimplexMHC
from torch_ref.nn.residual.static_mhc import StaticMHC

__all__ = [
    "DenseEnds",
    "IdentityEnds",
    "PlainResidual",
    "Residual",
    "SimplexMHC",
    "StaticMHC",
    "StreamAdapters",
    "StreamEnds",
]
