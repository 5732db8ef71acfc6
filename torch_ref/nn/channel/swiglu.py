"""The gated perceptron of LLaMA."""

import torch.nn.functional as F

from torch_ref.config import register
from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.layers import linear


@register("channel", "swiglu")
class SwiGLU(ChannelMixer):
    """``W_down (SiLU(W_gate x) * W_up x)``; by default two thirds as wide as the four-fold perceptron it replaces."""

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        if config.hidden is not None and config.hidden < 1:
            raise ValueError(f"swiglu: hidden must be at least 1, got {config.hidden}")
        hidden = 8 * ((width + 2) // 3) if config.hidden is None else config.hidden
        self.gate_proj = linear(width, hidden, config.init_std, bias=False)
        self.up_proj = linear(width, hidden, config.init_std, bias=False)
        self.down_proj = linear(hidden, width, config.init_std / (sites**0.5 if config.scale_output else 1), bias=False)

    def forward(self, u_BTD, scope):
        gate = F.silu(self.gate_proj(u_BTD))
        return self.down_proj(scope.tap("hidden", gate * self.up_proj(u_BTD)))
