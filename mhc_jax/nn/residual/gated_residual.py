"""The gated residual: low-rank read gates for every channel, one write weight for each stream, no mixing."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, normal, zeros
from mhc_jax.nn.residual.base import Residual
from mhc_jax.nn.residual.mhc import READ_LEAN, StreamsConfig, own_stream, reading_weights
from mhc_jax.ops import hyper, streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "gated")
@dataclasses.dataclass(frozen=True)
class GatedResidualConfig(StreamsConfig):
    """The gated residual of Qwen4-exp (transformers ``qwen4_exp``).

    It has its own RMS norms for the streams that it reads. The default starts as the plain residual of a model with RMS
    norms.

    Attributes:
        streams: number of parallel streams n.
        rank: width of the bottleneck that predicts the gates.
        norm_eps: epsilon of the norm of each stream.
        branch_norm: whether the site normalises the input of the branch once more.
        form: ``"near_identity"`` starts with reads that sum to one and lean on stream (site mod n), which lets the
            streams separate. ``"published"`` starts with equal reads of 1 / (2 n), by which equal streams stay equal.
    """

    rank: int = 8
    norm_eps: float = 1e-6
    branch_norm: bool = False
    form: Literal["near_identity", "published"] = "near_identity"

    def validate(self):
        super().validate()
        self.require(self.rank >= 1, f"rank must be at least 1, got {self.rank}")
        self.require_not_negative("norm_eps")

    def build(self, width, policy, init):
        return GatedResidual(self, width, policy, init)


class GatedResidual(Residual):
    """N streams: ``u = mean_s gate_s * norm(X_s)``, ``X'_s = X_s + 2 sigmoid(inject @ norm(X) / n)_s Y_s``."""

    def __init__(self, config: GatedResidualConfig, width: int, policy: Policy, init: Init):
        n, channels = config.streams, config.streams * width
        self.config, self.policy, self.normalised = config, policy, not config.branch_norm
        # Gates start at 1/2, and the read is a mean over streams.
        gain_N = (
            2 * n * reading_weights(own_stream(init, n), READ_LEAN) if config.form == "near_identity" else jnp.ones(n)
        )
        gate = constant(gain_N[:, None] - 1)
        self.gate_scale = init("gate_scale", gate, n, width, role="vector", axes=("stream", "features"))
        into, out = ("coefficient", "streams"), ("streams", "coefficient")
        self.down = init("down", normal(0.02), config.rank, channels, role="mixing", axes=into)
        self.up = init("up", zeros, channels, config.rank, role="mixing", axes=out)
        self.inject = init("inject", zeros, n, channels, role="mixing", axes=into)

    def pre(self, state, scope):
        leaves = (self.gate_scale, self.down, self.up, self.inject)
        scale_ND, down_RM, up_MR, inject_NM = (leaf[...].astype(self.policy.accumulate) for leaf in leaves)
        u_BTD, x = hyper.stream_gate(state, scale_ND, down_RM, up_MR, eps=self.config.norm_eps)
        logits_BTN = streams.project(x, inject_NM) / self.config.streams
        return u_BTD, scope.tap("h_post", 2 * jax.nn.sigmoid(logits_BTN))

    def post(self, state, y, ctx, scope):
        return (state + streams.write(y, ctx)).astype(state.dtype)
