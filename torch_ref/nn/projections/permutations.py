"""Mixtures of permutations."""

import math

import torch

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections

MOST_STREAMS_PERMUTED = 6


@register("projection", "permutations")
class Permutations(Projection):
    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        count = math.factorial(streams)
        if streams > MOST_STREAMS_PERMUTED:
            raise ValueError(
                f"permutations: {streams} streams have {count} permutations; at most {MOST_STREAMS_PERMUTED} streams"
            )
        self.shape = (count,)

    def near_identity(self, strength):
        """``strength + log(n! / n)`` on the identity alone: its share is then that of a diagonal under Sinkhorn."""
        logits_K = torch.zeros(self.shape)
        logits_K[0] = strength + math.log(self.shape[0] / self.streams)
        return logits_K

    def __call__(self, logits):
        return projections.permutation_mixture(logits, streams=self.streams)
