"""Squared entries of an orthogonal matrix."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from mhc_jax.nn.projections.base import EXACT, NEAR, ProjectionConfig, Promise
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "orthostochastic")
@dataclasses.dataclass(frozen=True)
class OrthostochasticConfig(ProjectionConfig):
    """The squared entries of an orthogonal matrix (tokenbender's mHC), by Newton-Schulz steps.

    Attributes:
        schedule: ``"eight"`` steps with coefficients of their own, or ``steps`` times the same ``"quintic"``, which
            leaves sums of rows off by about 1%.
        steps: number of quintic steps; 0 squares the logits divided by their norm.
        coefficients: (a, b, c) of the quintic.
        eps: added to the norm of the logits.
        normalise: make the sums of rows exact; the original does not, and of zero logits makes a matrix of zeros.
        start: near the identity, ``"rotation"`` keeps the entries off the diagonal away from zero, where a square has
            no gradient and the matrix could never leave; ``"diagonal"`` is the multiple of the identity from which the
            original starts (with ``res_offset``, which turns it into something else).
    """

    schedule: Literal["quintic", "eight"] = "eight"
    steps: int = 5
    coefficients: tuple[float, ...] = (3.0, -3.2, 1.2)
    eps: float = 1e-7
    normalise: bool = True
    start: Literal["rotation", "diagonal"] = "rotation"

    def validate(self):
        super().validate()
        self.require_not_negative("steps")
        self.require(len(self.coefficients) == 3, f"coefficients must be three numbers, got {self.coefficients}")
        self.require(self.eps > 0, f"eps must be positive, got {self.eps}")

    @property
    def promise(self):
        near = NEAR if self.schedule == "eight" or self.steps >= 5 else None
        return Promise(rows=EXACT if self.normalise else near, columns=near, negative=0.0)

    def is_identity(self, streams):
        return super().is_identity(streams) and self.normalise

    def near_identity(self, streams, strength):
        """For ``"rotation"`` an entry off the diagonal is about ``exp(-strength)`` of one on it."""
        if self.start == "diagonal":
            return super().near_identity(streams, strength)
        upper = jnp.triu(jnp.ones((streams, streams)), 1)
        return math.exp(strength / 2) * jnp.eye(streams) + upper - upper.T

    def project(self, logits, streams):
        quintic = (self.coefficients,) * self.steps
        coefficients = quintic if self.schedule == "quintic" else projections.SCHEDULE
        return projections.orthostochastic(logits, coefficients=coefficients, eps=self.eps, normalise=self.normalise)
