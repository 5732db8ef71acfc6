"""Sinkhorn's iterations of RLM-mHC."""

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import sinkhorn


@register("projection", "clipped_sinkhorn")
class ClippedSinkhorn(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        self.iters = config.iters

    def __call__(self, logits):
        return sinkhorn.sinkhorn_clipped(logits, iters=self.iters)
