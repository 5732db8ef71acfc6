"""Mixtures of permutations."""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp

from mhc_jax.nn.projections.base import Entrywise, ProjectionConfig
from mhc_jax.ops import projections
from mhc_jax.registry import register


@register("projection", "permutations")
@dataclasses.dataclass(frozen=True)
class PermutationsConfig(ProjectionConfig):
    """A mixture of all n! permutations (mHC-lite): exactly doubly stochastic, no iterations."""

    def check(self, streams):
        count = math.factorial(streams)
        self.require(streams <= 6, f"{streams} streams have {count} permutations; at most 6 streams can be mixed so")

    def shape(self, streams):
        return (math.factorial(streams),)

    def near_identity(self, streams, strength):
        """``strength + log(n! / n)`` on the identity.

        Against n! - 1 others it then has about the weight that ``strength`` gives the diagonal against the n - 1
        other entries of a row.
        """
        margin = strength + math.log(math.factorial(streams) / streams)
        return jnp.zeros(self.shape(streams)).at[0].set(margin)

    def project(self, logits, streams):
        return projections.permutation_mixture(logits, streams=streams)

    def entrywise(self, streams):
        def of(logits):
            largest = functools.reduce(jnp.maximum, logits)
            exponentials = [jnp.exp(x - largest) for x in logits]
            total = functools.reduce(jnp.add, exponentials)
            weights = [x / total for x in exponentials]
            orders = list(itertools.permutations(range(streams)))
            return [
                functools.reduce(jnp.add, [w for w, order in zip(weights, orders, strict=True) if order[i] == j])
                for i in range(streams)
                for j in range(streams)
            ]

        return Entrywise(of)
