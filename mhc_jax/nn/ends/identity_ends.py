"""Ends of a topology without parallel streams."""

import dataclasses

from mhc_jax.nn.ends.base import EndsConfig, StreamEnds
from mhc_jax.registry import register


class IdentityEnds(StreamEnds):
    """The embedding is the state and the state is the output."""

    def expand(self, x_BTD):
        return x_BTD

    def collapse(self, state):
        return state


@register("ends", "identity")
@dataclasses.dataclass(frozen=True)
class IdentityEndsConfig(EndsConfig):
    """No expansion: for topologies whose state is (B, T, D)."""

    def check(self, residual):
        streams = residual.stream_count
        self.require(streams is None, f"a residual of {streams} streams needs ends that expand, e.g. 'copy'")

    def build(self, width, stream_count, policy, init):
        return IdentityEnds()
