"""Sinkhorn's iterations of RLM-mHC."""

import dataclasses

from mhc_jax.nn.projections.base import EXACT, NEAR, ProjectionConfig, Promise
from mhc_jax.ops import sinkhorn
from mhc_jax.registry import register


@register("projection", "clipped_sinkhorn")
@dataclasses.dataclass(frozen=True)
class ClippedSinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations as RLM-mHC runs them, on exponentials of logits clipped to ±50.

    Columns sum to one. A clipped logit gets no gradient. With 0 iterations the exponentials stay as they are.

    Attributes:
        iters: pairs of half-steps.
    """

    iters: int = 20

    def validate(self):
        super().validate()
        self.require_counts(0, "iters")

    @property
    def promise(self):
        return Promise(rows=NEAR, columns=EXACT, negative=0.0) if self.iters else Promise(negative=0.0)

    def is_identity(self, streams):
        return False  # of one logit z it makes 1 / (1 + 1e-8 exp(-z)) or, without iterations, exp(z)

    def project(self, logits, streams):
        return sinkhorn.sinkhorn_clipped(logits, iters=self.iters)
