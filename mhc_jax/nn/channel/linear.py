"""One linear map."""

import dataclasses

from mhc_jax.nn.channel.base import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import Dense
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("channel", "linear")
@dataclasses.dataclass(frozen=True)
class LinearConfig(ChannelMixerConfig):
    """``W x``, without a bias: what a linear mHC layer becomes in :func:`mhc_jax.models.rlm.fold`.

    Attributes:
        init_std: standard deviation of the matrix.
    """

    init_std: float = 0.02

    def validate(self):
        super().validate()
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")

    def build(self, width, policy, init):
        return Linear(self, width, policy, init)


class Linear(ChannelMixer):
    """See :class:`LinearConfig`."""

    def __init__(self, config: LinearConfig, width: int, policy: Policy, init: Init):
        self.policy = policy
        self.proj = Dense(width, width, init / "proj", ("embed", "inner"), kernel=normal(config.init_std), bias=False)

    def __call__(self, u_BTD, scope):
        return self.proj(u_BTD.astype(self.policy.compute))
