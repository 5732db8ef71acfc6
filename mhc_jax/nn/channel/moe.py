"""A mixture of gated perceptrons."""

import dataclasses

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.channel.swiglu import SwiGLUConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import Dense
from mhc_jax.ops import experts, routing
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("channel", "moe")
@dataclasses.dataclass(frozen=True)
class MoEConfig(ChannelMixerConfig):
    """Each token visits the ``top_k`` experts, gated perceptrons, that a router likes most, weighted by their softmax.

    Attributes:
        experts: number of experts.
        top_k: experts of a token.
        balance: weight of the auxiliary loss on experts that are visited unequally
            (:func:`mhc_jax.ops.routing.load_balance`).
        hidden: width of an expert; None for that of :class:`~mhc_jax.nn.channel.swiglu.SwiGLUConfig`.
        init_std: standard deviation of all matrices.
        scale_output: divide that of the last ones by the square root of the number of sites, as in GPT-2.
    """

    experts: int = 8
    top_k: int = 2
    balance: float = 0.01
    hidden: int | None = None
    init_std: float = 0.02
    scale_output: bool = True

    def validate(self):
        super().validate()
        self.require_counts(1, "top_k")
        self.require_counts(1, "experts")
        self.require(self.top_k <= self.experts, f"top_k {self.top_k} is more than the {self.experts} experts")
        self.require_not_negative("balance")
        if self.hidden is not None:
            self.require_counts(1, "hidden")
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")

    def small(self):
        return self.replace(experts=3, hidden=7)

    def build(self, width, policy, init):
        return MoE(self, width, policy, init)


class MoE(ChannelMixer):
    """See :class:`MoEConfig`."""

    def __init__(self, config: MoEConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy = config, policy
        count, std = config.experts, config.init_std
        hidden = SwiGLUConfig(hidden=config.hidden).hidden_width(width)
        self.router = Dense(width, count, init / "router", ("embed", "expert"), kernel=normal(std), bias=False)
        last = std * (init.sites**-0.5 if config.scale_output else 1)
        self.gate_proj, self.up_proj, self.down_proj = (
            init(name, normal(s), count, *shape, role="kernel", axes=("expert", *axes), uses=config.top_k / count)
            for name, s, shape, axes in (
                ("gate_proj", std, (width, hidden), ("embed", "mlp")),
                ("up_proj", std, (width, hidden), ("embed", "mlp")),
                ("down_proj", last, (hidden, width), ("mlp", "embed")),
            )
        )

    def __call__(self, u_BTD, scope):
        config, compute = self.config, self.policy.compute
        logits_BTE = self.router(u_BTD.astype(self.policy.accumulate))
        weight_BTE = scope.tap("weights", routing.top_k_softmax(logits_BTE, k=config.top_k))
        scope.penalise("expert_balance", config.balance * routing.load_balance(logits_BTE, weight_BTE))
        gate, up, down = (leaf[...].astype(compute) for leaf in (self.gate_proj, self.up_proj, self.down_proj))
        return experts.swiglu_experts(u_BTD.astype(compute), weight_BTE, gate, up, down, k=config.top_k)
