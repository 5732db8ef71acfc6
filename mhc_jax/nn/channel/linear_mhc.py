"""The mHC layer of RLM-mHC: one linear map, in parallel flows that a projected matrix mixes."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.projections import ClippedSinkhornConfig, ProjectionConfig
from mhc_jax.nn.stack import Prepared, Preparing
from mhc_jax.ops import linear_mhc
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("channel", "linear_mhc")
@dataclasses.dataclass(frozen=True)
class LinearMHCConfig(ChannelMixerConfig):
    """``contract(mix(expand(x)))``: flows are made of a token, mixed by one matrix and contracted again.

    Nothing in it is nonlinear and no flow outlives it, so it is one D x D map, whose rank and function class are those
    of :class:`~mhc_jax.nn.channel.linear.LinearConfig` at 2n times its parameters.

    Attributes:
        flows: number n of flows.
        projection: from the n x n logits to the mixing matrix.
        init_std: standard deviation of both matrices; the logits start at 0, where the flows are averaged.
        form: ``"flows"`` computes as written, 2 n D^2 products for a token; ``"folded"`` first makes the D x D map, by
            n D^3 products, and then takes D^2 for a token; ``"auto"`` is the cheaper of the two for the tokens of a
            call. All are equal up to rounding.
    """

    flows: int = 4
    projection: ProjectionConfig = ClippedSinkhornConfig()
    init_std: float = 0.02
    form: Literal["auto", "flows", "folded"] = "auto"

    def validate(self):
        super().validate()
        self.require_counts(1, "flows")
        self.projection.check(self.flows)
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")

    def small(self):
        return self.replace(flows=2)

    def folds(self, tokens: int, width: int) -> bool:
        """Whether a call over that many tokens makes the D x D map."""
        if self.form != "auto":
            return self.form == "folded"
        return tokens * (2 * self.flows - 1) > self.flows * width

    def build(self, width, policy, init):
        return LinearMHC(self, width, policy, init)


class LinearMHC(ChannelMixer, Preparing):
    """See :class:`LinearMHCConfig`."""

    mixing_NN: Prepared | None = None

    def __init__(self, config: LinearMHCConfig, width: int, policy: Policy, init: Init):
        n, projection = config.flows, config.projection
        self.config, self.policy = config, policy
        # Folded, a token passes through one matrix of D^2 numbers instead of 2 n D^2.
        uses, draw = 1.0 if config.form == "flows" else 1 / (2 * n), normal(config.init_std)
        self.expand = Dense(width, n * width, init / "expand", ("embed", "inner"), kernel=draw, bias=False, uses=uses)
        self.contract = Dense(
            n * width, width, init / "contract", ("inner", "embed"), kernel=draw, bias=False, uses=uses
        )
        shape = projection.shape(n)
        axes = ("coefficient",) * len(shape)
        self.logits = init("logits", zeros, *shape, role="mixing", axes=axes) if projection.size(n) else None

    def prepare(self):
        return {"mixing_NN": self._mixing()}

    def _mixing(self) -> jax.Array:
        n, projection, dtype = self.config.flows, self.config.projection, self.policy.accumulate
        logits = jnp.zeros(projection.shape(n)) if self.logits is None else self.logits[...]
        return projection.project(logits.astype(dtype), n)

    def __call__(self, u_BTD, scope):
        u_BTD = u_BTD.astype(self.policy.compute)
        mixing_NN = self._mixing() if self.mixing_NN is None else self.mixing_NN[...]
        mixing_NN = scope.tap("mixing", mixing_NN)
        expand, contract = self.expand.kernel[...], self.contract.kernel[...]
        B, T, D = u_BTD.shape
        run = linear_mhc.folded if self.config.folds(B * T, D) else linear_mhc.flows
        return run(u_BTD, expand, contract, mixing_NN)
