"""Sequence mixers, one per file."""

from mhc_jax.nn.mixers.attention import AttentionConfig
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.nn.mixers.diagonal_ssm import DiagonalSSMConfig
from mhc_jax.nn.mixers.gated_delta import GatedDeltaConfig
from mhc_jax.nn.mixers.gla import GLAConfig
from mhc_jax.nn.mixers.latent_attention import LatentAttentionConfig
from mhc_jax.nn.mixers.selective_ssm import SelectiveSSMConfig

__all__ = [
    "AttentionConfig",
    "DiagonalSSMConfig",
    "LatentAttentionConfig",
    "GLAConfig",
    "GatedDeltaConfig",
    "Mixer",
    "MixerConfig",
    "SelectiveSSMConfig",
]
