"""Small parametrised pieces: linear layers, norms and the depth-wise filter."""

import math

import torch
from torch import Tensor, nn

from torch_ref.config import one_of
from torch_ref.ops.conv import causal_depthwise_conv
from torch_ref.ops.norm import layer_norm, rms_norm


def linear(inputs: int, outputs: int, std: float, bias: bool) -> nn.Linear:
    """A linear layer with a normal weight of that standard deviation and a zero bias, if any."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Norm(nn.Module):
    """RMSNorm (``"rms"``) or LayerNorm (``"ln"``, with or without bias) over the last axis.

    ``eps`` is the usual one of its kind if None.

    Raises:
        ValueError: another name.
    """

    def __init__(self, width: int, name: str, biased: bool = True, eps: float | None = None):
        super().__init__()
        self.options = {} if eps is None else {"eps": eps}
        self.name = one_of("norm", name, ("rms", "ln"))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if name == "ln" and biased else None

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "rms":
            return rms_norm(x, self.weight, **self.options)
        return layer_norm(x, self.weight, self.bias, **self.options)


class CausalConv(nn.Module):
    """Depth-wise filter over time; weight (D, 1, K) and bias (D,), U(-1/sqrt(K), 1/sqrt(K))."""

    def __init__(self, width: int, taps: int):
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, 1, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, u_BTD: Tensor, history_BJD: Tensor, segment_ids: Tensor | None) -> Tensor:
        return causal_depthwise_conv(u_BTD, self.weight[:, 0].T, self.bias, history_BJD, segment_ids=segment_ids)
