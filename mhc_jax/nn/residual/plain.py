"""The plain pre-norm residual: one stream, ``x + branch(norm(x))``. Template for new topologies."""

import dataclasses

from mhc_jax.nn.residual.base import EndsConfig, Residual, ResidualConfig, StreamEnds
from mhc_jax.registry import register


class PlainResidual(Residual):
    """State (B, T, D)."""

    def pre(self, state, scope):
        return state, None

    def post(self, state, y, ctx, scope):
        return state + y.astype(state.dtype)


@register("residual", "plain")
@dataclasses.dataclass(frozen=True)
class PlainConfig(ResidualConfig):
    """One residual stream."""

    @property
    def stream_count(self):
        return None

    def build(self, width, policy, init):
        return PlainResidual()


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
