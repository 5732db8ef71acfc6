"""No mixing."""

import torch

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection


@register("projection", "identity")
class Identity(Projection):
    """No mixing, and no logits."""

    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.shape = (0,)

    def near_identity(self, strength):
        return torch.zeros(self.shape)

    def __call__(self, logits):
        eye_NN = torch.eye(self.streams, dtype=logits.dtype, device=logits.device)
        return eye_NN.expand(*logits.shape[:-1], -1, -1)
