"""Small parametrised pieces: linear layers and the depth-wise filter."""

import math

import torch
from torch import Tensor, nn

from torch_ref.ops.conv import causal_depthwise_conv


def linear(inputs: int, outputs: int, std: float, bias: bool) -> nn.Linear:
    """A linear layer with a normal weight of that standard deviation and a zero bias, if any."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class CausalConv(nn.Module):
    """Depth-wise filter over time; weight (D, 1, K) and bias (D,), if any, U(-1/sqrt(K), 1/sqrt(K))."""

    def __init__(self, width: int, taps: int, *, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, 1, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if bias else None

    def forward(self, u_BTD: Tensor, history_BJD: Tensor, segment_ids: Tensor | None) -> Tensor:
        bias_D = torch.zeros_like(self.weight[:, 0, 0]) if self.bias is None else self.bias
        return causal_depthwise_conv(u_BTD, self.weight[:, 0].T, bias_D, history_BJD, segment_ids=segment_ids)
