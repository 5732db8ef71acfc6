"""Stream ends from outside: every stream sees the channels in another place, so that streams differ from the start."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.models.topologies import Topology
from mhc_jax.nn.ends import EndsConfig, StreamEnds
from mhc_jax.nn.residual import StaticMHCConfig
from mhc_jax.nn.residual.base import streams_of
from mhc_jax.ops.streams import Streams
from mhc_jax.registry import register


@register("ends", "rolled")
@dataclasses.dataclass(frozen=True)
class RolledEndsConfig(EndsConfig):
    """Stream i starts as the embedding rolled by i times the shift; the output is the mean of the streams rolled back.

    Attributes:
        shift: channels between a stream and the next one.
    """

    shift: int = 1

    def check(self, residual):
        self.require(residual.stream_count is not None, "the residual has no streams to roll; use ends 'identity'")

    def build(self, width, stream_count, policy, init):
        return RolledEnds(self.shift, stream_count, policy)


class RolledEnds(StreamEnds):
    """Without parameters; streams are touched through :mod:`mhc_jax.ops.streams` alone."""

    def __init__(self, shift, stream_count, policy):
        self.shifts, self.policy = tuple(shift * i for i in range(stream_count)), policy

    def expand(self, x_BTD):
        h = Streams.copies(x_BTD.astype(self.policy.accumulate), len(self.shifts))
        return h.each(lambda x, shift: jnp.roll(x, shift, axis=-1), self.shifts)

    def collapse(self, state):
        h = streams_of(state).astype(self.policy.accumulate)
        return h.each(lambda x, shift: jnp.roll(x, -shift, axis=-1), self.shifts).total() / len(self.shifts)


@register("topology", "rolled")
def rolled() -> Topology:
    """Static mHC between rolled ends."""
    return Topology(StaticMHCConfig(), ends=RolledEndsConfig(), starts_plain=False)
