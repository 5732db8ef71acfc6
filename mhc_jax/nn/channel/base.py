"""The contract of a channel mixer, which transforms each token separately."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.scope import Scope
from mhc_jax.precision import Policy
from mhc_jax.registry import required


class ChannelMixer(nnx.Module):
    """Maps (B, T, D) to (B, T, D), position by position.

    Attributes:
        views: inputs it takes; see :class:`mhc_jax.nn.mixers.base.Mixer`.
    """

    views: int = 1

    @required
    def __call__(self, u_BTD: jax.Array, scope: Scope) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class ChannelMixerConfig(Config):
    """Base of all channel-mixer configurations."""

    axis: ClassVar[str] = "channel"

    @required
    def build(self, width: int, policy: Policy, init: Init) -> ChannelMixer: ...
