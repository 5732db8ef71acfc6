"""Layer normalisation."""

import torch
from torch import nn

from torch_ref.config import register
from torch_ref.nn.norms.base import Norm, checked_eps
from torch_ref.ops.norm import layer_norm


@register("norm", "ln")
class LayerNorm(Norm):
    """``(x - mean) / sqrt(var + eps) * weight + bias``, with or without bias."""

    def __init__(self, config, width: int, biased: bool = False):
        super().__init__(config, width, biased)
        self.eps = checked_eps(config)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias or biased else None

    def forward(self, x):
        return layer_norm(x, self.weight, self.bias, eps=self.eps)
