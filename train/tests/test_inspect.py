import math

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.ops.sinkhorn import log_sinkhorn
from train import inspect
from train.metrics import flops_per_token
from train.tests.tiny import tiny_config, tiny_export


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def test_parameters_are_all_counted(tiny):
    _, params, _ = tiny
    rows = inspect.parameter_rows(params)
    leaves = jax.tree.leaves(params)
    assert rows[-1]["count"] == sum(leaf.size for leaf in leaves)
    assert rows[-1]["bytes"] == sum(leaf.nbytes for leaf in leaves)
    norm = next(row for row in rows if row["module"] == "blocks.mixer.norm")
    assert norm == {"module": "blocks.mixer.norm", "parameters": "scale (2, 8)", "count": 16, "bytes": 64}


def test_published_sizes():
    shapes = inspect.param_shapes(mhc_ssm("adapters"))
    assert inspect.parameter_rows(shapes)[-1]["count"] == 33_791_684


def test_operations_do_not_depend_on_how_loops_are_run(tiny):
    config = tiny[0]
    other = config.replace(train=config.train.replace(accumulate=2, loss_chunk=4))
    assert inspect.step_flops(other) == inspect.step_flops(config)


def test_operations_agree_with_the_count_by_hand(tmp_path):
    config = tiny_config(tmp_path)
    wide = config.replace(model=config.model.replace(width=128))
    tokens = config.data.batch_size * config.data.seq_len
    assert inspect.step_flops(wide) / tokens == pytest.approx(flops_per_token(wide.model), rel=0.35)


def test_mixing_matrices_are_those_of_the_parameters(tiny):
    config, params, _ = tiny
    found = inspect.mixing(config, params)
    residual = params["blocks"]["mixer"]["residual"]
    expected = log_sinkhorn(residual["res_logits"], iters=config.model.residual.sinkhorn_iters)
    np.testing.assert_allclose(found["h_res"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["h_pre"], jax.nn.softmax(residual["pre_logits"]), rtol=1e-5)
    assert found["h_post"].shape == (2, 4)


def test_numbers_on_known_matrices():
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    matrices = {
        "h_res": np.stack([np.eye(2), np.full((2, 2), 0.5), swap]),
        "h_pre": np.ones((3, 2)),
        "h_post": np.ones((3, 2)),
    }
    identity, uniform, swapped = inspect.mixing_rows(matrices)
    assert (identity["entropy"], identity["|H - I| / |I|"]) == (0.0, 0.0)
    assert uniform["entropy"] == pytest.approx(1.0)
    assert uniform["|H - I| / |I|"] == pytest.approx(1 / math.sqrt(2))
    assert swapped["|H - I| / |I|"] == pytest.approx(math.sqrt(2))
    assert swapped["row sums"] == swapped["column sums"] == "1.0000 .. 1.0000"


def test_command_on_an_export_draws_and_prints(tiny, tmp_path, capsys):
    picture = tmp_path / "mixing.png"
    inspect.main([str(tiny[2]), "--picture", str(picture)])
    text = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    for word in ("blocks.mixer.residual", "trace and compile", "optimizer state", "column sums"):
        assert word in text


def test_command_on_a_name_without_streams(tmp_path, capsys):
    argv = ["mhc_ssm_baseline", "--compile", "False", "--data.tokenizer", "bytes", "--picture", str(tmp_path / "x.png")]
    inspect.main(argv)
    assert "nothing is mixed" in capsys.readouterr().out
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("argv", "fault"),
    [(["mhc_sm"], "did you mean 'mhc_ssm'"), ([], "Missing"), (["quickstart", "--data.batch-size", "0"], "batch_size")],
)
def test_faults_are_named(argv, fault):
    with pytest.raises(ConfigError, match=fault):
        inspect.main(argv)


def test_flags_must_fit_a_trained_model(tiny):
    with pytest.raises(ConfigError, match="do not fit the parameters"):
        inspect.main([str(tiny[2]), "--model.width", "16"])
    assert mhc_jax.load(tiny[2])[0].width == 8
