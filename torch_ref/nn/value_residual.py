"""Value residual (ResFormer): every layer mixes the first layer's values into its own."""

import torch
from torch import Tensor, nn


class ValueResidual(nn.Module):
    """Holds the weights (own, first) of one layer: free, or the softmax of two logits if ``constrained``."""

    def __init__(self, config):
        super().__init__()
        self.constrained = config.constrained
        self.lambdas = nn.Parameter(torch.tensor([0.0, -8.0] if config.constrained else [0.5, 0.5]))

    def forward(self, own: Tensor, first: Tensor) -> Tensor:
        weights = self.lambdas.softmax(0) if self.constrained else self.lambdas
        return weights[0] * own + weights[1] * first
