"""Checkpoints of gated linear attention and of Gated DeltaNet: names, fields both ways, and what cannot be said."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mhc_jax
from mhc_jax import interop
from mhc_jax.interop import InteropError
from mhc_jax.interop.huggingface import native_type
from mhc_jax.models import gated_deltanet, gla
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.tests.own import slow_unless

SMALL = {"vocab_size": 11, "width": 16, "layers": 2, "mlp": SwiGLUConfig(hidden=6, scale_output=False)}


def small(model, size, **mixer):
    config = model(size, **SMALL)
    return config.replace(mixer=config.mixer.replace(**mixer))


GLA = small(gla, "170M", heads=2)
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
    "gated_deltanet, sigmoid": (
        "gated_deltanet",
        small(gated_deltanet, "170M_fixed", heads=2, head_width=3, output_gate="sigmoid"),
        {"output_gate_activation": "sigmoid"},
        {"g_proj.weight"},
        set(),
    ),
}


@pytest.mark.parametrize("name", slow_unless({"gla", "gated_deltanet"}, CASES))
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
        (DELTA, {"output_gate_activation": "tanh"}, "output_gate must be one of 'silu', 'sigmoid'.*, got 'tanh'"),
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
        (GLA.replace(mixer=GLA.mixer.replace(gate_rank=8)), "gate_rank other than 16"),
        (GLA.replace(mixer=GLA.mixer.replace(norm_eps=1e-3)), "norms of two epsilons"),
        (DELTA, "mixer 'gated_delta'"),
    ):
        with pytest.raises(InteropError, match=f"gla cannot express this model: it has .*{fault}"):
            interop.to_original("gla", config, params)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every case as a folder of flash-linear-attention."""
    place = tmp_path_factory.mktemp("folders")
    for name, (_, config, *_) in CASES.items():
        interop.save_huggingface(place / name, config, mhc_jax.init(config, jax.random.key(0)))
    return place


@pytest.mark.parametrize("name", CASES)
def test_a_folder_comes_back(name, folders):
    system, config, *_ = CASES[name]
    found, read = interop.load_huggingface(folders / name)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, read, mhc_jax.init(config, jax.random.key(0)))
    written = json.loads((folders / name / "config.json").read_text())
    assert written["model_type"] == system
    assert ("lm_head.weight" in load_file(folders / name / "model.safetensors")) == (config.head == "dense")


@pytest.mark.slow
def test_the_package_which_cuts_products_finds_the_same_widths(tmp_path):
    """49 times 1 / 49 is below 1."""
    for config, factor, width in (
        (GLA.replace(width=49, mixer=GLA.mixer.replace(heads=1, expand_k=1 / 49)), "expand_k", "hidden_size"),
        (DELTA.replace(mixer=DELTA.mixer.replace(head_width=49, expand_v=1 / 49)), "expand_v", "head_dim"),
    ):
        folder = tmp_path / factor
        interop.save_huggingface(folder, config, mhc_jax.init(config, jax.random.key(0)))
        written = json.loads((folder / "config.json").read_text())
        assert int(written[width] * written[factor]) == 1
        assert interop.load_huggingface(folder)[0] == config


def test_factors_may_be_cut(folders, tmp_path):
    """0.53 times 16 are 8 channels."""
    folder = published(folders, tmp_path / "gla", expand_k=0.53, norm_eps=1e-6)
    assert interop.load_huggingface(folder)[0] == GLA


# All fields but those of the size, as the package writes them.
PUBLISHED = {"hidden_ratio": 4, "intermediate_size": None, "hidden_act": "swish", "norm_eps": 1e-5, "attn": None}
PUBLISHED |= {"attn_mode": "chunk", "initializer_range": 0.02, "max_position_embeddings": 2048, "use_cache": True}
PUBLISHED |= {
    "fuse_norm": False,
    "fuse_swiglu": True,
    "fuse_cross_entropy": True,
    "use_l2warp": False,
    "dtype": "float32",
}
PUBLISHED |= {"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 11}
PUBLISHED |= {"conv_size": 4, "tie_word_embeddings": False, "num_heads": 2, "transformers_version": "5.0.0"}
PUBLISHED_GLA = {"model_type": "gla", "architectures": ["GLAForCausalLM"], "num_kv_heads": None, "feature_map": None}
PUBLISHED_GLA |= {"expand_k": 0.5, "expand_v": 1, "clamp_min": None, "elementwise_affine": True, "use_gk": True}
PUBLISHED_GLA |= {"use_gv": False, "use_output_gate": True, "use_short_conv": False}


def published(folders, folder, **changes):
    """A folder of the package as it was configured without fused norms: these have another name then."""
    tensors = load_file(folders / "gla" / "model.safetensors")
    folder.mkdir()
    save_file({name.replace("norm_swish_gate", "norm"): x for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(PUBLISHED | PUBLISHED_GLA | changes))
    return folder


def test_fields_that_the_package_writes_are_understood(folders, tmp_path):
    config, params = interop.load_huggingface(published(folders, tmp_path / "gla", clamp_min=-0.5, feature_map="swish"))
    eps = {"norm_eps": 1e-5}
    mixer = GLA.mixer.replace(gate_floor=-0.5, feature_map="silu", **eps)
    assert config == GLA.replace(norm=GLA.norm.replace(eps=1e-5), mixer=mixer)
    jax.tree.map(np.testing.assert_array_equal, params, mhc_jax.init(GLA, jax.random.key(0)))


def test_a_separate_head_that_equals_the_table_stays_one(tmp_path):
    params = mhc_jax.init(DELTA, jax.random.key(0))
    params["head"]["kernel"] = params["embed"]["tokens"].T
    interop.save_huggingface(tmp_path / "model", DELTA, params)
    assert interop.load_huggingface(tmp_path / "model")[0] == DELTA


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"attn": {"layers": [0], "num_heads": 2}}, "attn={'layers': .* is not supported, only None is"),
        ({"attnres_block_size": 4}, "attnres_block_size=4 is not supported, only None is"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'swish' is"),
        ({"elementwise_affine": False}, "elementwise_affine=False is not supported, only True is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ({"num_kv_heads": 1}, "num_kv_heads=1 contradicts the tensors, which say 2"),
        ({"use_short_conv": True}, "use_short_conv=True contradicts the tensors, which say False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True contradicts the tensors, which say False"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3 contradicts the tensors, which say 2"),
        ({"clamp_min": "low"}, "clamp_min must be a finite number, got 'low'"),
        ({"feature_map": "elu"}, "feature_map must be one of"),
        ({"model_type": "gated_deltanet"}, "A_log of rank 1 is missing"),
    ],
)
def test_folders_of_other_models_are_refused(changes, fault, folders, tmp_path):
    folder = published(folders, tmp_path / "gla", **changes)
    with pytest.raises(InteropError, match=fault) as error:
        interop.load_huggingface(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_tensor_of_a_folder_is_accounted_for(folders, tmp_path):
    folder = published(folders, tmp_path / "gla")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.attn.q_conv1d.bias"] = tensors.pop("model.layers.1.attn.gk_proj.1.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InteropError, match=r"missing \(1\): .*gk_proj\.1\.bias; unexpected \(1\): .*q_conv1d\.bias"):
        interop.load_huggingface(folder)


def test_transformers_alone_knows_neither():
    assert native_type(GLA)[0] is native_type(DELTA)[0] is None
