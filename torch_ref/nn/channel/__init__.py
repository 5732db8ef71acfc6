"""Channel mixers, one per file: they map every token's (B, T, D) alone."""

from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.channel.gelu_mlp import GeluMLP

__all__ = ["ChannelMixer", "GeluMLP"]
