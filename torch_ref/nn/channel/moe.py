"""A mixture of gated perceptrons."""

import torch
from torch import nn

from torch_ref.config import register
from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.layers import linear
from torch_ref.ops import experts, routing


@register("channel", "moe")
class MoE(ChannelMixer):
    """``sum_e w_e SwiGLU_e(x)`` with w the softmax of the ``top_k`` largest router logits."""

    kernels = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        if not 1 <= config.top_k <= config.experts:
            raise ValueError(f"moe: top_k must lie in 1 .. {config.experts}, got {config.top_k}")
        self.top_k, self.balance = config.top_k, config.balance
        hidden = 8 * ((width + 2) // 3) if config.hidden is None else config.hidden
        self.router = linear(width, config.experts, config.init_std, bias=False)

        def matrices(inputs: int, outputs: int, std: float) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(config.experts, inputs, outputs))

        self.gate_proj, self.up_proj = (matrices(width, hidden, config.init_std) for _ in range(2))
        self.down_proj = matrices(hidden, width, config.init_std / (sites**0.5 if config.scale_output else 1))

    def forward(self, u_BTD, scope):
        logits_BTE = self.router(u_BTD)
        weight_BTE = scope.tap("weights", routing.top_k_softmax(logits_BTE, k=self.top_k))
        scope.penalise("expert_balance", self.balance * routing.load_balance(logits_BTE, weight_BTE))
        return experts.swiglu_experts(u_BTD, weight_BTE, self.gate_proj, self.up_proj, self.down_proj, k=self.top_k)
