"""Stream ends of hyper-connections: the embedding is copied to all streams, and one of several read-outs collapses."""

import dataclasses
import math
import operator
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.ends.base import EndsConfig, StreamEnds
from mhc_jax.nn.init import Init, constant, zeros
from mhc_jax.nn.residual.base import streams_of
from mhc_jax.ops import hyper, streams
from mhc_jax.ops.streams import STREAM_AXIS, Streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("ends", "copy")
@dataclasses.dataclass(frozen=True)
class CopyEndsConfig(EndsConfig):
    """Every stream starts as the embedding. Of equal streams, all read-outs except ``"sum"`` initially return one.

    Attributes:
        stream_embed: whether a learned vector is added to each stream.
        collapse: ``"mean"`` or ``"sum"`` of the streams; ``"head"``, weights from all streams of the token
            (DeepSeek-V4); ``"pool"``, a softmax over streams for each channel (lucidrains); ``"carried"``, the
            reading weights in the state of a single-pass topology.
        head_eps: constant added to the weights of the head.
        norm_eps: epsilon of the root mean square by which the head divides.
    """

    stream_embed: bool = False
    collapse: Literal["mean", "sum", "head", "pool", "carried"] = "mean"
    head_eps: float = 1e-6
    norm_eps: float = 1e-6

    def validate(self):
        super().validate()
        self.require_not_negative("head_eps", "norm_eps")

    def check(self, residual):
        self.require(residual.stream_count is not None, "the residual has no streams to expand to; use ends 'identity'")
        self.require(
            self.collapse != "carried" or "read" in residual.carries,
            "collapse 'carried' needs a residual that carries its reading weights, as 'single_pass_mhc' does, "
            f"not {residual.kind!r}",
        )

    def build(self, width, stream_count, policy, init):
        return CopyEnds(self, width, stream_count, policy, init)


class CopyEnds(StreamEnds):
    """See :class:`CopyEndsConfig`."""

    def __init__(self, config: CopyEndsConfig, width: int, stream_count: int, policy: Policy, init: Init):
        self.config, self.policy, self.stream_count = config, policy, stream_count
        n = stream_count
        if config.stream_embed:
            self.stream_embed = init("stream_embed", zeros, n, width, role="table", axes=("stream", "features"))
        if config.collapse == "head":
            share = 1 / n if n > 1 else 1 - 1e-6
            self.phi = init("phi", zeros, n, n * width, role="mixing", axes=("coefficient", "streams"))
            self.bias = init("bias", constant(math.log(share / (1 - share))), n, axes=("coefficient",))
            self.alpha = init("alpha", constant(0.01), 1, axes=("coefficient",))
        elif config.collapse == "pool":
            self.pool = init(
                "pool", constant(jnp.eye(width)), width, width, role="filter", axes=("features", "features")
            )

    def expand(self, x_BTD):
        h = Streams.copies(x_BTD.astype(self.policy.accumulate), self.stream_count)
        if not self.config.stream_embed:
            return h
        return h.each(operator.add, self.stream_embed[...].astype(h.dtype))

    def collapse(self, state):
        h, how = streams_of(state).astype(self.policy.accumulate), self.config.collapse
        if how == "mean":
            return h.total() / self.stream_count
        if how == "sum":
            return h.total()
        if how == "head":
            return streams.read(h, self._head(h))
        if how == "pool":
            return self._pool(h)
        return streams.read(h, state["read"])

    def _pool(self, h):
        pool = self.pool[...].astype(h.dtype)
        logits_BTND = h.each(lambda x: x @ pool.T).stack()
        weights = Streams.unstack(jax.nn.softmax(logits_BTND, axis=STREAM_AXIS))
        return weights.each(operator.mul, h).total()

    def _head(self, h):
        phi, bias, alpha = (leaf[...].astype(h.dtype) for leaf in (self.phi, self.bias, self.alpha))
        logits_BTN = alpha * hyper.flat_weights(h, phi, eps=self.config.norm_eps) + bias
        return jax.nn.sigmoid(logits_BTN) + self.config.head_eps
