"""Squared entries of an orthogonal matrix."""

import math

import torch

from torch_ref.config import one_of, register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections


@register("projection", "orthostochastic")
class Orthostochastic(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        if one_of("orthostochastic schedule", config.schedule, ("quintic", "eight")) == "quintic":
            if config.steps < 0:
                raise ValueError(f"orthostochastic: steps must not be negative, got {config.steps}")
            self.coefficients = (tuple(config.coefficients),) * config.steps
        else:
            self.coefficients = projections.SCHEDULE
        self.eps, self.normalise = config.eps, config.normalise
        self.start = one_of("orthostochastic start", config.start, ("rotation", "diagonal"))

    def near_identity(self, strength):
        """A diagonal, or what rotates: squared entries off the diagonal are about ``exp(-strength)`` of those on it."""
        eye, sign = torch.eye(self.streams), torch.ones(self.streams, self.streams).triu(1)
        return strength * eye if self.start == "diagonal" else math.exp(strength / 2) * eye + sign - sign.T

    def __call__(self, logits):
        return projections.orthostochastic(
            logits, coefficients=self.coefficients, eps=self.eps, normalise=self.normalise
        )
