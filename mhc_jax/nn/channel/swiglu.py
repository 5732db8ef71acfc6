"""The gated perceptron of LLaMA."""

import dataclasses

import jax

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import Dense
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("channel", "swiglu")
@dataclasses.dataclass(frozen=True)
class SwiGLUConfig(ChannelMixerConfig):
    """``down(SiLU(gate(x)) * up(x))`` (Shazeer, arXiv 2002.05202; LLaMA), without biases.

    Attributes:
        hidden: its width in between; None for 8/3 of the model's, rounded up to a multiple of 8: about as many
            parameters as a perceptron of four times the width.
        init_std: standard deviation of all three matrices.
        scale_output: divide that of ``down`` by the square root of the number of sites, as in GPT-2.
    """

    hidden: int | None = None
    init_std: float = 0.02
    scale_output: bool = True

    def validate(self):
        super().validate()
        if self.hidden is not None:
            self.require_counts(1, "hidden")
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")

    def small(self):
        return self.replace(hidden=7)

    def hidden_width(self, width: int) -> int:
        """Width in between, in a model of that width."""
        return self.hidden or -(-8 * width // 24) * 8

    def build(self, width, policy, init):
        return SwiGLU(self, width, policy, init)


class SwiGLU(ChannelMixer):
    """See :class:`SwiGLUConfig`."""

    def __init__(self, config: SwiGLUConfig, width: int, policy: Policy, init: Init):
        self.policy = policy
        hidden, std = config.hidden_width(width), config.init_std
        last = normal(std * init.sites**-0.5 if config.scale_output else std)
        self.gate_proj, self.up_proj = (
            Dense(width, hidden, init / name, ("embed", "mlp"), kernel=normal(std), bias=False)
            for name in ("gate_proj", "up_proj")
        )
        self.down_proj = Dense(hidden, width, init / "down_proj", ("mlp", "embed"), kernel=last, bias=False)

    def __call__(self, u_BTD, scope):
        u_BTD = u_BTD.astype(self.policy.compute)
        hidden = jax.nn.silu(self.gate_proj(u_BTD)) * self.up_proj(u_BTD)
        return self.down_proj(scope.tap("hidden", hidden))
