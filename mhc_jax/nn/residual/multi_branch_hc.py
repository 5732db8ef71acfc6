"""Hyper-connections around several runs of one branch, each on a read of its own."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, zeros
from mhc_jax.nn.residual.base import Residual
from mhc_jax.nn.residual.mhc import StreamsConfig, UnitNorm
from mhc_jax.nn.taps import no_tap
from mhc_jax.ops import hyper, streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "multi_branch_hc")
@dataclasses.dataclass(frozen=True)
class MultiBranchHCConfig(StreamsConfig):
    """Hyper-connections with several branch inputs (lucidrains and tokenbender, multi-branch file).

    Attributes:
        streams: number of parallel streams S.
        branches: runs of the branch per site.
        write_init: ``"mean"`` starts with writes of 1/branches, as the plain residual; ``"published"`` with writes of
            1, so equal runs count ``branches`` times.
    """

    branches: int = 2
    write_init: Literal["mean", "published"] = "mean"

    def validate(self):
        super().validate()
        self.require(self.branches >= 1, f"branches must be at least 1, got {self.branches}")

    def build(self, width, policy, init):
        return MultiBranchHC(self, width, policy, init)


class MultiBranchHC(Residual):
    """State (B, T, S, D). Row s of ``alpha`` has the weights of stream s in the I reads and in the S mixed streams."""

    def __init__(self, config: MultiBranchHCConfig, width: int, policy: Policy, init: Init):
        S, I = config.streams, config.branches
        self.policy, self.branches = policy, I
        write = 1 / I if config.write_init == "mean" else 1.0
        self.static_alpha = init("static_alpha", constant(_initial_alpha(config, init)), S, I + S)
        self.dynamic_alpha_fn = init("dynamic_alpha_fn", zeros, width, I + S)
        self.dynamic_alpha_scale = init("dynamic_alpha_scale", constant(0.01))
        self.static_beta = init("static_beta", constant(write), S, I)
        self.dynamic_beta_fn = init("dynamic_beta_fn", zeros, width, I)
        self.dynamic_beta_scale = init("dynamic_beta_scale", constant(0.01))
        self.norm = UnitNorm(width, init / "norm")

    def pre(self, state, *, key=None, tap=no_tap):
        x_BTSD, dtype, I = self.norm(state), self.policy.accumulate, self.branches
        leaves = (self.dynamic_alpha_fn, self.dynamic_alpha_scale, self.static_alpha)
        alpha = hyper.dynamic_weights(x_BTSD, *(leaf[...].astype(dtype) for leaf in leaves), tanh=True)
        leaves = (self.dynamic_beta_fn, self.dynamic_beta_scale, self.static_beta)
        beta = hyper.dynamic_weights(x_BTSD, *(leaf[...].astype(dtype) for leaf in leaves), tanh=True)
        from_stream = jnp.swapaxes(alpha, -1, -2)
        reads = streams.mix(state, tap("h_pre", from_stream[..., :I, :]))
        u = jnp.moveaxis(reads, -2, 0) if I > 1 else reads[..., 0, :]
        return u, (tap("h_post", jnp.swapaxes(beta, -1, -2)), tap("h_res", from_stream[..., I:, :]))

    def post(self, state, y, ctx, *, key=None, tap=no_tap):
        post_IS, res_SS = ctx
        runs = y.astype(state.dtype) if self.branches > 1 else y.astype(state.dtype)[None]
        written = sum(
            streams.write(run, post_IS[..., i, :], per_stream=run.ndim == state.ndim) for i, run in enumerate(runs)
        )
        return streams.mix(state, res_SS) + written


def _initial_alpha(config: MultiBranchHCConfig, init: Init) -> jax.Array:
    """Branch i reads stream -(i + offset) mod S alone; the offset differs by site."""
    S, I = config.streams, config.branches
    offset = jnp.asarray(init.index) % (S * I) * I
    place = jnp.arange(S)[:, None] + jnp.arange(I) + offset
    return jnp.concatenate([place % S == 0, jnp.eye(S)], axis=1)
