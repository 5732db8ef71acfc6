"""Models as folders: written whole or not at all, read back bitwise, refused when damaged."""

import contextlib
import json

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.tests.test_interop import CONFIGS, assert_bitwise, filled
from mhc_jax.tree import flatten


@pytest.mark.parametrize("name", ["baseline ln", "adapters rms"])
def test_saved_model_loads_bitwise(name, tmp_path):
    config, params = CONFIGS[name], filled(CONFIGS[name])
    mhc_jax.save(tmp_path / "model", config, params)
    found, loaded = mhc_jax.load(tmp_path / "model")
    assert found == config
    assert_bitwise(loaded, params)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_whose_norm_was_a_name_loads(tmp_path):
    """Without biases, but for the norms of adapters, which always had them."""
    config = CONFIGS["adapters ln"].replace(norm=LayerNormConfig(eps=0.5, bias=False))
    mhc_jax.save(tmp_path / "model", config, filled(config))
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"norm": "ln", "norm_bias": False, "norm_eps": 0.5}))
    found, loaded = mhc_jax.load(tmp_path / "model")
    assert found == config
    assert_bitwise(loaded, filled(config))
    biased = [name for name in flatten(loaded) if name.endswith("norm.bias")]
    assert biased == ["blocks.mixer.residual.norm.bias"]


def test_saving_replaces_an_export_and_nothing_else(tmp_path):
    config = CONFIGS["mhc"]
    first, second = filled(config, 1), filled(config, 2)
    (tmp_path / "empty").mkdir()
    for folder in ("new", "empty"):
        mhc_jax.save(tmp_path / folder, config, first)
    mhc_jax.save(tmp_path / "new", config, second)
    assert_bitwise(mhc_jax.load(tmp_path / "new")[1], second)

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("precious")
    with pytest.raises(interop.InteropError, match=r"notes\.txt"):
        mhc_jax.save(foreign, config, first)
    (foreign / "notes.txt").rename(foreign / "config.json")
    with pytest.raises(interop.InteropError, match="something else"):
        mhc_jax.save(foreign, config, first)
    assert (foreign / "config.json").read_text() == "precious"


def test_parameters_that_do_not_fit_leave_no_folder(tmp_path):
    with pytest.raises(interop.InteropError):
        mhc_jax.save(tmp_path / "model", CONFIGS["mhc"], filled(CONFIGS["baseline rms"]))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def exported(tmp_path):
    config = CONFIGS["mhc"]
    mhc_jax.save(tmp_path / "model", config, filled(config))
    return tmp_path / "model"


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def other_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"width": 8}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors does not exist"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"kind": "llama"}'), "llama"),
        (truncate, "truncated"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04 not safetensors"), "not a safetensors"),
        (other_width, "wrong shape"),
    ],
)
def test_damaged_folders_give_one_line(damage, message, exported):
    damage(exported)
    with pytest.raises(interop.InteropError, match=message) as error:
        mhc_jax.load(exported)
    assert "\n" not in str(error.value)


def test_no_flipped_bit_goes_unseen(exported):
    """A file with one bit flipped is refused, or holds the same model still (a bit of the digest's own name)."""
    file, (config, params) = exported / "model.safetensors", mhc_jax.load(exported)
    whole = file.read_bytes()
    payload = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for place in [*rng.integers(payload, len(whole), 40), *rng.integers(0, payload, 40)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        if place >= payload:
            with pytest.raises(ConfigError, match="is damaged"):
                mhc_jax.load(exported)
            continue
        with contextlib.suppress(ConfigError):
            found, loaded = mhc_jax.load(exported)
            assert found == config
            assert_bitwise(loaded, params)


def rewritten(folder, change, **metadata):
    """The exported tensors after ``change``, saved as another program would."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata=metadata or None)


def test_exports_without_digest_load(exported):
    before = mhc_jax.load(exported)[1]
    rewritten(exported, lambda tensors: None, format="pt")
    assert_bitwise(mhc_jax.load(exported)[1], before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value, exported, tmp_path):
    rewritten(exported, lambda tensors: tensors["blocks.1.mixer.norm.weight"].__setitem__(0, value))
    with pytest.raises(interop.InteropError, match=r"NaN or infinite in blocks\.1\.mixer\.norm\.weight"):
        mhc_jax.load(exported)
    config = CONFIGS["mhc"]
    with pytest.raises(interop.InteropError, match="NaN or infinite"):
        mhc_jax.save(tmp_path / "new", config, jax.tree.map(lambda x: x * value, filled(config)))
    assert not (tmp_path / "new").exists()


def test_float8_is_named(exported):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(exported / "model.safetensors")
    tensors["final_norm.weight"] = tensors["final_norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, exported / "model.safetensors")
    with pytest.raises(interop.InteropError, match=r"bfloat16 or float32 first: final_norm\.weight is F8_E4M3"):
        mhc_jax.load(exported)
    with pytest.raises(interop.InteropError, match=r"final_norm\.weight is not an array that can be read"):
        interop.from_torch(CONFIGS["mhc"], tensors)


def test_layers_without_tensors_are_not_spelled_out(exported):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"layers": 1_000_000_000}))
    with pytest.raises(interop.InteropError, match="1000000000 layers, but there are only"):
        mhc_jax.load(exported)


def test_sizes_that_no_array_has_are_refused(exported):
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"width": 2**31 - 1}))
    with pytest.raises(interop.InteropError, match=r"parameters, more than any file holds"):
        mhc_jax.load(exported)


def test_missing_folder_gives_one_line(tmp_path):
    with pytest.raises(interop.InteropError, match="does not exist; .*, as train.export makes of a run"):
        mhc_jax.load(tmp_path / "nothing")


def test_foreign_safetensors_are_refused(exported):
    from safetensors.numpy import save_file

    save_file({"transformer.wte.weight": np.zeros((11, 6), np.float32)}, exported / "model.safetensors")
    with pytest.raises(interop.InteropError, match="3 layers, but there are only 1 tensors"):
        mhc_jax.load(exported)
