"""Stream ends of mHC-SSM: a dense expansion to all streams and a learned simplex average."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.ends.base import EndsConfig, StreamEnds
from mhc_jax.nn.init import Init, constant, uniform, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.residual.base import streams_of
from mhc_jax.ops import streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("ends", "dense")
@dataclasses.dataclass(frozen=True)
class DenseEndsConfig(EndsConfig):
    """A dense layer D -> N*D expands; ``softmax(logits)`` weights collapse.

    Attributes:
        init: ``"repeat"`` starts as N copies of the embedding; ``"uniform"`` is the original's random matrix.
    """

    init: Literal["repeat", "uniform"] = "repeat"

    def check(self, residual):
        self.require(residual.stream_count is not None, "the residual has no streams to expand to; use ends 'identity'")

    def build(self, width, stream_count, policy, init):
        return DenseEnds(self, width, stream_count, policy, init)


class DenseEnds(StreamEnds):
    """N streams; stream i is expanded by columns i*D .. (i+1)*D-1 of the kernel."""

    def __init__(self, config: DenseEndsConfig, width: int, stream_count: int, policy: Policy, init: Init):
        self.policy, self.stream_count = policy, stream_count
        repeat = config.init == "repeat"
        kernel = constant(jnp.tile(jnp.eye(width), (1, stream_count))) if repeat else uniform(width)
        bias = zeros if repeat else uniform(width)
        self.proj = Dense(width, stream_count * width, init / "proj", ("embed", "streams"), kernel=kernel, bias=bias)
        self.collapse_logits = init("collapse_logits", zeros, stream_count, axes=("stream",))

    def expand(self, x_BTD):
        x_BTM = self.proj(x_BTD.astype(self.policy.compute)).astype(self.policy.accumulate)
        return streams.split_streams(x_BTM, self.stream_count)

    def collapse(self, state):
        weight_N = jax.nn.softmax(self.collapse_logits[...].astype(self.policy.accumulate))
        return streams.read(streams_of(state), weight_N)
