"""Folders for transformers whose code is the PyTorch mirror: what they compute, and the way back."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mhc_jax
from mhc_jax import interop, registry
from mhc_jax.config import ConfigError
from mhc_jax.models.shc_original import SHCOriginalConfig
from mhc_jax.models.topologies import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.mixers import AttentionConfig, DiagonalSSMConfig
from train import sample
from train.checks.subject import awake
from train.export import export
from train.storage.remote_code import code_files
from train.storage.restore import load_run
from train.tests.tiny import tiny_config

MIXERS = {
    "attention": AttentionConfig(heads=4, kv_heads=2, rotary="half"),
    "diagonal_ssm": DiagonalSSMConfig(chunk=4),
}
CELLS = (("mhc", "attention"), ("mhc_ssm_adapters", "diagonal_ssm"), ("multi_branch", "attention"))
LENGTHS = np.array([12, 1, 5])


def write(folder, topology, mixer):
    """A tiny model in the format of transformers, and beside it what JAX computes; its configuration and parameters."""
    config = tiny_config(folder)
    parts = {"mixer": MIXERS.get(mixer) or registry.get("mixer", mixer)().small(), "mlp": GeluMLPConfig()}
    model = mhc_jax.LMConfig(vocab_size=257, max_len=32, width=8, layers=2, **parts)
    config = config.replace(model=with_topology(model, topology))
    params = awake(config.model, mhc_jax.init(config.model, jax.random.key(0)))
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)  # so that the likeliest token stands out
    out = folder / f"{topology}-{mixer}"
    export(config, params, out, "huggingface")
    ids = np.random.default_rng(0).integers(256, size=(len(LENGTHS), LENGTHS.max()), dtype=np.int32)
    logits = jax.jit(mhc_jax.apply, static_argnums=0)(config.model, params, ids).logits_BTV
    found = mhc_jax.generate(config.model, params, ids, lengths_B=LENGTHS, temperature=0, max_new_tokens=6)
    greedy = np.stack([row[n : n + 6] for row, n in zip(np.asarray(found), LENGTHS)])
    np.savez(out.with_suffix(".npz"), ids=ids, lengths=LENGTHS, logits=logits, greedy=greedy)
    return config, params, out


def read(folders, cache):
    """The reader's run over the folders, in a process that cannot import this project."""
    reader = Path(__file__).with_name("remote_code_reader.py")
    environment = os.environ | {"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, reader, *folders], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    return {cell: write(folder, *cell) for cell in CELLS}


@pytest.fixture(scope="module")
def saved_again(written, tmp_path_factory):
    """The folders as transformers saved them after reading them."""
    folders = [out for _, _, out in written.values()]
    read(folders, tmp_path_factory.mktemp("modules"))
    return [out.with_name(f"{out.name}-again") for out in folders]


@pytest.mark.slow
def test_transformers_computes_and_generates_what_jax_does(saved_again):
    assert all((folder / "config.json").is_file() for folder in saved_again)


@pytest.mark.slow
def test_both_come_back(written, saved_again):
    for (config, params, out), again in zip(written.values(), saved_again):
        for folder in (out, again):
            for model, loaded in (mhc_jax.load(folder), interop.load_huggingface(folder)):
                assert model == config.model
                jax.tree.map(np.testing.assert_array_equal, loaded, params)
        assert load_run(out)[0] == config
        assert load_run(again)[0].model == config.model
    assert {name.split(".")[0] for name in load_file(again / "model.safetensors")} == {"lm"}


@pytest.mark.slow
def test_commands_take_such_a_folder(written, capsys):
    _, _, out = written[CELLS[1]]
    sample.main([str(out), "--prompt", "the", "--tokens", "2"])
    assert capsys.readouterr().out.startswith("the")


@pytest.mark.slow
def test_shards_come_back(written, tmp_path):
    _, params, out = written[CELLS[0]]
    tensors = load_file(out / "model.safetensors")
    (tmp_path / "config.json").write_text((out / "config.json").read_text())
    where = {}
    for number, name in enumerate(tensors):
        file = f"model-{number % 2}.safetensors"
        where[name] = file
    for file in set(where.values()):
        save_file({name: x for name, x in tensors.items() if where[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {where}}}'.replace("'", '"'))
    jax.tree.map(np.testing.assert_array_equal, mhc_jax.load(tmp_path)[1], params)


@pytest.mark.slow
def test_damage_is_named(written, tmp_path):
    _, _, out = written[CELLS[0]]
    for text, fault in (('{"model_type": "mhc"}', "config.json"), ('{"model_type": "mhc", "mhc": 3}', "config.json")):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=fault) as error:
            mhc_jax.load(tmp_path)
        assert "\n" not in str(error.value)


def test_the_files_import_each_other_and_nothing_of_the_project():
    files = code_files()
    assert {"modeling_mhc.py", "configuration_mhc.py", "torch_ref_nn_lm.py", "torch_ref_nn_residual.py"} <= {*files}
    for name, code in files.items():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.level:
                siblings = [node.module] if node.module else [alias.name for alias in node.names]
                assert {f"{sibling}.py" for sibling in siblings} <= {*files}, name
            elif isinstance(node, ast.ImportFrom | ast.Import):
                assert "torch_ref" not in ast.unparse(node), name
    copied = {node.module for node in ast.walk(ast.parse(files["modeling_mhc.py"])) if isinstance(node, ast.ImportFrom)}
    assert {name.removesuffix(".py") for name in files} - {"modeling_mhc"} <= copied


def test_a_part_from_outside_is_refused(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    monkeypatch.setattr(type(config.model.mixer), "kind", "my_mixer")
    with pytest.raises(ConfigError, match="its mixer 'my_mixer' is from outside, and the folder's code is torch_ref"):
        export(config, {}, tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_kind_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config = config.replace(model=SHCOriginalConfig(vocab_size=257, max_len=32, width=8, heads=2, streams=1))
    with pytest.raises(ConfigError, match="hold language models, not a 'shc_original'"):
        export(config, {}, tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_topology_with_attention_and_with_a_recurrence(tmp_path):
    cells = [(topology, mixer) for topology in registry.names("topology") for mixer in MIXERS]
    cells += [("multi_branch", mixer) for mixer in registry.names("mixer") if mixer not in MIXERS]
    read([write(tmp_path, *cell)[2] for cell in cells], tmp_path / "modules")
