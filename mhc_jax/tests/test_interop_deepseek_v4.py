"""Hyper-connection tensors of DeepSeek-V4 layers, against the modules of transformers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection, DeepseekV4HyperHead
from transformers.models.hy_v4.modeling_hy_v4 import HYV4HyperConnection

from mhc_jax import interop
from mhc_jax.interop import deepseek_v4

N, C = 4, 6
CONFIG = SimpleNamespace(
    hc_mult=N, hidden_size=C, hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-6, hc_magnitude=2.0
)


def filled(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def arrays(module):
    return {name: x.detach().numpy() for name, x in module.named_parameters()}


@pytest.fixture
def layer():
    sites = {"attn_hc": DeepseekV4HyperConnection(CONFIG), "ffn_hc": DeepseekV4HyperConnection(CONFIG)}
    return filled(torch.nn.ModuleDict(sites))


def sites_of_a_layer(name):
    return name.startswith(("attn_hc.", "ffn_hc."))


def same(left, right, only=lambda name: True):
    right = {name: x for name, x in right.items() if only(name)}
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_names_and_shapes_of_transformers():
    site = deepseek_v4.site_from_deepseek_v4(**arrays(filled(DeepseekV4HyperConnection(CONFIG))))
    assert {name: x.shape for name, x in site.items()} == {"phi": (24, 24), "bias": (24,), "alpha": (3,)}
    head = deepseek_v4.head_from_deepseek_v4(**arrays(filled(DeepseekV4HyperHead(CONFIG))))
    assert {name: x.shape for name, x in head.items()} == {"phi": (4, 24), "bias": (4,), "alpha": (1,)}


def test_mixing_block_is_transposed_and_the_rest_stays():
    published = arrays(filled(DeepseekV4HyperConnection(CONFIG)))
    site = deepseek_v4.site_from_deepseek_v4(**published)
    np.testing.assert_array_equal(site["phi"][: 2 * N], published["fn"][: 2 * N])
    blocks = site["phi"][2 * N :].reshape(N, N, -1), published["fn"][2 * N :].reshape(N, N, -1)
    np.testing.assert_array_equal(blocks[0], blocks[1].swapaxes(0, 1))
    np.testing.assert_array_equal(site["bias"][2 * N :].reshape(N, N), published["base"][2 * N :].reshape(N, N).T)
    same(deepseek_v4.site_to_deepseek_v4(**site), published)


def test_hy_v4_has_no_mixing_block():
    published = arrays(filled(HYV4HyperConnection(CONFIG)))
    site = deepseek_v4.site_from_deepseek_v4(**published)
    np.testing.assert_array_equal(site["phi"], published["fn"])
    same(deepseek_v4.site_to_deepseek_v4(**site), published)


def test_head_round_trip():
    published = arrays(filled(DeepseekV4HyperHead(CONFIG)))
    same(deepseek_v4.head_to_deepseek_v4(**deepseek_v4.head_from_deepseek_v4(**published)), published)


def test_layer_by_either_name(layer):
    published = arrays(layer)
    sites = deepseek_v4.layer_from_deepseek_v4(published)
    assert list(sites) == ["mixer", "mlp"]
    same(deepseek_v4.layer_to_deepseek_v4(sites), published)
    released = deepseek_v4.layer_to_deepseek_v4(sites, "released")
    assert {"hc_attn_fn", "hc_attn_base", "hc_attn_scale", "hc_ffn_fn"} < released.keys()
    for site, found in deepseek_v4.layer_from_deepseek_v4(released).items():
        same(found, sites[site])


def test_one_layer_of_a_model(layer):
    published = arrays(layer)
    other = {name: x + 1 for name, x in published.items()}
    model = {f"model.layers.{i}.{name}": x for i, part in enumerate((other, published)) for name, x in part.items()}
    model["model.layers.1.self_attn.q_a_proj.weight"] = np.zeros((2, 2))
    found = deepseek_v4.layer_from_deepseek_v4(model, layer=1)
    same(deepseek_v4.layer_to_deepseek_v4(found), published)
    with pytest.raises(interop.InteropError, match="those of 2 layers"):
        deepseek_v4.layer_from_deepseek_v4(model)
    with pytest.raises(interop.InteropError, match=r"missing \(6\): attn fn"):
        deepseek_v4.layer_from_deepseek_v4(model, layer=2)


def test_a_model_of_transformers_and_the_file_that_it_saves(tmp_path):
    small = {"hidden_size": 16, "num_attention_heads": 2, "head_dim": 8, "q_lora_rank": 8, "o_lora_rank": 4}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_hash_layers": 0}
    window = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4, "qk_rope_head_dim": 4, "o_groups": 1}
    config = DeepseekV4Config(vocab_size=32, num_hidden_layers=2, **small, **experts, **window)
    model = filled(DeepseekV4ForCausalLM(config))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "model.layers.1.hc_attn_fn" in saved
    for state_dict in (arrays(model), saved):
        sites = deepseek_v4.layer_from_deepseek_v4(state_dict, layer=1)
        assert sites["mixer"]["phi"].shape == (24, 64)
        same(deepseek_v4.layer_to_deepseek_v4(sites), arrays(model.model.layers[1]), only=sites_of_a_layer)


def test_missing_tensors_are_named(layer):
    published = arrays(layer)
    del published["ffn_hc.base"]
    with pytest.raises(interop.InteropError, match=r"missing \(1\): ffn base"):
        deepseek_v4.layer_from_deepseek_v4(published)


@pytest.mark.parametrize(
    "shapes",
    [
        ((23, 24), (23,), (3,)),
        ((24, 22), (24,), (3,)),
        ((24, 24), (23,), (3,)),
        ((24, 24), (24,), (1,)),
        ((7, 24), (7,), (2,)),
        ((0, 24), (0,), (2,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(interop.InteropError, match="not the hyper-connections of one site"):
        deepseek_v4.site_from_deepseek_v4(*map(np.zeros, shapes))
