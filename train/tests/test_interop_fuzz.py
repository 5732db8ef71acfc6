"""Exports, published checkpoints and folders of transformers, altered: read, or refused in one line."""

import json
import struct

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mhc_jax
from mhc_jax import interop
from mhc_jax.models import SHCOriginalConfig, mhc_ssm, nanogpt
from mhc_jax.models.gpt import gpt2
from train.tests.fuzz import FEW, INTEGERS, JSON_VALUES, TEXTS, altered, altered_json, damaged, works_or_says_why

SIZE = {"vocab_size": 7, "max_len": 5, "width": 4, "layers": 1}
GPT2 = gpt2("124M", **SIZE).replace(mixer=gpt2("124M").mixer.replace(heads=2))
SYSTEMS = {
    "mhc_ssm": (mhc_ssm("mhc", "original", **SIZE), {"sinkhorn_iters": 8, "sinkhorn_temp": 1.0, "dropout": 0.0}),
    "nanogpt": (
        nanogpt("mhc_orthostochastic", "original", heads=2, **SIZE),
        {"n_head": 2, "dropout": 0.0, "mhc_h_res_proj": "orthostochastic", "ns_steps": 5, "ns_coeffs": [3, -3.2, 1.2]},
    ),
    "gpt2": (GPT2, {"n_head": 2, "activation_function": "gelu_new", "attn_pdrop": 0.0, "tie_word_embeddings": True}),
    "shc": (
        SHCOriginalConfig(heads=2, adaptive_rank=True, **SIZE),
        {"n_heads": 2, "max_seq_len": 5, "use_rope": True, "ffn_dim": 10, "tie_embeddings": True},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Ours and transformers'."""
    root = tmp_path_factory.mktemp("models")
    config = SYSTEMS["mhc_ssm"][0]
    mhc_jax.save(root / "ours", config, mhc_jax.init(config, jax.random.key(0)))
    interop.save_huggingface(root / "theirs", GPT2, mhc_jax.init(GPT2, jax.random.key(0)))
    return root


READERS = {"ours": mhc_jax.load, "theirs": interop.load_huggingface}


def with_header(content, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.unpack("<Q", content[:8])[0]
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


@st.composite
def altered_safetensors(draw, content):
    """Its header's length, its header or any of its bytes replaced: other dtypes, shapes, offsets that overlap."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    how = draw(st.sampled_from(["bytes", "length", "entry", "header"]))
    if how == "bytes":
        return draw(damaged(content))
    if how == "length":
        return (
            struct.pack("<Q", draw(st.sampled_from([0, 1, size - 1, size + 1, 2**31, 2**40, 2**63, 2**64 - 1])))
            + (content[8:])
        )
    if how == "header":
        return with_header(content, draw(altered_json(header)))
    name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    entry = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F8_E4M3", "F4", "F64", "I8", "BF16", "C64", "Q", ""]),
                "shape": st.lists(st.sampled_from([0, 1, 4, 2**31, 2**63]), max_size=4),
                "data_offsets": st.lists(st.sampled_from([0, 1, 64, 2**31, 2**63]), min_size=2, max_size=2),
            },
        )
    )
    return with_header(content, header | {name: header[name] | entry})


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@FEW
def test_altered_safetensors(kind, folders, tmp_path_factory, data):
    content = (folders / kind / "model.safetensors").read_bytes()
    folder = tmp_path_factory.mktemp(kind)
    (folder / "config.json").write_bytes((folders / kind / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(data.draw(altered_safetensors(content)))
    works_or_says_why(READERS[kind], folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@FEW
def test_altered_configurations(kind, folders, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp(kind)
    config = json.loads((folders / kind / "config.json").read_text())
    (folder / "config.json").write_bytes(data.draw(altered_json(config)))
    (folder / "model.safetensors").write_bytes((folders / kind / "model.safetensors").read_bytes())
    works_or_says_why(READERS[kind], folder)


VALUES = JSON_VALUES | INTEGERS | st.sampled_from([object(), np.int64(2), np.float32("nan"), (1, 2), b"x", {1: 2}])


@pytest.mark.slow
@pytest.mark.parametrize("system", [pytest.param(x, marks=pytest.mark.slow if x == "shc" else []) for x in SYSTEMS])
@given(data=st.data())
@FEW
def test_altered_checkpoints_and_hints(system, data):
    config, fields = SYSTEMS[system]
    params = mhc_jax.init(config, jax.random.key(0))
    tensors = interop.to_original(system, config, params)
    stored = data.draw(altered(fields) | VALUES)
    checkpoint = {"model": tensors, data.draw(st.sampled_from(["config", "cfg", "model_args"])): stored}
    name = data.draw(st.sampled_from(sorted(tensors)))
    others = [
        st.just(tensors[name].astype(np.int8)),
        st.just(tensors[name][..., None]),
        st.just(tensors[name] * np.nan),
        st.just(np.zeros((2**20, 0), np.float32)),
        VALUES,
    ]
    works_or_says_why(interop.from_original, system, checkpoint)
    works_or_says_why(interop.from_original, system, tensors | {name: data.draw(st.one_of(others))}, **fields)
    works_or_says_why(interop.from_original, system, {data.draw(TEXTS): x for x in tensors.values()}, **fields)
    hint = data.draw(st.sampled_from([*fields, "sinkhorn_tau", "n_layer"]))
    works_or_says_why(interop.from_original, system, tensors, **{**fields, hint: data.draw(VALUES)})
