"""Mixtures of permutations."""

import dataclasses
import math

import jax.numpy as jnp

from mhc_jax.nn.projections.base import ProjectionConfig
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
