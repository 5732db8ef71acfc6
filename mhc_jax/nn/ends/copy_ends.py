"""Stream ends of hyper-connections: copies of the embedding in, and one of several read-outs."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.ends.base import EndsConfig, StreamEnds
from mhc_jax.nn.init import Init, constant, zeros
from mhc_jax.nn.residual.base import streams_of
from mhc_jax.ops import hyper, streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("ends", "copy")
@dataclasses.dataclass(frozen=True)
class CopyEndsConfig(EndsConfig):
    """Every stream starts as the embedding. All read-outs but ``"sum"`` return it if the streams stay equal.

    Attributes:
        stream_embed: add a learned vector of its own to every stream.
        collapse: ``"mean"`` or ``"sum"`` of the streams; ``"head"``, weights from all streams of the token
            (DeepSeek-V4); ``"pool"``, a softmax over streams for each channel (lucidrains); ``"carried"``, the
            reading weights that a single-pass topology hands on.
        head_eps: added to the weights of the head.
        norm_eps: of the root mean square that the head divides by.
    """

    stream_embed: bool = False
    collapse: Literal["mean", "sum", "head", "pool", "carried"] = "mean"
    head_eps: float = 1e-6
    norm_eps: float = 1e-6

    def validate(self):
        super().validate()
        for name in ("head_eps", "norm_eps"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

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
    """Streams (B, T, N, D)."""

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
        x_BTD = x_BTD.astype(self.policy.accumulate)
        shape = (*x_BTD.shape[:-1], self.stream_count, x_BTD.shape[-1])
        h_BTND = jnp.broadcast_to(x_BTD[..., None, :], shape)
        return h_BTND + self.stream_embed[...].astype(h_BTND.dtype) if self.config.stream_embed else h_BTND

    def collapse(self, state):
        h_BTND, how = streams_of(state), self.config.collapse
        if how == "mean":
            return jnp.mean(h_BTND, axis=streams.STREAM_AXIS)
        if how == "sum":
            return jnp.sum(h_BTND, axis=streams.STREAM_AXIS)
        if how == "head":
            return streams.read(h_BTND, self._head(h_BTND))
        if how == "pool":
            weight = jax.nn.softmax(h_BTND @ self.pool[...].astype(h_BTND.dtype).T, axis=streams.STREAM_AXIS)
            return jnp.sum(weight * h_BTND, axis=streams.STREAM_AXIS)
        return streams.read(h_BTND, state["read"])

    def _head(self, h_BTND):
        phi, bias, alpha = (leaf[...].astype(h_BTND.dtype) for leaf in (self.phi, self.bias, self.alpha))
        logits_BTN = alpha * hyper.flat_weights(h_BTND, phi, eps=self.config.norm_eps) + bias
        return jax.nn.sigmoid(logits_BTN) + self.config.head_eps
