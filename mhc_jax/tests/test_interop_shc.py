"""Checkpoints of SHC: state_dicts and folders, in and out, and what is refused."""

import json

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import interop
from mhc_jax.models import SHCOriginalConfig, shc
from parity_tests.replays.shc import filled, published_shapes

SMALL = SHCOriginalConfig(vocab_size=13, max_len=9, width=8, layers=2, heads=2, hidden=7, adaptive_rank=True)
HINTS = {"n_heads": 2, "max_seq_len": 9, "dropout": 0.0}
TOKENS = np.arange(12).reshape(2, 6)


def published(config):
    """A state_dict with every trained tensor of the original's."""
    return filled({name: shape for name, shape in published_shapes(config).items() if "rank_values" not in name})


@pytest.mark.parametrize(
    "changes",
    [{}, {"adaptive_rank": False, "tied": False}, {"streams": 1, "rotary": False}, {"components": 3, "rank": 2}],
)
def test_there_and_back_bit_by_bit(changes):
    want = SMALL.replace(**changes)
    weights = published(want)
    config, params = interop.from_original("shc", weights, **HINTS, use_rope=want.rotary)
    assert config == want
    back = interop.to_original("shc", config, params)
    for name, x in weights.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
    # With the constants that the original keeps among its weights, which tell whether positions are rotated.
    again, same = interop.from_original("shc", {"model": back}, **HINTS)
    assert again == want
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_constants_are_the_originals():
    config, params = interop.from_original("shc", published(SMALL), **HINTS)
    back = interop.to_original("shc", config, params)
    constants = {name.removeprefix("layers.1."): x for name, x in back.items() if name not in published(SMALL)}
    assert back["lm_head.weight"] is not None
    assert constants["attention.rope.cos_cached"].shape == (1, 1, 8192, 4)
    np.testing.assert_allclose(constants["attention.rope.sin_cached"][0, 0, 3], np.sin([3, 0.03, 3, 0.03]), rtol=1e-6)
    np.testing.assert_allclose(constants["attention.rope.inv_freq"], [1, 0.01], rtol=1e-6)
    np.testing.assert_array_equal(constants["routing.H_res.cayley.triu_row"], [0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(constants["routing.H_res.cayley.triu_col"], [1, 2, 3, 2, 3, 3])
    np.testing.assert_array_equal(constants["rank_selector.rank_values"], [1, 2, 3, 4])


def test_folders_are_the_originals(tmp_path):
    config, params = interop.from_original("shc", published(SMALL), **HINTS)
    for _ in range(2):  # an earlier export is replaced
        interop.save_shc(tmp_path / "out", config, params)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["ffn_dim"], stored["n_streams"] == (7, 4)
    again, loaded = interop.load_shc(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    (tmp_path / "out" / "config.json").write_text(json.dumps(stored | {"n_streams": 2}))
    with pytest.raises(interop.InteropError, match="n_streams=2 contradicts the tensors, which say 4"):
        interop.load_shc(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(interop.InteropError, match="not valid JSON"):
        interop.load_shc(tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(interop.InteropError, match=r"config.json cannot be read"):
        interop.load_shc(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(interop.InteropError, match="holds other files"):
        interop.save_shc(tmp_path / "full", config, params)


@pytest.mark.parametrize(
    ("hints", "fault"),
    [
        ({"ffn_dim": 8}, "ffn_dim=8 contradicts the tensors, which say 7"),
        ({"use_rope": 1}, "use_rope must be true or false, got 1"),
        ({"n_heads": 3}, "heads 3 must divide the width 8"),
        ({"max_seq_len": 9000}, "max_len must be at most 8192"),
        ({"tie_embeddings": False}, "tie_embeddings=False contradicts"),
        ({"n_stream": 4}, "did you mean 'n_streams'"),
    ],
)
def test_hints_that_do_not_fit_are_refused(hints, fault):
    with pytest.raises(interop.InteropError, match=fault):
        interop.from_original("shc", published(SMALL), **HINTS | hints)


def test_a_missing_tensor_is_named_and_another_kind_of_model_refused():
    weights = published(SMALL)
    del weights["layers.1.routing.H_res.cayley.params"]
    with pytest.raises(interop.InteropError, match=r"layers\.1\.routing\.H_res\.cayley\.params"):
        interop.from_original("shc", weights, **HINTS)
    with pytest.raises(interop.InteropError, match="of rank 2 is missing"):
        interop.from_original("shc", {"final_norm.weight": np.ones(8, np.float32)})
    other = shc(vocab_size=13, max_len=9, width=8, layers=1, mixer=shc().mixer.replace(heads=2))
    params = mhc_jax.init(other, jax.random.key(0))
    with pytest.raises(interop.InteropError, match="hold a 'shc_original', not a 'lm'"):
        interop.to_original("shc", other, params)
    with pytest.raises(interop.InteropError, match="hold a 'shc_original', not a 'lm'"):
        interop.save_shc("unwritten", other, params)
