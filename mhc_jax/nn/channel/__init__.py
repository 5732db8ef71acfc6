"""Channel mixers, one per file."""

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.channel.gelu_mlp import GeluMLPConfig

__all__ = ["ChannelMixer", "ChannelMixerConfig", "GeluMLPConfig"]
