"""What a model is made of and what a step costs, against counts by hand."""

import jax
import pytest

from mhc_jax.accounting import flops_per_token
from mhc_jax.functional import param_shapes
from mhc_jax.models import mhc_ssm
from train.measure import cost
from train.tests.tiny import tiny_config, tiny_export


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def test_parameters_are_all_counted(tiny):
    _, params, _ = tiny
    rows = cost.parameter_rows(params)
    leaves = jax.tree.leaves(params)
    assert rows[-1]["count"] == sum(leaf.size for leaf in leaves)
    assert rows[-1]["bytes"] == sum(leaf.nbytes for leaf in leaves)
    norm = next(row for row in rows if row["module"] == "blocks.mixer.norm")
    assert norm == {"module": "blocks.mixer.norm", "parameters": "scale (2, 8)", "count": 16, "bytes": 64}


def test_published_sizes():
    shapes = param_shapes(mhc_ssm("adapters"))
    assert cost.parameter_rows(shapes)[-1]["count"] == 33_791_684


@pytest.mark.slow
def test_operations_do_not_depend_on_how_loops_are_run(tiny):
    config = tiny[0]
    other = config.replace(train=config.train.replace(accumulate=2), objective=config.objective.replace(chunk=4))
    assert cost.step_flops(other) == cost.step_flops(config)


def test_operations_agree_with_the_count_by_hand(tmp_path):
    config = tiny_config(tmp_path)
    wide = config.replace(model=config.model.replace(width=128))
    tokens = config.data.batch_size * config.data.seq_len
    assert cost.step_flops(wide) / tokens == pytest.approx(flops_per_token(wide.model, config.data.seq_len), rel=0.35)


@pytest.mark.slow
def test_memory_is_in_mebibytes_and_adds_up(tiny):
    config, params = tiny[0], tiny[1]
    rows = {row["one training step"]: (row["value"], row["unit"]) for row in cost.cost_rows(config)}
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 2**20
    assert rows["parameters"] == (pytest.approx(held), "MiB")
    names = ("parameters", "optimizer state", "activations, gradients and scratch")
    assert rows["all of these"][0] == pytest.approx(sum(rows[name][0] for name in names))
    lowered = cost._lowered_step(config).compile().memory_analysis()
    assert rows[names[2]][0] == pytest.approx(lowered.temp_size_in_bytes / 2**20, rel=0.05)
