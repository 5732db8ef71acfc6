"""Norms, one kind a file."""

from torch_ref.nn.norms.base import Norm, build_norm
from torch_ref.nn.norms.layer_norm import LayerNorm
from torch_ref.nn.norms.rms import RMSNorm

__all__ = ["LayerNorm", "Norm", "RMSNorm", "build_norm"]
