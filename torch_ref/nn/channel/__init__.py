"""Channel mixers, one per file, which map each token of (B, T, D) separately."""

from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.channel.gelu_mlp import GeluMLP

__all__ = ["ChannelMixer", "GeluMLP"]
