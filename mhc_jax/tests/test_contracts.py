"""A part from outside that lacks a method is told which, of which class, and where it is described."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

import mhc_jax
from mhc_jax import decode
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.mixers import Mixer, MixerConfig
from mhc_jax.nn.residual import ResidualConfig
from mhc_jax.nn.scope import Scope


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


class Misshapen(Mixer):
    """Adds each token to a sum; unless it is to give an output or a state of another shape."""

    def __init__(self, config):
        self.fault = config.fault

    def init_state(self, batch, max_len):
        return {"sum": jnp.zeros((batch, 4))}

    def __call__(self, u_BTD, state, scope):
        if self.fault == "output":
            return u_BTD[..., :3], state
        if state is None or self.fault == "none":
            return u_BTD, None
        total = state["sum"] + u_BTD.sum(1)
        return u_BTD, {"sum": total[..., :2] if self.fault == "state" else total}


@dataclasses.dataclass(frozen=True)
class MisshapenConfig(MixerConfig):
    fault: str = ""

    def build(self, width, policy, init):
        return Misshapen(self)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("output", r"output of shape \(1, 2, 4\), not \(1, 2, 3\)"),
        ("state", r"the one it was given, {'sum': 'float32 \(1, 4\)'}, not {'sum': 'float32 \(1, 2\)'}"),
        ("none", "the one it was given, {.*}, not None"),
    ],
)
def test_a_mixer_of_another_shape_is_named(fault, says):
    def extended(mixer):
        model = mhc_ssm("baseline", vocab_size=5, max_len=4, width=4, layers=1).replace(mixer=mixer)
        params = mhc_jax.init(model, jax.random.key(0))
        cache = decode.init_cache(model, params, 1)
        return jax.eval_shape(functools.partial(decode.extend, model), params, jnp.zeros((1, 2), jnp.int32), cache)

    extended(MisshapenConfig())
    with pytest.raises(ConfigError, match=rf"test_contracts\.Misshapen must .*{says}"):
        extended(MisshapenConfig(fault))


def test_a_penalty_is_a_scalar():
    scope = Scope.over(2)
    scope.penalise("activity", jnp.ones(()))
    with pytest.raises(ConfigError, match=r"penalty 'activity' has shape \(2, 3\); it must be a scalar"):
        scope.penalise("activity", jnp.ones((2, 3)))


def test_a_missing_property_is_named():
    with missing(ResidualConfig, "stream_count", "mhc_jax.nn.residual.base.ResidualConfig"):
        _ = ResidualConfig().stream_count


def test_a_twin_without_a_method_is_told():
    from torch_ref.nn.mixers import Mixer as Twin

    with missing(Twin, "init_state", "torch_ref.nn.mixers.base.Mixer"):
        Twin().init_state(1, 4)
