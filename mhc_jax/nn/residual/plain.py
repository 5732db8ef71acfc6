"""The plain pre-norm residual: one stream, ``x + branch(norm(x))``. Template for new topologies."""

import dataclasses

from mhc_jax.nn.residual.base import Residual, ResidualConfig
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
