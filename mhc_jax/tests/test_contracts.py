"""A part from outside that lacks a method is told which, of which class, and where it is described."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import mhc_jax
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.mixers import Mixer, MixerConfig
from mhc_jax.nn.residual import ResidualConfig


class Silent(Mixer):
    def __init__(self, init):
        self.gain = init("gain", lambda key, shape: jnp.ones(shape))


@dataclasses.dataclass(frozen=True)
class SilentConfig(MixerConfig):
    def build(self, width, policy, init):
        return Silent(init)


@dataclasses.dataclass(frozen=True)
class UnbuiltConfig(MixerConfig):
    pass


def missing(part, method, contract):
    line = f"{part.__module__}.{part.__qualname__} must define {method}; see {contract}.{method}"
    return pytest.raises(NotImplementedError, match=rf"^{re.escape(line)}\b")


def test_a_missing_method_is_named():
    config = mhc_ssm("baseline", vocab_size=5, max_len=4, width=4, layers=1).replace(mixer=SilentConfig())
    params = mhc_jax.init(config, jax.random.key(0))
    with missing(Silent, "__call__", "mhc_jax.nn.mixers.base.Mixer"):
        mhc_jax.apply(config, params, [[1, 2]])
    with missing(Silent, "init_state", "mhc_jax.nn.mixers.base.Mixer"):
        mhc_jax.generate(config, params, [[1, 2]], temperature=0.0)
    with missing(UnbuiltConfig, "build", "mhc_jax.nn.mixers.base.MixerConfig"):
        mhc_jax.init(config.replace(mixer=UnbuiltConfig()), jax.random.key(0))


def test_a_missing_property_is_named():
    with missing(ResidualConfig, "stream_count", "mhc_jax.nn.residual.base.ResidualConfig"):
        _ = ResidualConfig().stream_count


def test_a_twin_without_a_method_is_told():
    from torch_ref.nn.mixers import Mixer as Twin

    with missing(Twin, "init_state", "torch_ref.nn.mixers.base.Mixer"):
        Twin().init_state(1, 4)
