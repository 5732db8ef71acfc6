"""A channel mixer from outside that leaves an auxiliary loss: it trains, is logged, and agrees with its twin."""

import sys
from pathlib import Path

import jax
import pytest

import mhc_jax
from mhc_jax import registry
from parity_tests.cases.models import forward, gradients
from parity_tests.compare import failures, judge
from parity_tests.systems import System
from parity_tests.systems.gpt import tiny_gpt
from train.loop.run import run
from train.storage.folder import read_metrics
from train.tests.runs import tiny_run
from train.update.step import RESERVED

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def part():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import squared_relu
        import squared_relu_torch  # noqa: F401  registers the twin

        yield squared_relu.SquaredReLUConfig(activity=0.5)
    for name in ("squared_relu", "squared_relu_torch"):
        sys.modules.pop(name)
    for axis in ("channel", "config"):
        registry._REGISTRY[axis].pop("squared_relu")


@pytest.mark.parametrize("case", [forward, pytest.param(gradients, marks=pytest.mark.slow)])
def test_it_agrees_with_its_twin(part, case):
    found = judge(case(System("squared ReLU", tiny_gpt("mhc", mlp=part))))
    assert not failures(found)
    assert any("mlp.branch.hidden" in row.tap for row in found)


@pytest.mark.slow
def test_its_loss_is_logged_and_lowers_what_it_weighs(part, tmp_path):
    activity = []
    for weight in (1e-6, 1.0):
        config = tiny_run(tmp_path)
        model = config.model.replace(mlp=part.replace(activity=weight))
        train = config.train.replace(steps=40, eval_every=0)
        run(config.replace(run_dir=str(tmp_path / f"{weight}"), model=model, train=train))
        lines = [line for line in read_metrics(tmp_path / f"{weight}" / "metrics.jsonl") if "activity" in line]
        assert len(lines) == 40
        assert {*lines[0]} - {"loss", "tokens", "activity"} <= RESERVED
        activity.append(sum(line["activity"] for line in lines) / weight)
    assert 0 < activity[1] < activity[0] / 3


@pytest.mark.slow
def test_evaluation_leaves_it_out(part):
    config = tiny_gpt("mhc", mlp=part)
    params = mhc_jax.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, config.vocab_size)
    found = mhc_jax.apply(config, params, tokens)
    assert found.penalties.keys() == {"activity"}
    assert found.penalties["activity"] > 0
