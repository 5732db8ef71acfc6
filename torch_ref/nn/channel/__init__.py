"""Channel mixers, one per file, which map each token of (B, T, D) separately."""

from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.channel.gelu_mlp import GeluMLP
from torch_ref.nn.channel.linear import Linear
from torch_ref.nn.channel.linear_mhc import LinearMHC
from torch_ref.nn.channel.moe import MoE
from torch_ref.nn.channel.swiglu import SwiGLU

__all__ = ["ChannelMixer", "GeluMLP", "Linear", "LinearMHC", "MoE", "SwiGLU"]
