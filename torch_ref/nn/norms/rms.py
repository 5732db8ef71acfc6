"""Root-mean-square normalisation."""

import torch
from torch import nn

from torch_ref.config import register
from torch_ref.nn.norms.base import Norm, checked_eps
from torch_ref.ops.norm import rms_norm


@register("norm", "rms")
class RMSNorm(Norm):
    """``x / sqrt(mean(x^2) + eps) * weight``; it has no bias."""

    def __init__(self, config, width: int, biased: bool = False):
        super().__init__(config, width, biased)
        self.eps = checked_eps(config)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return rms_norm(x, self.weight, eps=self.eps)
