"""A topology from outside: LayerScale (arXiv 2103.17239), a learned gain on each channel of a branch's output."""

import dataclasses

from mhc_jax.models.topologies import Topology
from mhc_jax.nn.init import Init, ones
from mhc_jax.nn.residual import Residual, ResidualConfig
from mhc_jax.registry import register


class LayerScale(Residual):
    """State (B, T, D): ``x + gain * branch(norm(x))``."""

    def __init__(self, width: int, init: Init):
        self.gain = init("gain", ones, width, role="vector", axes=("features",))

    def pre(self, state, scope):
        return state, None

    def post(self, state, y, ctx, scope):
        return state + self.gain[...].astype(state.dtype) * y.astype(state.dtype)


@register("residual", "layer_scale")
@dataclasses.dataclass(frozen=True)
class LayerScaleConfig(ResidualConfig):
    """One residual stream."""

    @property
    def stream_count(self):
        return None

    def build(self, width, policy, init):
        return LayerScale(width, init)


@register("topology", "layer_scale")
def layer_scale() -> Topology:
    """LayerScale: one stream, a gain on each channel of every write."""
    return Topology(LayerScaleConfig())
