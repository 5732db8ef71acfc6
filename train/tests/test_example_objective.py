"""An objective from outside: its sums are those of whole logits, and it is trained, reported and scored."""

import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import registry
from mhc_jax.models import mhc_ssm
from mhc_jax.ops.loss import IGNORE, cross_entropy
from train.loop.run import run
from train.storage.folder import read_metrics
from train.tests.runs import tiny_run

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = mhc_ssm("baseline", vocab_size=11, max_len=8, width=12, layers=1)


@pytest.fixture(scope="module")
def objective():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import label_smoothing

        yield label_smoothing.LabelSmoothingConfig()
    sys.modules.pop("label_smoothing")
    registry._REGISTRY["objective"].pop("label_smoothing")


@pytest.mark.slow
def test_sums_and_gradients_are_those_of_whole_logits(objective):
    params = mhc_jax.init(MODEL, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 11)
    targets = np.roll(tokens, -1, axis=1)
    targets[0, 5] = IGNORE

    def whole(params):
        logits = mhc_jax.apply(MODEL, params, tokens).logits_BTV
        loss, count = cross_entropy(logits, targets)
        even = -jax.nn.log_softmax(logits).mean(-1)[targets != IGNORE].sum()
        sums = {"loss": loss, "tokens": count, "even": even, "smoothing": 0.5 * (even - loss) / count}
        smooth = 0.5 * jax.nn.one_hot(targets, 11) + 0.5 / 11
        return -(smooth * jax.nn.log_softmax(logits)).sum(-1)[targets != IGNORE].mean(), sums

    def chunked(params, chunk):
        batch = {"inputs": tokens, "targets": targets}
        sums, penalties = objective.replace(weight=0.5, chunk=chunk).sums(MODEL, params, batch)
        return sums["loss"] / sums["tokens"] + penalties["smoothing"], sums | penalties

    (_, expected), gradients = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    for chunk in (3, 20):
        (_, found), others = jax.jit(jax.value_and_grad(chunked, has_aux=True), static_argnums=1)(params, chunk)
        assert found.keys() == expected.keys()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), found, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), others, gradients)


@pytest.mark.slow
def test_it_keeps_a_model_from_certainty_and_is_reported(objective, tmp_path):
    found = []
    for weight in (0.0, 0.5):
        config = tiny_run(tmp_path)
        config = config.replace(
            run_dir=str(tmp_path / f"{weight}"),
            objective=objective.replace(weight=weight),
            train=config.train.replace(steps=30, eval_every=0),
        )
        summary = run(config).summary
        lines = [line for line in read_metrics(tmp_path / f"{weight}" / "metrics.jsonl") if "loss" in line]
        assert len(lines) == 30
        assert all({"smoothing", "even"} <= line.keys() for line in lines)
        assert summary["val_ppl"] == pytest.approx(math.exp(summary["val_loss"]))  # without the smoothing
        found.append(summary["val_even"])
    assert found[1] < 0.8 * found[0]
