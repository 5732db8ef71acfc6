"""A norm from outside: it agrees with its twin wherever a model has a norm, and a wrong twin does not."""

import sys
from pathlib import Path

import pytest

from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.nn.mixers import AttentionConfig
from parity_tests.cases.models import forward, gradients
from parity_tests.compare import failures, judge
from parity_tests.systems import System
from parity_tests.systems.gpt import tiny_gpt

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def norm():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import dynamic_tanh
        import dynamic_tanh_torch  # noqa: F401  registers the twin

        yield dynamic_tanh.DynamicTanhConfig()
    for name in ("dynamic_tanh", "dynamic_tanh_torch"):
        sys.modules.pop(name)
    registry._REGISTRY["norm"].pop("dynamic_tanh")


@pytest.fixture(scope="module")
def system(norm):
    """Every place of a norm: branches, adapters, queries and keys, and the output."""
    mixer = AttentionConfig(heads=2, qk_norm=norm.replace(alpha=0.7))
    config = tiny_gpt("mhc_ssm_adapters", norm=norm, mixer=mixer)
    return System("dynamic tanh", config.replace(adapters=config.adapters.replace(rank=3)))


@pytest.mark.slow
def test_it_agrees_with_its_twin_in_every_place(system):
    found = judge(gradients(system, dtypes=("float32",)))
    assert not failures(found)
    learned = {row.tap.removeprefix("gradient ") for row in found if row.tap.endswith(".alpha")}
    places = ("mixer.norm", "mixer.branch.q_norm", "mixer.branch.k_norm", "mlp.norm", "mixer.residual.norm")
    assert learned >= {"final_norm.alpha", *(f"blocks.0.{place}.alpha" for place in places)}


@pytest.mark.slow
def test_a_wrong_twin_is_found(system, monkeypatch):
    import dynamic_tanh_torch

    monkeypatch.setattr(dynamic_tanh_torch.torch, "tanh", lambda x: x)
    assert failures(judge(forward(system)))


def test_a_slope_of_zero_is_refused(norm):
    with pytest.raises(ConfigError, match="alpha must be positive, got 0.0"):
        norm.replace(alpha=0.0).validate()
