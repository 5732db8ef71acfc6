"""The limit of Sinkhorn's iterations, by Newton's method."""

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections


@register("projection", "newton")
class Newton(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        if config.iters < 1:
            raise ValueError(f"newton: iters must be at least 1, got {config.iters}")
        self.iters = config.iters

    def __call__(self, logits):
        return projections.newton_birkhoff(logits, iters=self.iters)
