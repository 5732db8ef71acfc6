import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mhc_jax
import torch_ref
from mhc_jax.config import ConfigError
from train import export
from train.restore import load_run
from train.tests.tiny import tiny_export

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def test_library_reads_the_same_model(tiny):
    config, params, folder = tiny
    model, loaded = mhc_jax.load(folder)
    assert model == config.model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_pytorch_mirror_reads_it_and_agrees(tiny):
    config, params, folder = tiny
    model = torch_ref.build(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
    theirs = model.eval()(torch.from_numpy(tokens)).detach().numpy()
    ours = mhc_jax.apply(config.model, params, tokens).logits_BTV
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_run_configuration_travels_along(tiny):
    config, _, folder = tiny
    assert load_run(folder)[0] == config
    assert json.loads((folder / "run.json").read_text())["data"]["tokenizer"] == "bytes"


def test_command_copies_and_names_what_is_next(tiny, tmp_path, capsys):
    _, params, folder = tiny
    out = tmp_path / "again"
    export.main([str(folder), str(out)])
    assert f"--checkpoint {out}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, mhc_jax.load(out)[1], params)


def test_nothing_is_overwritten(tiny):
    config, params, folder = tiny
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        export.export(config, params, folder)
    assert (folder / "model.safetensors").read_bytes() == before
