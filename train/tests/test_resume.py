"""A run killed at a random step, resumed, stopped by a signal and resumed again ends bitwise as one never disturbed."""

import random
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from mhc_jax.functional import param_info
from train.loop import resolve
from train.storage.checkpoint import Checkpoints
from train.tests.runs import finish, measured, offer, start, tiny_run
from train.update.optimizer import make_optimizer
from train.update.step import init_state

STEPS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Offers a configuration with dropout, so that its randomness counts."""
    folder = tmp_path_factory.mktemp("resume")
    config = tiny_run(folder)
    config = config.replace(
        model=config.model.replace(dropout=0.1),
        train=config.train.replace(steps=STEPS, eval_every=60),
        checkpoint=config.checkpoint.replace(every=20),
    )
    offer(config, folder)
    return folder


def final(folder: Path, name: str):
    config = resolve.resolve(resolve.RunConfig.from_json((folder / "tiny.json").read_text()))
    optimizer = make_optimizer(config.optim, STEPS, param_info(config.model))
    abstract = jax.eval_shape(lambda: init_state(config, optimizer))
    return Checkpoints(folder / name, 2).restore(abstract, STEPS)


@pytest.mark.slow
def test_killed_and_interrupted_run_equals_the_undisturbed_one_bitwise(folder):
    """However early the kill comes: without a finished checkpoint the run starts again, and says so."""
    kill_at, term_at = random.SystemRandom().randrange(1, 100), random.SystemRandom().randrange(100, 200)
    print(f"kill -9 at step {kill_at}, SIGTERM at step {term_at}")
    broken = folder / "broken"
    finish(start(folder, "whole"))

    finish(start(folder, "broken", signal_at=(kill_at, signal.SIGKILL)), status=-signal.SIGKILL)
    assert not (broken / "summary.json").exists()
    # Saving is asynchronous: which checkpoint the kill let finish, if any, is not decided by its step.
    step = Checkpoints(broken, 2).latest_step()
    assert step is None or step <= kill_at

    again = start(folder, "broken", "--train.resume", "True", signal_at=(term_at, signal.SIGTERM))
    (out,) = finish(again, status=143)
    assert (f"resumed {broken} at step {step}" if step else f"no finished checkpoint in {broken}") in out
    assert "interrupted: saved step" in out
    assert f"-m train --resume {broken} --import tiny_plugin" in out.splitlines()[-1].partition("resume with: ")[2]
    step = Checkpoints(broken, 2).latest_step()
    assert term_at <= step < STEPS

    (out,) = finish(start(folder, "broken", "--train.resume", "True"))
    assert f"resumed {broken} at step {step}" in out

    (state, position, _), (other_state, other_position, _) = final(folder, "whole"), final(folder, "broken")
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert position == other_position
    assert measured(folder / "whole") == measured(broken)
    assert [line["step"] for line in measured(folder / "whole") if "loss" in line] == list(range(1, STEPS + 1))
