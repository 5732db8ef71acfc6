"""Products of mixtures of pairs."""

import torch

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections


@register("projection", "kronecker")
class Kronecker(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        factors = streams.bit_length() - 1
        if streams != 2**factors:
            raise ValueError(f"kronecker: streams must be a power of two, got {streams}")
        self.shape = (factors, 2)

    def near_identity(self, strength):
        return torch.tensor([strength, 0.0]).repeat(self.shape[0], 1)

    def __call__(self, logits):
        return projections.kronecker_mixture(logits)
