"""Sequence mixers, one per file."""

from torch_ref.nn.mixers.attention import Attention
from torch_ref.nn.mixers.base import Mixer
from torch_ref.nn.mixers.diagonal_ssm import DiagonalSSM

__all__ = ["Attention", "DiagonalSSM", "Mixer"]
