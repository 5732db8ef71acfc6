"""The two-layer perceptron of GPT-2."""

import dataclasses
from typing import Literal

import jax

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("channel", "gelu_mlp")
@dataclasses.dataclass(frozen=True)
class GeluMLPConfig(ChannelMixerConfig):
    """``down(GELU(up(x)))``.

    Attributes:
        hidden: its width in between; 0 for four times the model's.
        activation: ``"erf"`` is the exact GELU (nanoGPT), ``"tanh"`` its approximation (GPT-2, ``gelu_new``).
        bias: whether the two layers have biases.
        init_std: standard deviation of both matrices.
        scale_output: divide that of ``down`` by the square root of the number of sites, as in GPT-2.
    """

    hidden: int = 0
    activation: Literal["erf", "tanh"] = "erf"
    bias: bool = True
    init_std: float = 0.02
    scale_output: bool = True

    def validate(self):
        super().validate()
        self.require_not_negative("hidden")
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")

    def build(self, width, policy, init):
        return GeluMLP(self, width, policy, init)


class GeluMLP(ChannelMixer):
    """See :class:`GeluMLPConfig`."""

    def __init__(self, config: GeluMLPConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy = config, policy
        hidden, bias = config.hidden or 4 * width, zeros if config.bias else False
        drawn = normal(config.init_std)
        scaled = normal(config.init_std * (init.sites**-0.5 if config.scale_output else 1))
        self.up_proj = Dense(width, hidden, init / "up_proj", ("embed", "mlp"), kernel=drawn, bias=bias)
        self.down_proj = Dense(hidden, width, init / "down_proj", ("mlp", "embed"), kernel=scaled, bias=bias)

    def __call__(self, u_BTD, scope):
        hidden = self.up_proj(u_BTD.astype(self.policy.compute))
        return self.down_proj(scope.tap("hidden", jax.nn.gelu(hidden, approximate=self.config.activation == "tanh")))
