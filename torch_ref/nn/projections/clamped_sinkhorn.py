"""Sinkhorn's iterations of lucidrains' package."""

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import sinkhorn


@register("projection", "clamped_sinkhorn")
class ClampedSinkhorn(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.iters = config.iters

    def __call__(self, logits):
        return sinkhorn.sinkhorn_clamped(logits, iters=self.iters)
