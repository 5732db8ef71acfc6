"""A channel mixer from outside, with an auxiliary loss: squared ReLU (Primer, arXiv 2109.08668), kept sparse."""

import dataclasses

import jax
import jax.numpy as jnp

import configs
from mhc_jax.nn.channel import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.init import normal
from mhc_jax.nn.layers import Dense
from mhc_jax.registry import register
from train.config import RunConfig


@register("channel", "squared_relu")
@dataclasses.dataclass(frozen=True)
class SquaredReLUConfig(ChannelMixerConfig):
    """``down(relu(up(x))^2)`` with a hidden layer four times as wide.

    Attributes:
        activity: weight of the mean activation in the training loss.
    """

    activity: float = 1e-3

    def build(self, width, policy, init):
        return SquaredReLU(self, width, policy, init)


class SquaredReLU(ChannelMixer):
    def __init__(self, config, width, policy, init):
        self.config, self.policy = config, policy
        up, down = normal(0.02), normal(0.02 * init.sites**-0.5)
        self.up = Dense(width, 4 * width, init / "up", ("embed", "mlp"), kernel=up, bias=False)
        self.down = Dense(4 * width, width, init / "down", ("mlp", "embed"), kernel=down, bias=False)

    def __call__(self, u_BTD, scope):
        hidden = jnp.square(jax.nn.relu(self.up(u_BTD.astype(self.policy.compute))))
        scope.penalise("activity", self.config.activity * jnp.mean(hidden, dtype=self.policy.accumulate))
        return self.down(scope.tap("hidden", hidden))


@register("config", "squared_relu")
def squared_relu() -> RunConfig:
    """The quick start with a squared ReLU in every block."""
    run = configs.load("quickstart")
    return run.replace(name="squared_relu", model=run.model.replace(mlp=SquaredReLUConfig()))
