"""Sinkhorn's iterations of DeepSeek-V4."""

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import sinkhorn


@register("projection", "deepseek_sinkhorn")
class DeepSeekSinkhorn(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.iters, self.eps = config.iters, config.eps

    def __call__(self, logits):
        return sinkhorn.sinkhorn_deepseek(logits, iters=self.iters, eps=self.eps)
