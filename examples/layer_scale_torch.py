"""The PyTorch twin of ``layer_scale.py``, for the parity suite."""

import torch

from torch_ref.config import register
from torch_ref.nn.residual import Residual


@register("residual", "layer_scale")
class LayerScale(Residual):
    stream_count = None

    def __init__(self, config, width, site, sites):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(width))

    def pre(self, state, scope):
        return state, None

    def post(self, state, y, ctx, scope):
        return state + self.gain * y
