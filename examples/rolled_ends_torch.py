"""The PyTorch twin of ``rolled_ends.py``, for the parity suite."""

import torch

from torch_ref.config import register
from torch_ref.nn.ends import StreamEnds
from torch_ref.nn.residual.base import streams_of


@register("ends", "rolled")
class RolledEnds(StreamEnds):
    def __init__(self, config, width, stream_count):
        super().__init__()
        self.shift, self.stream_count = config.shift, stream_count

    def expand(self, x_BTD):
        return torch.stack([x_BTD.roll(i * self.shift, -1) for i in range(self.stream_count)], -2)

    def collapse(self, state):
        back = [x.roll(-i * self.shift, -1) for i, x in enumerate(streams_of(state).unbind(-2))]
        return torch.stack(back).mean(0)
