"""The PyTorch twin of ``lazy_walk.py``, for the parity suite."""

import torch

from torch_ref.config import register
from torch_ref.nn.projections import Projection


@register("projection", "lazy_walk")
class LazyWalk(Projection):
    def __init__(self, config, streams):
        super().__init__(config, streams)
        self.stay = config.stay

    def __call__(self, logits):
        return self.stay * torch.eye(self.streams).to(logits) + (1 - self.stay) * logits.softmax(-1)
