"""A run killed at a random step, resumed, stopped by a signal and resumed again ends bitwise as one never disturbed."""

import random
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from train import prepare
from train.checkpoint import Checkpoints
from train.optimizer import make_optimizer
from train.step import init_state
from train.tests.runs import measured, offer, signal_at, start, tiny_run

STEPS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Offers a configuration with dropout, so that its randomness counts."""
    folder = tmp_path_factory.mktemp("resume")
    config = tiny_run(folder)
    config = config.replace(
        model=config.model.replace(dropout=0.1),
        train=config.train.replace(steps=STEPS, sample_tokens=0, eval_every=60),
        checkpoint=config.checkpoint.replace(every=20),
    )
    offer(config, folder)
    return folder


def final(folder: Path, name: str):
    config = prepare.resolve(prepare.RunConfig.from_json((folder / "tiny.json").read_text()))
    optimizer = make_optimizer(config.optim, STEPS)
    abstract = jax.eval_shape(lambda: init_state(config, optimizer))
    return Checkpoints(folder / name, 2).restore(abstract, STEPS)


def test_killed_and_interrupted_run_equals_the_undisturbed_one_bitwise(folder):
    undisturbed = start(folder, "whole")
    kill_at, term_at = random.SystemRandom().choice(range(25, 100)), random.SystemRandom().choice(range(110, 180))
    print(f"kill -9 at step {kill_at}, SIGTERM at step {term_at}")
    assert undisturbed.wait(timeout=240) == 0, undisturbed.communicate()[0]

    killed = start(folder, "broken")
    signal_at(killed, folder / "broken", kill_at, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "broken" / "summary.json").exists()

    interrupted = start(folder, "broken", "--train.resume", "True")
    signal_at(interrupted, folder / "broken", term_at, signal.SIGTERM)
    out = interrupted.communicate(timeout=60)[0]
    assert interrupted.returncode == 0, out
    assert f"resumed {folder / 'broken'} at step" in out
    assert "interrupted: saved step" in out
    assert "resume with: python -m train tiny" in out

    resumed = start(folder, "broken", "--train.resume", "True")
    out = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 0, out
    assert f"resumed {folder / 'broken'} at step" in out

    (state, position, _), (other_state, other_position, _) = final(folder, "whole"), final(folder, "broken")
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert position == other_position
    assert measured(folder / "whole") == measured(folder / "broken")
    assert [line["step"] for line in measured(folder / "whole") if "loss" in line] == list(range(1, STEPS + 1))
