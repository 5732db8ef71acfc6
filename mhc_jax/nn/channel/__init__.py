"""Channel mixers, one per file."""

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.channel.gelu_mlp import GeluMLPConfig
from mhc_jax.nn.channel.linear import LinearConfig
from mhc_jax.nn.channel.linear_mhc import LinearMHCConfig
from mhc_jax.nn.channel.moe import MoEConfig
from mhc_jax.nn.channel.swiglu import SwiGLUConfig

__all__ = [
    "ChannelMixer",
    "ChannelMixerConfig",
    "GeluMLPConfig",
    "LinearConfig",
    "LinearMHCConfig",
    "MoEConfig",
    "SwiGLUConfig",
]
