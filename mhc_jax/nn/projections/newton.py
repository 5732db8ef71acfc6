"""The limit of Sinkhorn's iterations, by Newton's method."""

import dataclasses

from mhc_jax.nn.projections.base import ProjectionConfig
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "newton")
@dataclasses.dataclass(frozen=True)
class NewtonConfig(ProjectionConfig):
    """The doubly stochastic limit of Sinkhorn's iterations, by at most ``iters`` Newton steps per temperature."""

    iters: int = 64

    def validate(self):
        super().validate()
        self.require(self.iters >= 1, f"iters must be at least 1, got {self.iters}")

    def project(self, logits, streams):
        return projections.newton_birkhoff(logits, iters=self.iters)
