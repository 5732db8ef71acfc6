"""Two processes that hold one sliced model between them, and change how it is sliced when they resume."""

import jax
import numpy as np
import pytest

from mhc_jax.models import mhc_ssm
from train.storage.restore import load_run
from train.tests.runs import finish, measured, offer, start, start_two, tiny_run

STEPS, HALF = 12, 6


@pytest.mark.slow
def test_two_processes_slice_parameters_then_products(tmp_path):
    config = tiny_run(tmp_path)
    config = config.replace(
        model=mhc_ssm("adapters", vocab_size=None, max_len=None, width=16, layers=2),
        # A constant rate, so that the first half does not depend on the length of the run.
        optim=config.optim.replace(lr=1e-2, schedule="constant"),
        train=config.train.replace(steps=STEPS, eval_every=HALF),
        checkpoint=config.checkpoint.replace(every=0),
    )
    offer(config, tmp_path)
    finish(start(tmp_path, "alone"))
    finish(*start_two(tmp_path, "together", "--mesh.fsdp", "2", "--train.steps", str(HALF)))
    output, _ = finish(*start_two(tmp_path, "together", "--mesh.tensor", "2", "--train.resume", "True"))
    assert f"at step {HALF}" in output

    def losses(name):
        return [line["loss"] for line in measured(tmp_path / name) if "loss" in line]

    assert len(losses("together")) == STEPS
    # Sums over batch and width are taken in another order: float32 rounding, grown over 12 steps.
    np.testing.assert_allclose(losses("together"), losses("alone"), rtol=2e-5)
    found, expected = (load_run(tmp_path / name, "last")[1] for name in ("together", "alone"))
    distance = jax.tree.map(lambda x, y: float(np.linalg.norm(x - y) / np.linalg.norm(y)), found, expected)
    assert max(jax.tree.leaves(distance)) < 1e-3
