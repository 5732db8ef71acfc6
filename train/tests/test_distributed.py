"""Two processes train together; one is interrupted, both stop; a single process finishes the run."""

import signal

import numpy as np
import pytest

from train.loop.run import run
from train.tests.runs import finish, measured, offer, start, start_two, tiny_run


@pytest.mark.slow
def test_two_processes_equal_one_and_hand_over_to_one(tmp_path):
    config = tiny_run(tmp_path)
    config = config.replace(train=config.train.replace(steps=80, eval_every=30))
    offer(config, tmp_path)
    run(config.replace(run_dir=str(tmp_path / "alone")))

    outs = finish(*start_two(tmp_path, "together", signal_at=(35, signal.SIGTERM)), status=143)
    assert "total on data 2, fsdp 1," in outs[0]
    assert "interrupted: saved step" in outs[0]
    assert outs[1].count("step") == 1, "besides why it ended, only process 0 reports"

    finish(start(tmp_path, "together", "--train.resume", "True"))
    one, two = measured(tmp_path / "alone"), measured(tmp_path / "together")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for line, other in zip(one, two):
        assert line.keys() == other.keys()
        # Sums over the batch are taken in another order: float32 rounding, grown over 80 steps.
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-3)
