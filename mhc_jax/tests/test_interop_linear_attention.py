"""Checkpoints of gated linear attention and of Gated DeltaNet: names, fields both ways, and what cannot be said."""

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import interop
from mhc_jax.interop import InteropError
from mhc_jax.models import gated_deltanet, gla
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.norms import LayerNormConfig

SMALL = {"vocab_size": 11, "width": 16, "layers": 2, "mlp": SwiGLUConfig(hidden=6, scale_output=False)}


def small(model, size, **mixer):
    config = model(size, **SMALL)
    return config.replace(mixer=config.mixer.replace(**mixer))


GLA = small(gla, "170M", heads=2, gate_rank=3)
DELTA = small(gated_deltanet, "170M", heads=2, head_width=3, expand_v=4 / 3)
# The model, what a checkpoint does not show, and tensors that it has or has not.
CASES = {
    "gla": ("gla", GLA, {}, {"g_norm_swish_gate.weight", "gk_proj.0.weight", "gk_proj.1.bias"}, {"q_conv1d.weight"}),
    "gla, all else": (
        "gla",
        small(
            gla, "170M_baseline_shortconv", heads=4, kv_heads=2, output_gate=None, gate_floor=-1.0, feature_map="relu"
        ),
        {"clamp_min": -1.0, "feature_map": "relu"},
        {"g_norm.weight", "k_conv1d.weight"},
        {"g_norm_swish_gate.weight", "g_proj.weight"},
    ),
    "gated_deltanet": (
        "gated_deltanet",
        DELTA,
        {},
        {"A_log", "dt_bias", "o_norm.weight", "a_proj.weight", "b_proj.weight", "v_conv1d.weight", "o_proj.weight"},
        set(),
    ),
    "gated_deltanet, all else": (
        "gated_deltanet",
        small(gated_deltanet, "170M_baseline", heads=2, value_heads=4, head_width=3, output_gate=None, expand_v=1.0),
        {"num_heads": 2, "allow_neg_eigval": True},
        {"A_log"},
        {"q_conv1d.weight", "g_proj.weight"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_comes_back(name):
    system, config, hints, there, missing = CASES[name]
    params = mhc_jax.init(config, jax.random.key(0))
    tensors = interop.to_original(system, config, params)
    inside = {key.removeprefix("model.layers.1.attn.") for key in tensors if ".layers.1.attn." in key}
    assert there <= inside
    assert not missing & inside
    assert {"model.embeddings.weight", "model.norm.weight", "lm_head.weight"} <= tensors.keys()
    assert {"model.layers.0.attn_norm.weight", "model.layers.0.mlp_norm.weight"} <= tensors.keys()
    for stored in (tensors, {"model": tensors, "config": {"architectures": ["X"]}}):
        found, read = interop.from_original(system, stored, **hints)
        assert found == config
        jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize(
    ("config", "hints", "fault"),
    [
        (GLA, {"num_heads": 4}, "gla: num_heads=4 contradicts the tensors, which say 2"),
        (GLA, {"hidden_act": "relu"}, "gla: hidden_act='relu' is not supported, only 'swish' is"),
        (GLA, {"feature_map": "elu"}, "feature_map must be one of 'none', 'relu', 'silu', got 'elu'"),
        (DELTA, {"allow_neg_eigval": 1}, "gated_deltanet: allow_neg_eigval must be true or false, got 1"),
        (DELTA, {"num_heads": 5}, "6 channels of keys are no multiple of num_heads 5"),
        (DELTA, {"num_heads": "2"}, "num_heads must be a positive integer, got '2'"),
        (DELTA, {"head_dimm": 3}, "unknown hint 'head_dimm'; did you mean 'head_dim'"),
    ],
)
def test_hints_must_fit(config, hints, fault):
    system = "gla" if config is GLA else "gated_deltanet"
    tensors = interop.to_original(system, config, mhc_jax.init(config, jax.random.key(0)))
    with pytest.raises(InteropError, match=fault):
        interop.from_original(system, tensors, **hints)


def test_what_cannot_be_expressed_is_named():
    params = mhc_jax.init(GLA, jax.random.key(0))
    for config, fault in (
        (GLA.replace(norm=LayerNormConfig()), "norm 'ln'"),
        (GLA.replace(mixer=GLA.mixer.replace(gate_normalizer=8.0)), "gate_normalizer other than 16"),
        (GLA.replace(mixer=GLA.mixer.replace(norm_eps=1e-3)), "norms of two epsilons"),
        (DELTA, "mixer 'gated_delta'"),
    ):
        with pytest.raises(InteropError, match=f"gla cannot express this model: it has .*{fault}"):
            interop.to_original("gla", config, params)
