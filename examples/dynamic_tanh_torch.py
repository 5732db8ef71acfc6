"""The PyTorch twin of ``dynamic_tanh.py``, for the parity suite."""

import torch

from torch_ref.config import register
from torch_ref.nn.norms import Norm


@register("norm", "dynamic_tanh")
class DynamicTanh(Norm):
    def __init__(self, config, width, biased=False):
        super().__init__(config, width, biased)
        self.alpha = torch.nn.Parameter(torch.tensor(float(config.alpha)))
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.bias = torch.nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight + self.bias
