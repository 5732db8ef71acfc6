"""Checkpoints of Mamba: names and fields both ways, and what cannot be said is refused by name."""

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import interop
from mhc_jax.interop import InteropError
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig

CONFIG = LMConfig(
    vocab_size=11,
    max_len=2048,
    width=6,
    layers=2,
    positions="none",
    embed_std=0.1,
    norm=RMSNormConfig(eps=1e-5),
    mixer=SelectiveSSMConfig(state=3),
    mlp=None,
)


@pytest.fixture(scope="module")
def params():
    return mhc_jax.init(CONFIG, jax.random.key(0))


def test_a_folder_comes_back(tmp_path, params):
    interop.save_huggingface(tmp_path / "folder", CONFIG, params)
    config, read = interop.load_huggingface(tmp_path / "folder")
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize(
    ("hints", "fault"),
    [
        ({"state_size": 4}, "state_size=4 contradicts the tensors, which say 3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"state_sise": 3}, "unknown hint 'state_sise'; did you mean 'state_size'"),
    ],
)
def test_hints_must_fit(hints, fault, params):
    with pytest.raises(InteropError, match=fault):
        interop.from_original("mamba", interop.to_original("mamba", CONFIG, params), **hints)


def test_a_rank_left_to_the_class_is_that_of_the_tensors(params):
    tensors = interop.to_original("mamba", CONFIG, params)
    config, _ = interop.from_original("mamba", {"model": tensors, "config": {"time_step_rank": "auto"}})
    assert config == CONFIG


def test_channels_are_a_multiple_of_the_width(params):
    tensors = interop.to_original("mamba", CONFIG, params)
    cut = {name: x[:-1] if name.endswith("A_log") else x for name, x in tensors.items()}
    with pytest.raises(InteropError, match="11 channels are no multiple of the width 6"):
        interop.from_original("mamba", cut)


def test_tensors_that_are_missing_or_strange_are_listed(params):
    tensors = interop.to_original("mamba", CONFIG, params)
    tensors["backbone.layers.1.mixer.E"] = tensors.pop("backbone.layers.1.mixer.D")
    with pytest.raises(InteropError, match=r"layers\.1\.mixer\.D.*layers\.1\.mixer\.E"):
        interop.from_original("mamba", tensors)


def test_what_mamba_cannot_express_is_named(params):
    with pytest.raises(InteropError, match="Mamba cannot express this model: it has norm 'ln'"):
        interop.to_original("mamba", CONFIG.replace(norm=LayerNormConfig()), params)
