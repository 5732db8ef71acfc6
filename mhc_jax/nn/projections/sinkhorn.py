"""Sinkhorn's iterations."""

import dataclasses
from typing import Literal

import jax

from mhc_jax.backend import stated_backend
from mhc_jax.nn.projections.base import EXACT, NEAR, Entrywise, ProjectionConfig, Promise
from mhc_jax.ops import sinkhorn
from mhc_jax.registry import register


@register("projection", "sinkhorn")
@dataclasses.dataclass(frozen=True)
class SinkhornConfig(ProjectionConfig):
    """Sinkhorn's iterations (mHC, 2512.24880): nearly doubly stochastic.

    Attributes:
        iters: pairs of half-steps.
        temperature: divides the logits.
        order: order of the half-steps; the sums of the second are exact. ``"columns_then_rows"``, the paper's,
            keeps equal streams equal; ``"rows_then_columns"`` is mHC-SSM's.
        domain: ``"log"`` is finite, and its gradient too, at any finite logits; ``"exp"`` is mHC-SSM's own form, in its
            order only (there 0 iterations are allowed, and leave the exponentials as they are): where the logits of a
            column lie about 90 below their rows' largest, its gradient becomes NaN.
        gradient: ``"unrolled"`` keeps two matrices of every iteration for the backward pass, with ``remat`` only those
            of the layer that is recomputed; ``"recompute"`` keeps none and repeats the iterations in the backward pass,
            to the same gradient; ``"implicit"`` differentiates the exact projection, which the iterations approach.
    """

    iters: int = 20
    temperature: float = 1.0
    order: Literal["columns_then_rows", "rows_then_columns"] = "columns_then_rows"
    domain: Literal["log", "exp"] = "log"
    gradient: Literal["unrolled", "recompute", "implicit"] = "unrolled"

    def validate(self):
        super().validate()
        papers = self.order == "columns_then_rows"
        self.require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        self.require(
            self.domain == "log" or not papers, "domain 'exp' has the order 'rows_then_columns' only; use domain 'log'"
        )
        self.require(
            self.gradient != "implicit" or papers,
            "gradient 'implicit' has the order 'columns_then_rows' only; use gradient 'unrolled'",
        )
        least = 1 if self.domain == "log" else 0
        self.require(
            self.iters >= least, f"iters must be at least {least} in the domain {self.domain!r}, got {self.iters}"
        )

    @property
    def promise(self):
        if self.iters == 0:
            return Promise(negative=0.0)
        if self.order == "columns_then_rows":
            return Promise(rows=EXACT, columns=NEAR, negative=0.0)
        return Promise(rows=NEAR, columns=EXACT, negative=0.0)

    def is_identity(self, streams):
        return super().is_identity(streams) and self.domain == "log"

    def project(self, logits, streams):
        def project(logits):
            return self._form()(logits, iters=self.iters, temperature=self.temperature)

        return (jax.checkpoint(project) if self.gradient == "recompute" else project)(logits)

    def project_by_kernel(self, logits, streams, batch_sharding):
        if not self._has_kernel():
            return self.project(logits, streams)
        from mhc_jax.kernels.sinkhorn import log_sinkhorn  # Pallas takes long to import

        return log_sinkhorn(
            logits / self.temperature, iters=self.iters, order=self.order, batch_sharding=batch_sharding
        )

    def entrywise(self, streams):
        if not self._has_kernel():
            return None
        return Entrywise(lambda logits: [x / self.temperature for x in logits], self.iters, sinkhorn.ORDERS[self.order])

    def check_kernels(self, streams):
        if self._has_kernel():
            from mhc_jax.kernels.sinkhorn import fault

            found = fault(streams, self.iters, stated_backend())
            self.require(not found, found)

    def _has_kernel(self) -> bool:
        return self.domain == "log" and self.gradient != "implicit"

    def _form(self):
        if self.gradient == "implicit":
            return sinkhorn.implicit_sinkhorn
        if self.order == "columns_then_rows":
            return sinkhorn.log_sinkhorn_columns_then_rows
        return sinkhorn.log_sinkhorn if self.domain == "log" else sinkhorn.sinkhorn_rows_then_columns
