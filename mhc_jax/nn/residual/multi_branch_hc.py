"""Hyper-connections around several runs of one branch, each with its own read."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant
from mhc_jax.nn.residual.alpha_beta import AlphaBeta
from mhc_jax.nn.residual.mhc import StreamsConfig
from mhc_jax.ops import streams
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "multi_branch_hc")
@dataclasses.dataclass(frozen=True)
class MultiBranchHCConfig(StreamsConfig):
    """Hyper-connections with several branch inputs (lucidrains and tokenbender, multi-branch file).

    Attributes:
        streams: number of parallel streams S.
        branches: number of runs of the branch per site.
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


class MultiBranchHC(AlphaBeta):
    """S streams. Row s of ``alpha`` has the weights of stream s in the I reads and in the S mixed streams."""

    def __init__(self, config: MultiBranchHCConfig, width: int, policy: Policy, init: Init):
        S, I = config.streams, config.branches
        self.policy, self.branches = policy, I
        write = 1 / I if config.write_init == "mean" else 1.0
        alpha, axes = constant(_initial_alpha(config, init)), ("stream", "coefficient")
        self.static_alpha = init("static_alpha", alpha, S, I + S, role="vector", axes=axes)
        self.static_beta = init("static_beta", constant(write), S, I, role="vector", axes=axes)
        self.add_dynamic_part(init, width, I + S, (I,), rms=True)

    def pre(self, state, scope):
        dtype, I = self.policy.accumulate, self.branches
        static_alpha, static_beta = (leaf[...].astype(dtype) for leaf in (self.static_alpha, self.static_beta))
        alpha, beta = self.dynamic(state, static_alpha, static_beta, tanh=True)
        from_stream = jnp.swapaxes(alpha, -1, -2)
        reads = streams.mix(state, scope.tap("h_pre", from_stream[..., :I, :]))
        u = jnp.moveaxis(reads.stack(), -2, 0) if I > 1 else reads.total()
        return u, (scope.tap("h_post", jnp.swapaxes(beta, -1, -2)), scope.tap("h_res", from_stream[..., I:, :]))

    def post(self, state, y, ctx, scope):
        post_IS, res_SS = ctx
        runs = y if self.branches > 1 else [y]
        after = streams.mix(state, res_SS)
        for i, run in enumerate(runs):
            after += streams.write(run, post_IS[..., i, :])
        return after.astype(state.dtype)


def _initial_alpha(config: MultiBranchHCConfig, init: Init) -> jax.Array:
    """Branch i reads only stream -(i + offset) mod S; the offset differs by site."""
    S, I = config.streams, config.branches
    offset = jnp.asarray(init.index) % (S * I) * I
    place = jnp.arange(S)[:, None] + jnp.arange(I) + offset
    return jnp.concatenate([place % S == 0, jnp.eye(S)], axis=1)
