"""Sequence mixers, one per file."""

from torch_ref.nn.mixers.attention import Attention
from torch_ref.nn.mixers.base import Mixer
from torch_ref.nn.mixers.diagonal_ssm import DiagonalSSM
from torch_ref.nn.mixers.gated_delta import GatedDelta
from torch_ref.nn.mixers.gla import GLA
from torch_ref.nn.mixers.latent_attention import LatentAttention
from torch_ref.nn.mixers.selective_ssm import SelectiveSSM

__all__ = ["GLA", "Attention", "DiagonalSSM", "GatedDelta", "LatentAttention", "Mixer", "SelectiveSSM"]
