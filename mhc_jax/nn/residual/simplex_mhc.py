"""Static mHC of mHC-SSM: simplex reading and writing weights, Sinkhorn residual mixing."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, normal
from mhc_jax.nn.residual.base import Residual, ResidualConfig
from mhc_jax.nn.taps import no_tap
from mhc_jax.ops import sinkhorn, streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "simplex_mhc")
@dataclasses.dataclass(frozen=True)
class SimplexMHCConfig(ResidualConfig):
    """One learned H_pre, H_post (on the simplex) and H_res (doubly stochastic) per site, equal for all tokens.

    The defaults are the repaired form; the original is ``projection="sinkhorn", unit_writes=False,
    diagonal_bias=0, read_bias=0``: its H_res is about 1/n everywhere, so the first block averages the
    streams away, and its writes are divided by n.

    Attributes:
        streams: number of parallel streams n. With one stream the site is the plain residual.
        sinkhorn_iters: pairs of half-steps, rows then columns.
        sinkhorn_temp: divides the residual logits.
        projection: ``"log_sinkhorn"`` cannot under- or overflow; ``"sinkhorn"`` is the original's
            exponential form (there 0 iterations are allowed, and leave H_res unnormalised).
        unit_writes: multiply the writing simplex by n, so that the mean stream gains the whole branch.
        diagonal_bias: initial extra logit of the diagonal of H_res; 4 puts 0.95 there for n = 4.
        read_bias: initial extra reading logit of stream (layer mod n), which lets the streams separate.
    """

    streams: int = 4
    sinkhorn_iters: int = 8
    sinkhorn_temp: float = 1.0
    projection: Literal["log_sinkhorn", "sinkhorn"] = "log_sinkhorn"
    unit_writes: bool = True
    diagonal_bias: float = 4.0
    read_bias: float = 1.0

    @property
    def stream_count(self):
        return self.streams

    def validate(self):
        super().validate()
        self.require(self.streams >= 1, f"streams must be at least 1, got {self.streams}")
        self.require(self.sinkhorn_temp > 0, f"sinkhorn_temp must be positive, got {self.sinkhorn_temp}")
        least = 1 if self.projection == "log_sinkhorn" else 0
        self.require(
            self.sinkhorn_iters >= least,
            f"sinkhorn_iters must be at least {least} with projection {self.projection!r}, got {self.sinkhorn_iters}",
        )

    def build(self, width, policy, init):
        return SimplexMHC(self, policy, init)


class SimplexMHC(Residual):
    """State (B, T, N, D), in the accumulation dtype of the policy.

    ``u = sum_i softmax(pre)_i X_i``; ``X'_i = sum_j H[i, j] X_j + w_i Y_i`` with ``w = softmax(post)``
    (times n with unit writes) and H the Sinkhorn projection of the residual logits.
    """

    def __init__(self, config: SimplexMHCConfig, policy: Policy, init: Init):
        n = config.streams
        self.config, self.policy = config, policy
        own_stream = jax.nn.one_hot(jnp.asarray(init.index) % n, n)
        self.pre_logits = init("pre_logits", constant(config.read_bias * own_stream), n)
        self.post_logits = init("post_logits", constant(0.0), n)
        self.res_logits = init(
            "res_logits", lambda key, shape: normal(0.02)(key, shape) + config.diagonal_bias * jnp.eye(n), n, n
        )

    def weights(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """H_pre (N,), H_post (N,) and H_res (N, N) as they act; row i of H_res feeds stream i."""
        config, dtype = self.config, self.policy.accumulate
        pre_N = jax.nn.softmax(self.pre_logits[...].astype(dtype))
        post_N = jax.nn.softmax(self.post_logits[...].astype(dtype))
        if config.unit_writes:
            post_N = config.streams * post_N
        project = sinkhorn.log_sinkhorn if config.projection == "log_sinkhorn" else sinkhorn.sinkhorn_rows_then_columns
        res_NN = project(
            self.res_logits[...].astype(dtype), iters=config.sinkhorn_iters, temperature=config.sinkhorn_temp
        )
        return pre_N, post_N, res_NN

    def pre(self, state, *, key=None, tap=no_tap):
        pre_N, post_N, res_NN = self.weights()
        u_BTD = streams.read(state, tap("h_pre", pre_N))
        return u_BTD, (tap("h_post", post_N), tap("h_res", res_NN))

    def post(self, state, y, ctx, *, key=None, tap=no_tap):
        post_N, res_NN = ctx
        written = streams.write(y.astype(state.dtype), post_N, per_stream=y.ndim == state.ndim)
        return streams.mix(state, res_NN) + written
