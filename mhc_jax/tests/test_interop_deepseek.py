"""DeepSeek-V2 and DeepSeek-V3 of Hugging Face transformers: state_dicts, folders, and what they generate."""

import jax
import numpy as np
import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import mhc_jax
from mhc_jax import interop
from mhc_jax.interop import InteropError
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.rotary import LinearScalingConfig, YarnScalingConfig
from mhc_jax.tests.published_models import check_greedy_continuations, logits, ours, randomised

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 23,
    "max_position_embeddings": 32,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 6,
    "q_lora_rank": 5,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
# As in DeepSeek-V3's own config.json but for its numbers.
YARN = {
    "type": "yarn",
    "factor": 2.0,
    "beta_fast": 1.0,
    "beta_slow": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM, {"q_lora_rank": None, "qk_nope_head_dim": 6}),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM, {"rope_scaling": YARN, "rope_theta": 100.0}),
}


def theirs(system, **changes):
    """A tiny model of theirs with random values in every parameter."""
    config, build, fields = MODELS[system]
    model = build(config(**SIZES | fields | changes))
    return randomised(model)


@pytest.fixture(scope="module", params=MODELS)
def published(request):
    return theirs(request.param)


@pytest.fixture(scope="module")
def loaded(published, tmp_path_factory):
    """Theirs, by way of a folder in shards."""
    path = tmp_path_factory.mktemp("theirs") / "model"
    published.save_pretrained(path, max_shard_size="2KB")
    return interop.load_huggingface(path)


@pytest.fixture(scope="module")
def v3():
    model = theirs("deepseek_v3")
    return interop.from_original("deepseek_v3", {"model": model.state_dict(), "config": model.config.to_dict()})


def test_folders_load_and_are_loaded(published, loaded, tmp_path):
    config, params = loaded
    np.testing.assert_allclose(ours(config, params), logits(published), atol=1e-5)
    interop.save_huggingface(tmp_path / "ours", config, params)
    found, report = type(published).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_array_equal(logits(found.eval()), logits(published))
    again, same = interop.load_huggingface(tmp_path / "ours")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_state_dicts_come_back_bitwise(published, loaded):
    state_dict = interop.to_original(published.config.model_type, *loaded)
    assert state_dict.keys() == published.state_dict().keys()
    for name, x in published.state_dict().items():
        np.testing.assert_array_equal(state_dict[name], x.numpy(), err_msg=name)


def test_tensors_alone_show_all_sizes():
    mixer = interop.from_original("deepseek_v3", theirs("deepseek_v3", rope_scaling=None).state_dict())[0].mixer
    assert (mixer.heads, mixer.head_width, mixer.value_head_width, mixer.rotary_width) == (4, 3, 2, 4)
    assert (mixer.latent_width, mixer.query_latent_width, mixer.bias) == (6, 5, False)


def test_yarn_and_its_two_gains(v3):
    mixer = v3[0].mixer
    gain = (0.1 * np.log(2) + 1) / (0.07 * np.log(2) + 1)
    expected = YarnScalingConfig(2.0, 1.0, 0.1, 16, attention_factor=gain)
    assert mixer.rotary_scaling.attention_factor == pytest.approx(gain)
    assert mixer.rotary_scaling.replace(attention_factor=gain) == expected
    assert (mixer.mscale_all_dim, mixer.rotary_base, mixer.rotary) == (0.7, 100.0, "interleaved")


def test_greedy_continuations_are_theirs(published, loaded):
    """Of prompts of equal and of unequal lengths, past the original length of the scaling."""
    check_greedy_continuations(published, *loaded)


@pytest.mark.parametrize("system", MODELS)
def test_mixtures_of_experts_are_refused_in_one_line(system):
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 3, "num_experts_per_tok": 2}
    model = theirs(system, first_k_dense_replace=1, n_group=1, topk_group=1, **experts)
    fault = rf"^{system}: layer 1 is a mixture of experts \(first_k_dense_replace\), which no model here expresses"
    for config in (model.config.to_dict(), {}):
        with pytest.raises(InteropError, match=fault):
            interop.from_original(system, {"model": model.state_dict(), "config": config})


@pytest.mark.parametrize(
    ("hints", "fault"),
    [
        ({"kv_lora_rank": 7}, "kv_lora_rank=7 contradicts the tensors, which say 6"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2 contradicts the tensors, which say 4"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu' is"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config={'quant_method': 'fp8'} is not supp"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}}, "unknown field 'mscale_all_dim'"),
        ({"rope_interleave": "yes"}, "rope_interleave must be true or false, got 'yes'"),
        ({"first_k_dense_replace": 0}, "layer 0 is a mixture of experts"),
        ({"kv_lora_rang": 6}, "unknown hint 'kv_lora_rang'; did you mean 'kv_lora_rank'"),
    ],
)
def test_hints_must_fit(hints, fault, v3):
    tensors = interop.to_original("deepseek_v3", *v3)
    with pytest.raises(InteropError, match=f"^deepseek_v3: .*{fault}"):
        interop.from_original("deepseek_v3", tensors, **hints)


def test_tensors_that_do_not_fit_each_other_are_named(v3):
    tensors = interop.to_original("deepseek_v3", *v3)
    tensors["model.layers.0.self_attn.o_proj.weight"] = np.zeros((8, 9), np.float32)
    with pytest.raises(InteropError, match=r"attention do not fit each other: .*'o_proj': \(8, 9\)"):
        interop.from_original("deepseek_v3", tensors)


def test_the_tensor_that_is_missing_beside_a_latent_of_queries_is_named(v3):
    tensors = interop.to_original("deepseek_v3", *v3)
    del tensors["model.layers.0.self_attn.q_b_proj.weight"]
    with pytest.raises(InteropError, match=r"layers\.0\.self_attn\.q_b_proj\.weight of rank 2 is missing"):
        interop.from_original("deepseek_v3", tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "change", "fault"),
    [
        ("deepseek_v3", {"rotary": "none", "rotary_width": None, "rotary_scaling": None}, "no rotary positions"),
        ("deepseek_v3", {"latent_norm": RMSNormConfig(eps=1e-5)}, "another norm than RMSNorm of epsilon 1e-06"),
        ("deepseek_v3", {"latent_norm": LayerNormConfig()}, "another norm than RMSNorm of epsilon 1e-06"),
        ("deepseek_v3", {"causal": False}, "attention that is not causal"),
        ("deepseek_v2", {"rotary": "half"}, "rotary layout 'half'"),
        ("deepseek_v2", {}, "heads or latents of an odd width"),
        ("deepseek_v2", {"head_width": 2, "latent_width": 5}, "heads or latents of an odd width"),
        ("deepseek_v2", {"heads": 3}, "3 heads, which do not divide the width 8"),
    ],
)
def test_what_they_cannot_express_is_named(system, change, fault, v3):
    config = v3[0].replace(mixer=v3[0].mixer.replace(**{"mscale_all_dim": 0.0} | change))
    with pytest.raises(InteropError, match=f"{fault}"):
        interop.to_original(system, config, mhc_jax.init(config, jax.random.key(0)))


@pytest.mark.slow
def test_halves_apart_are_written_as_deepseek_v3(v3, tmp_path):
    config = v3[0].replace(
        mixer=v3[0].mixer.replace(rotary="half", rotary_scaling=LinearScalingConfig(), mscale_all_dim=0)
    )
    interop.save_huggingface(tmp_path / "half", config, v3[1])
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "half").eval()
    np.testing.assert_allclose(logits(model), ours(config, v3[1]), atol=1e-5)
