"""LLaMA and Qwen3 of Hugging Face transformers: state_dicts and folders, in and out, and what they generate."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import mhc_jax
from mhc_jax import interop
from mhc_jax.models import rlm
from mhc_jax.nn.channel import GeluMLPConfig, LinearConfig
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.residual import DynamicMHCConfig
from mhc_jax.nn.rotary import LinearScalingConfig, Llama3ScalingConfig, RotaryScalingConfig, YarnScalingConfig
from mhc_jax.tests.published_models import check_greedy_continuations, logits, ours, randomised
from mhc_jax.tree import flatten

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 23,
    "max_position_embeddings": 32,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"head_dim": 4, "rope_parameters": YARN}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 6, "tie_word_embeddings": True}),
}


def theirs(system="llama", **changes):
    """A tiny model of theirs with random values in every parameter."""
    config, build, fields = MODELS[system]
    model = build(config(**SIZES | fields | changes))
    return randomised(model)


def drawn(config):
    """Random values in every parameter of ours."""
    params = mhc_jax.init(config, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params)


def assert_same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


@pytest.fixture(scope="module", params=MODELS)
def published(request):
    return theirs(request.param)


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    """Theirs, in shards."""
    path = tmp_path_factory.mktemp("theirs") / "model"
    published.save_pretrained(path, max_shard_size="2KB")
    assert not (path / "model.safetensors").exists()
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return interop.load_huggingface(folder)


@pytest.fixture(scope="module")
def llama():
    """A small one of ours, and its parameters."""
    model = theirs(num_hidden_layers=1)
    return interop.from_original("llama", {"model": model.state_dict(), "config": model.config.to_dict()})


# There and back ---------------------------------------------------------------------------------------


def test_folders_in_shards_load(published, loaded):
    config, params = loaded
    np.testing.assert_allclose(ours(config, params), logits(published), atol=1e-5)
    assert (config.head == "tied") == published.config.tie_word_embeddings
    assert (config.mixer.groups, config.mixer.head_width) == (2, published.config.head_dim)


def test_they_load_ours(published, loaded, tmp_path):
    interop.save_huggingface(tmp_path / "ours", *loaded)
    found, report = type(published).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_array_equal(logits(found.eval()), logits(published))
    assert found.config.rope_parameters.items() >= published.config.rope_parameters.items()
    again, params = interop.load_huggingface(tmp_path / "ours")
    assert again == loaded[0]
    assert_same(params, loaded[1])


def test_export_is_strict_and_bitwise(published, loaded):
    state_dict = interop.to_original(published.config.model_type, *loaded)
    empty = type(published)(published.config)
    empty.load_state_dict({name: torch.from_numpy(x) for name, x in state_dict.items()}, strict=True)
    for name, x in published.state_dict().items():
        assert torch.equal(empty.state_dict()[name], x), name


def test_names_without_prefix_and_head_and_with_angles():
    model = theirs(num_hidden_layers=1, tie_word_embeddings=True, rope_parameters=None)
    state_dict = model.model.state_dict()
    assert state_dict.keys() == LlamaModel(model.config).state_dict().keys()
    angles = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    config, params = interop.from_original("llama", state_dict | angles, num_attention_heads=4)
    assert config.head == "tied"
    np.testing.assert_allclose(ours(config, params), logits(model), atol=1e-5)


def test_the_heads_of_qwen3_show_in_its_norm_and_its_length_is_that_of_its_class():
    hints = {"rms_norm_eps": 0.5, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    config, _ = interop.from_original("qwen3", theirs("qwen3").state_dict(), **hints)
    assert (config.mixer.heads, config.mixer.groups, config.mixer.head_width) == (4, 2, 6)
    assert config.norm == config.mixer.qk_norm == RMSNormConfig(eps=0.5)
    assert config.mixer.rotary_scaling == YarnScalingConfig(2.0, original_max_position_embeddings=32768)


def test_an_equal_head_is_the_token_table_unless_stated():
    model = theirs(num_hidden_layers=1)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    for stated, head in ((None, "tied"), (True, "tied"), (False, "dense")):
        hints = {"num_attention_heads": 4} | ({} if stated is None else {"tie_word_embeddings": stated})
        assert interop.from_original("llama", model.state_dict(), **hints)[0].head == head


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "qk_norm", "bias"),
    [("plain", None, False), ("original", None, True), ("original", RMSNormConfig(), False)],
)
def test_rlm_without_streams_is_exported(form, qk_norm, bias, tmp_path):
    """The original has the channels of a pair beside each other, where they have them half a head apart."""
    config = rlm("small", form, vocab_size=23, max_len=16, width=12, layers=2, before_mixer=None, before_mlp=None)
    mixer = config.mixer.replace(heads=2, qk_norm=qk_norm, bias=bias, rotary_base=50.0)
    config = config.replace(mixer=mixer, mlp=config.mlp.replace(hidden=7))
    params = drawn(config)
    interop.save_huggingface(tmp_path / "ours", config, params)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert isinstance(model, LlamaForCausalLM if qk_norm is None else Qwen3ForCausalLM)
    np.testing.assert_allclose(logits(model), ours(config, params), atol=1e-5)
    again, halves = interop.load_huggingface(tmp_path / "ours")
    assert again.mixer.rotary == "half"
    np.testing.assert_allclose(ours(again, halves), ours(config, params), atol=1e-5)


# Fields -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "base", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 500000, "rope_scaling": None}, 500000.0, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 8.0}, 7.0, None),
        ({"rope_theta": 9.0, "rope_scaling": {"type": "linear", "factor": 4}}, 9.0, LinearScalingConfig(4.0)),
        (
            {
                "rope_scaling": {
                    "factor": 32.0,
                    "high_freq_factor": 4.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192,
                    "rope_type": "llama3",
                }
            },
            10000.0,
            Llama3ScalingConfig(factor=32.0),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": None, "attention_factor": 1.5}},
            10000.0,
            YarnScalingConfig(factor=2.0, original_max_position_embeddings=2048, attention_factor=1.5),
        ),
        (
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "yarn", "factor": np.e, "mscale": 2.0, "mscale_all_dim": 1.0},
            },
            10000.0,
            YarnScalingConfig(factor=np.e, original_max_position_embeddings=64, attention_factor=1.2 / 1.1),
        ),
    ],
)
def test_rotary_positions_as_every_version_states_them(fields, base, scaling):
    given = {"max_position_embeddings": 2048} | fields
    tensors = theirs(num_hidden_layers=1).state_dict()
    mixer = interop.from_original("llama", {"model": tensors, "config": {"num_attention_heads": 4} | given})[0].mixer
    assert (mixer.rotary_base, mixer.rotary_scaling) == (base, scaling)


def test_hints_about_rotary_positions_replace_what_is_stored(llama):
    """Also where the later form holds both, as our exports do."""
    tensors, yarn = interop.to_original("llama", *llama), YarnScalingConfig(2.0, original_max_position_embeddings=16)
    for form in ({"rope_parameters": YARN}, {"rope_theta": 100.0, "rope_scaling": YARN, "rope_parameters": YARN}):
        stored = {"model": tensors, "config": {"num_attention_heads": 4, **form}}

        def read(**hints):
            mixer = interop.from_original("llama", stored, **hints)[0].mixer  # noqa: B023  (called in this round)
            return mixer.rotary_base, mixer.rotary_scaling

        assert read() == (100.0, yarn)
        assert read(rope_theta=5.0) == (5.0, yarn)
        assert read(rope_scaling=None) == (100.0, None)
        assert read(rope_scaling={"type": "linear", "factor": 3.0}) == (100.0, LinearScalingConfig(3.0))
        assert read(rope_parameters={"rope_type": "default", "rope_theta": 7.0}) == (7.0, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type='dynamic' is not supported, only default, linear",
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope' is not supported"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, r"rope_type=\['yarn'\] is not supported"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters must be one set of fields for all layers"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be one set of fields"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing, which rope_type 'linear' needs"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling: linear: factor must be at least 1"),
        ({"rope_scaling": {"type": "yarn", "factor": "2"}}, "factor must be a number, got '2'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "mscale": "1"}}, "mscale must be a finite number, got '1'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": np.e, "mscale": 1.0, "mscale_all_dim": -10.0}},
            "mscale_all_dim=-10.0 makes a gain of no meaning; give attention_factor",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2, "kind": "yarn", "beta_fast": 9}},
            "unknown field 'beta_fast'",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_quick": 1}}, "unknown field 'beta_quick'"),
        ({"rope_theta": "many"}, "rope_theta must be a finite number"),
        ({"rope_theta": -1.0}, "rotary_base must be positive"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ({"use_sliding_window": True, "sliding_window": 4}, "use_sliding_window=True is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types with 'sliding_attention'"),
        ({"attention_bias": True}, "attention_bias=True contradicts the tensors, which say False"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"is_causal": False}, "is_causal=False is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu' is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True contradicts the tensors, which say False"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide the 16 rows of q_proj"),
        ({"num_attention_heads": None}, "the tensors do not show the number of heads; say num_attention_heads="),
        ({"num_attention_heads": "4"}, "num_attention_heads='4' does not divide"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 contradicts the tensors, which say 2"),
        ({"head_dim": 8}, "head_dim=8 contradicts the tensors, which say 4"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a finite number"),
        ({"initializer_range": 0.0}, "init_std must be positive"),
    ],
)
def test_what_we_cannot_follow_is_named(fields, message, llama):
    tensors = interop.to_original("llama", *llama)
    config = {"num_attention_heads": 4} | fields
    with pytest.raises(interop.InteropError, match=f"^llama: .*{message}") as error:
        interop.from_original("llama", {"model": tensors, "config": config})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.embed_tokens.weight"), "embed_tokens.weight of rank 2 is missing"),
        (lambda s: s.pop("model.layers.0.mlp.up_proj.weight"), r"missing \(1\): layers.0.mlp.up_proj.weight"),
        (lambda s: s.update({"model.layers.0.self_attn.q_norm.bias": s["lm_head.weight"]}), r"unexpected \(1\)"),
        (lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": np.ones(16)}), r"missing \(3\).*o_proj.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, llama):
    tensors = interop.to_original("llama", *llama)
    change(tensors)
    with pytest.raises(interop.InteropError, match=message):
        interop.from_original("llama", tensors, num_attention_heads=4)


def test_hints_are_checked(llama):
    tensors = interop.to_original("llama", *llama)
    with pytest.raises(interop.InteropError, match="do not show the number of heads; say num_attention_heads="):
        interop.from_original("llama", tensors)
    with pytest.raises(interop.InteropError, match="unknown hint 'rope_teta'; did you mean 'rope_theta'"):
        interop.from_original("llama", tensors, num_attention_heads=4, rope_teta=5.0)
    assert interop.from_original("llama", tensors, num_attention_heads=4, rope_theta=5.0)[0].mixer.rotary_base == 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": DynamicMHCConfig()}, "residual 'dynamic_mhc'"),
        ({"before_mlp": LinearConfig()}, "channel mixers before attention or the MLP"),
        ({"positions": "learned"}, "learned positions"),
        ({"dropout": 0.1}, "dropout after branches"),
        ({"outputs": 5}, "5 outputs"),
        ({"mlp": None}, "no MLP"),
        ({"mlp": GeluMLPConfig()}, "MLP 'gelu_mlp'"),
        ({"mixer.causal": False}, "attention that is not causal"),
        ({"mixer.rotary": "none", "mixer.rotary_scaling": None}, "no rotary positions"),
        ({"mixer.qk_norm": RMSNormConfig()}, "normalised queries and keys"),
        ({"mixer.rotary_scaling": RotaryScalingConfig()}, "rotary scaling None"),
        ({"mixer.heads": 6}, "6 heads, which do not divide the width 8"),
    ],
)
def test_what_llama_cannot_express_is_named(change, message, llama, tmp_path):
    config = llama[0]
    for name, value in change.items():
        *inside, field = name.split(".")
        changed = config.mixer.replace(**{field: value}) if inside else value
        config = config.replace(**{inside[0] if inside else field: changed})
    with pytest.raises(interop.InteropError, match=f"Llama cannot express this model: it has .*{message}"):
        interop.to_original("llama", config, llama[1])


def test_a_model_of_no_type_is_refused_for_each_of_them(llama, tmp_path):
    config = llama[0].replace(residual=DynamicMHCConfig(), ends=CopyEndsConfig())
    with pytest.raises(
        interop.InteropError, match=r"as gpt2, it has .* and \d+ more; as llama, .*; as qwen3, .*RMSNorm"
    ):
        interop.save_huggingface(tmp_path / "model", config, mhc_jax.init(config, jax.random.key(0)))
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_of_models_are_refused(tmp_path):
    config = ModelConfig(vocab_size=5, max_len=4)
    with pytest.raises(interop.InteropError, match="hold language models, not a None"):
        interop.to_original("llama", config, {})
    with pytest.raises(interop.InteropError, match="hold language models, not a None"):
        interop.save_huggingface(tmp_path / "model", config, {})


def test_a_gpt2_with_further_sites_is_refused(llama):
    config = llama[0].replace(before_mixer=LinearConfig())
    with pytest.raises(interop.InteropError, match="GPT-2 cannot .*channel mixers before attention"):
        interop.to_original("gpt2", config, mhc_jax.init(config, jax.random.key(0)))


def test_older_readers_find_the_rotary_positions(llama, tmp_path):
    interop.save_huggingface(tmp_path / "ours", *llama)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["rope_theta"] == 100.0
    assert config["rope_scaling"] == {name: x for name, x in config["rope_parameters"].items() if name != "rope_theta"}


# Decoding ---------------------------------------------------------------------------------------------


def test_greedy_continuations_are_theirs(published, loaded):
    """Of prompts of equal and of unequal lengths, past the original length of the scaling."""
    check_greedy_continuations(published, *loaded)
