"""Stream ends of mHC-SSM: a dense expansion to all streams and a learned simplex average."""

import torch
from torch import nn

from torch_ref.config import one_of, register
from torch_ref.nn.ends.base import StreamEnds
from torch_ref.nn.residual.base import streams_of
from torch_ref.ops import streams


@register("ends", "dense")
class DenseEnds(StreamEnds):
    """State (B, T, N, D); stream i is expanded by rows i*D .. (i+1)*D-1 of the weight."""

    def __init__(self, config, width: int, stream_count: int | None):
        super().__init__()
        if stream_count is None:
            raise ValueError("the residual has no streams to expand to; use ends 'identity'")
        self.stream_count = stream_count
        self.proj = nn.Linear(width, stream_count * width)
        self.collapse_logits = nn.Parameter(torch.zeros(stream_count))
        if one_of("ends init", config.init, ("repeat", "uniform")) == "repeat":
            with torch.no_grad():
                self.proj.weight.copy_(torch.eye(width).repeat(stream_count, 1))
                self.proj.bias.zero_()

    def expand(self, x_BTD):
        return streams.split_streams(self.proj(x_BTD), self.stream_count)

    def collapse(self, state):
        return streams.read(streams_of(state), self.collapse_logits.softmax(0))
