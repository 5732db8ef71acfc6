"""Stream ends that copy the embedding to every stream, and ways to collapse the streams."""

import torch
import torch.nn.functional as F
from torch import nn

from torch_ref.config import one_of, register
from torch_ref.nn.ends.base import StreamEnds
from torch_ref.nn.residual.base import streams_of
from torch_ref.nn.residual.mhc import leaning_read
from torch_ref.ops import streams
from torch_ref.ops.hyper import flat_weights


@register("ends", "copy")
class CopyEnds(StreamEnds):
    """State (B, T, N, D), all streams equal unless each has an embedding of its own.

    They collapse to their ``mean`` or ``sum``; to a sum with sigmoid weights of every token (``head``) or with softmax
    weights of every channel (``pool``); or by the read that the last site left in the state (``carried``).
    """

    def __init__(self, config, width: int, stream_count: int | None):
        super().__init__()
        if stream_count is None:
            raise ValueError("the residual has no streams to expand to; use ends 'identity'")
        n = self.stream_count = stream_count
        self.rule = one_of("collapse", config.collapse, ("mean", "sum", "head", "pool", "carried"))
        self.head_eps, self.norm_eps = config.head_eps, config.norm_eps
        self.stream_embed = nn.Parameter(torch.zeros(n, width)) if config.stream_embed else None
        if self.rule == "head":
            self.phi = nn.Parameter(torch.zeros(n, n * width))
            self.bias = nn.Parameter(leaning_read(n, 0, 1 / n))
            self.alpha = nn.Parameter(torch.full((1,), 0.01))
        elif self.rule == "pool":
            self.pool = nn.Parameter(torch.eye(width))

    def expand(self, x_BTD):
        h_BTND = x_BTD[..., None, :].expand(-1, -1, self.stream_count, -1)
        return h_BTND if self.stream_embed is None else h_BTND + self.stream_embed

    def collapse(self, state):
        h_BTND = streams_of(state)
        match self.rule:
            case "mean":
                return h_BTND.mean(-2)
            case "sum":
                return h_BTND.sum(-2)
            case "head":
                logits_BTN = self.alpha * flat_weights(h_BTND, self.phi, eps=self.norm_eps) + self.bias
                return streams.read(h_BTND, logits_BTN.sigmoid() + self.head_eps)
            case "pool":
                return (F.linear(h_BTND, self.pool).softmax(-2) * h_BTND).sum(-2)
            case "carried":
                if not isinstance(state, dict):
                    raise ValueError("collapse 'carried' needs a residual that carries a read, e.g. 'single_pass_mhc'")
                return streams.read(h_BTND, state["read"])
