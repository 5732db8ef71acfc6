"""Mixtures of cyclic shifts."""

import torch

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections


@register("projection", "circulant")
class Circulant(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.gamma, self.shape = config.gamma, (streams,)

    def near_identity(self, strength):
        return strength * torch.eye(self.streams)[0]

    def __call__(self, logits):
        return projections.circulant(logits, gamma=self.gamma)
