"""Sinkhorn's iterations of lucidrains' package."""

import dataclasses

from mhc_jax.nn.projections.base import EXACT, NEAR, ProjectionConfig, Promise
from mhc_jax.ops import sinkhorn
from mhc_jax.registry import register


@register("projection", "clamped_sinkhorn")
@dataclasses.dataclass(frozen=True)
class ClampedSinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations as lucidrains' ``hyper-connections`` runs them; 0 leaves the logits as they are.

    Where the logits of a column lie about 90 below their rows' largest, its gradient becomes NaN, as the original's.
    """

    iters: int = 20

    def validate(self):
        super().validate()
        self.require_not_negative("iters")

    @property
    def promise(self):
        return Promise(rows=NEAR, columns=EXACT, negative=0.0) if self.iters else Promise()

    def is_identity(self, streams):
        return super().is_identity(streams) and self.iters > 0

    def project(self, logits, streams):
        return sinkhorn.sinkhorn_clamped(logits, iters=self.iters)
