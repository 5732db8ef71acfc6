"""GPT-2 of Hugging Face transformers: state_dicts and folders, in and out, with the same logits."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.value_residual import ValueResidualConfig
from mhc_jax.tree import flatten

torch.set_num_threads(1)

TOKENS = np.arange(18).reshape(2, 9)


def theirs(**changes):
    """A tiny GPT-2 with random values in every parameter."""
    sizes = {"vocab_size": 23, "n_positions": 9, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**{**sizes, "bos_token_id": None, "eos_token_id": None, **changes})
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model):
    return model(torch.from_numpy(TOKENS)).logits.detach().numpy()


def ours(config, params):
    return np.asarray(mhc_jax.apply(config, params, TOKENS).logits_BTV)


@pytest.fixture(scope="module")
def model():
    return theirs()


@pytest.fixture(scope="module")
def loaded(model):
    return interop.from_original("gpt2", model.state_dict(), n_head=2)


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def assert_same(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


# Tensors ------------------------------------------------------------------------------------------


def test_logits_are_theirs(model, loaded):
    np.testing.assert_allclose(ours(*loaded), logits(model), atol=1e-5)


def test_layouts(model, loaded):
    _, params = loaded
    c_attn = model.transformer.h[1].attn.c_attn.weight.detach().numpy()
    attention = params["blocks"]["mixer"]["branch"]
    for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
        np.testing.assert_array_equal(attention[part]["kernel"][1], c_attn[:, 8 * i : 8 * (i + 1)])
    c_fc = model.transformer.h[0].mlp.c_fc.weight.detach().numpy()
    np.testing.assert_array_equal(params["blocks"]["mlp"]["branch"]["up_proj"]["kernel"][0], c_fc)


def test_names_without_prefix_head_and_with_masks(model, loaded):
    state_dict = model.transformer.state_dict()
    assert state_dict.keys() == GPT2Model(model.config).state_dict().keys()
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8) for layer in range(2)}
    masks["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    found, params = interop.from_original("gpt2", state_dict | masks, n_head=2)
    assert found == loaded[0]
    assert_same(params, loaded[1])


def test_export_is_strict_and_bitwise(model, loaded):
    state_dict = interop.to_original("gpt2", *loaded)
    empty = GPT2LMHeadModel(model.config)
    empty.load_state_dict({name: torch.from_numpy(x) for name, x in state_dict.items()}, strict=True)
    for name, x in model.state_dict().items():
        assert torch.equal(empty.state_dict()[name], x), name


def test_heads_are_64_wide_unless_told():
    state_dict = theirs(n_embd=128).state_dict()
    assert interop.from_original("gpt2", state_dict)[0].mixer.heads == 2
    assert interop.from_original("gpt2", state_dict, n_head=8)[0].mixer.heads == 8


@pytest.mark.parametrize(
    ("changes", "activation", "hidden"),
    [
        ({"activation_function": "gelu"}, "erf", 0),
        ({"activation_function": "gelu_pytorch_tanh"}, "tanh", 0),
        ({"n_inner": 10}, "tanh", 10),
        ({"n_inner": 8}, "tanh", 8),
    ],
)
def test_variants(changes, activation, hidden, tmp_path):
    model = theirs(**changes)
    model.save_pretrained(tmp_path / "theirs")
    config, params = interop.load_huggingface(tmp_path / "theirs")
    assert (config.mlp.activation, config.mlp.hidden) == (activation, hidden)
    np.testing.assert_allclose(ours(config, params), logits(model), atol=1e-5)
    interop.save_huggingface(tmp_path / "ours", config, params)
    np.testing.assert_allclose(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "ours")), logits(model), atol=1e-5)


def test_bfloat16_is_kept(model):
    tensors = {name: x.bfloat16() for name, x in model.state_dict().items()}
    config, params = interop.from_original("gpt2", tensors, n_head=2)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
    back = interop.to_original("gpt2", config, params)["transformer.h.0.attn.c_attn.weight"]
    np.testing.assert_array_equal(back.astype(np.float32), tensors["transformer.h.0.attn.c_attn.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.h.1.attn.c_attn.bias"), r"missing \(1\): h.1.attn.c_attn.bias"),
        (lambda s: s.pop("transformer.wte.weight"), "wte.weight of rank 2 is missing"),
        (lambda s: s.pop("transformer.h.0.mlp.c_fc.weight"), "h.0.mlp.c_fc.weight of rank 2 is missing"),
        (lambda s: s.update({"transformer.h.0.extra": torch.ones(2)}), r"unexpected \(1\): h.0.extra"),
        (lambda s: s.update({"transformer.ln_f.bias": torch.ones(2)}), r"ln_f.bias is \(2,\), expected \(8,\)"),
        (lambda s: s.update({"lm_head.weight": s["lm_head.weight"] + 1}), "lm_head.weight differs from wte.weight"),
        (lambda s: s.update({"ln_f.bias": s["transformer.ln_f.bias"]}), "ln_f.bias occurs twice"),
        (
            lambda s: s.update({(name := "transformer.h.0.attn.c_attn.weight"): s[name].to(torch.int8)}),
            "must be floating point: h.0.attn.c_attn.weight is int8",
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, change, message):
    state_dict = dict(model.state_dict())
    change(state_dict)
    with pytest.raises(interop.InteropError, match=message) as error:
        interop.from_original("gpt2", state_dict, n_head=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({}, "width 8 is not a multiple of 64; say n_head"),
        ({"n_head": 3}, "heads 3 must divide the width 8"),
        ({"n_heads": 2}, "unknown hint 'n_heads'; did you mean 'n_head'"),
        ({"n_head": 2, "n_layer": 3}, "n_layer=3 contradicts the tensors, which say 2"),
        ({"n_head": 2, "layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06 is not supported, only 1e-05 is"),
        ({"n_head": 2, "activation_function": "relu"}, "activation_function='relu' is not supported"),
        ({"n_head": "2"}, "n_head must be an integer, got '2'"),
        ({"n_head": 2, "attn_pdrop": "0.1"}, "attn_pdrop must be a finite number, got '0.1'"),
        ({"n_head": 2, "activation_function": []}, "activation_function must be a text"),
        ({"n_head": 2, "scale_attn_weights": 1}, "scale_attn_weights=1 is not supported"),
        ({"n_head": 2, "embd_pdrop": 0.0}, "embd_pdrop=0.0 and resid_pdrop=0.1 are one dropout rate here"),
    ],
)
def test_hints_are_checked(model, hints, message):
    with pytest.raises(ConfigError, match=message):
        interop.from_original("gpt2", model.state_dict(), **hints)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.replace(mlp=None), "no MLP"),
        (lambda c: c.replace(norm=RMSNormConfig()), "norm 'rms' instead of 'ln'"),
        (lambda c: c.replace(value_residual=ValueResidualConfig()), "value residual"),
        (lambda c: mhc_ssm("mhc", vocab_size=11, max_len=9, width=8, layers=1), "ends 'dense'.*'diagonal_ssm'.*no MLP"),
    ],
)
def test_what_gpt2_cannot_express_is_refused(loaded, change, message, tmp_path):
    config = change(loaded[0])
    params = mhc_jax.init(config, jax.random.key(0))
    with pytest.raises(interop.InteropError, match=f"GPT-2 cannot express this model: it has .*{message}"):
        interop.to_original("gpt2", config, params)
    with pytest.raises(interop.InteropError, match=message):
        interop.save_huggingface(tmp_path / "model", config, params)
    assert list(tmp_path.iterdir()) == []


def test_missing_biases_are_written_as_zeros(loaded, tmp_path):
    config = loaded[0].replace(
        norm=LayerNormConfig(bias=False),
        mixer=AttentionConfig(heads=2, bias=False),
        mlp=GeluMLPConfig(activation="tanh", bias=False),
    )
    params = jax.tree.map(lambda x: x + 0.1, mhc_jax.init(config, jax.random.key(0)))
    interop.save_huggingface(tmp_path / "model", config, params)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "model").eval()
    np.testing.assert_allclose(logits(theirs), ours(config, params), atol=1e-5)
    again = interop.load_huggingface(tmp_path / "model")
    np.testing.assert_allclose(ours(*again), ours(config, params), atol=1e-6)
    assert not np.any(again[1]["final_norm"]["bias"])


# Folders ------------------------------------------------------------------------------------------


def test_their_folder_loads(model, loaded, folder):
    config, params = interop.load_huggingface(folder)
    assert config == loaded[0]
    assert_same(params, loaded[1])
    assert interop.load_huggingface(folder, attn_pdrop=0.0)[0].mixer.dropout == 0.0


def test_they_load_ours(model, loaded, tmp_path):
    interop.save_huggingface(tmp_path / "ours", *loaded)
    found, report = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_allclose(logits(found.eval()), ours(*loaded), atol=1e-5)
    again, params = interop.load_huggingface(tmp_path / "ours")
    assert again == loaded[0]
    assert_same(params, loaded[1])


def test_shards(model, loaded, tmp_path):
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert_same(interop.load_huggingface(tmp_path / "shards")[1], loaded[1])
    index = tmp_path / "shards" / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    first = next(iter(where["weight_map"]))
    for file, message in (("../x.safetensors", "not the name of a file"), ("none.safetensors", "none.safetensors")):
        index.write_text(json.dumps({"weight_map": where["weight_map"] | {first: file}}))
        with pytest.raises(interop.InteropError, match=message):
            interop.load_huggingface(tmp_path / "shards")
    index.write_text(json.dumps({"weight_map": where["weight_map"] | {"ghost": where["weight_map"][first]}}))
    with pytest.raises(interop.InteropError, match="ghost is not in"):
        interop.load_huggingface(tmp_path / "shards")
    for damaged in ({}, {"weight_map": None}, {"weight_map": [first]}, {"weight_map": {first: 3}}):
        index.write_text(json.dumps(damaged))
        with pytest.raises(interop.InteropError, match="weight_map is missing"):
            interop.load_huggingface(tmp_path / "shards")


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: edit(folder, model_type="mistral"),
            "'mistral' is not supported; known: deepseek_v2, deepseek_v3, gated_deltanet, gla, gpt2, "
            "llama, mamba, qwen3",
        ),
        (lambda folder: edit(folder, scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx=True is not supported"),
        (lambda folder: edit(folder, tie_word_embeddings=False), "tie_word_embeddings=False is not supported"),
        (lambda folder: edit(folder, n_embd=16), "n_embd=16 contradicts the tensors, which say 8"),
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (pickled, "pytorch_model.bin is a pickle, which is never read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80"), "not a safetensors file"),
        (lambda folder: save_file({"x": np.zeros(1)}, folder / "model.safetensors"), "wte.weight of rank 2 is missing"),
    ],
)
def test_damaged_folders_give_one_line(damage, message, folder):
    damage(folder)
    with pytest.raises(interop.InteropError, match=message) as error:
        interop.load_huggingface(folder)
    assert "\n" not in str(error.value)


def test_formats_are_not_confused(loaded, folder, tmp_path):
    with pytest.raises(interop.InteropError, match="load_huggingface"):
        mhc_jax.load(folder)
    mhc_jax.save(tmp_path / "ours", *loaded)
    with pytest.raises(interop.InteropError, match="model_type None"):
        interop.load_huggingface(tmp_path / "ours")
    with pytest.raises(interop.InteropError, match="something else"):
        interop.save_huggingface(tmp_path / "ours", *loaded)


def test_an_export_may_be_replaced(loaded, tmp_path):
    for _ in range(2):
        interop.save_huggingface(tmp_path / "ours", *loaded)
    (tmp_path / "ours" / "notes.txt").write_text("precious")
    with pytest.raises(interop.InteropError, match=r"notes\.txt"):
        interop.save_huggingface(tmp_path / "ours", *loaded)
