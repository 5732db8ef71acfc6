"""The Cayley transform."""

import torch

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections


@register("projection", "cayley")
class Cayley(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        if config.steps < 0:
            raise ValueError(f"cayley: steps must be at least 0, got {config.steps}")
        self.alpha, self.steps = config.alpha, config.steps

    def near_identity(self, strength):
        """Zeros, whose projection is the identity for any strength."""
        return torch.zeros(self.shape)

    def __call__(self, logits):
        return projections.cayley(logits, alpha=self.alpha, steps=self.steps)
