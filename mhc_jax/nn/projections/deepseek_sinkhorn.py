"""Sinkhorn's iterations of DeepSeek-V4."""

import dataclasses

from mhc_jax.nn.projections.base import EXACT, NEAR, ProjectionConfig, Promise
from mhc_jax.ops import sinkhorn
from mhc_jax.registry import register


@register("projection", "deepseek_sinkhorn")
@dataclasses.dataclass(frozen=True)
class DeepseekSinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations as DeepSeek-V4 runs them, ``eps`` added to every sum."""

    iters: int = 20
    eps: float = 1e-6

    def validate(self):
        super().validate()
        self.require(self.iters >= 1, f"iters must be at least 1, got {self.iters}")
        self.require_not_negative("eps")

    @property
    def promise(self):
        return Promise(rows=EXACT, columns=NEAR, negative=0.0)

    def is_identity(self, streams):
        return super().is_identity(streams) and self.eps == 0

    def project(self, logits, streams):
        return sinkhorn.sinkhorn_deepseek(logits, iters=self.iters, eps=self.eps)
