"""Two processes train together; one is interrupted, both stop; a single process finishes the run."""

import signal
import socket

import numpy as np

from train.run import run
from train.tests.runs import measured, offer, signal_at, start, tiny_run


def test_two_processes_equal_one_and_hand_over_to_one(tmp_path):
    config = tiny_run(tmp_path)
    config = config.replace(train=config.train.replace(steps=80, eval_every=30))
    offer(config, tmp_path)
    run(config.replace(run_dir=str(tmp_path / "alone")))

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = ("--distributed.coordinator", address, "--distributed.num-processes", "2", "--distributed.process-id")
    both = [start(tmp_path, "together", *place, index) for index in "01"]
    try:
        signal_at(both[1], tmp_path / "together", 35, signal.SIGTERM)
        outs = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(outs)
    assert "mesh {'data': 2, 'fsdp': 1, 'tensor': 1}" in outs[0]
    assert "interrupted: saved step" in outs[0]
    assert "step" not in outs[1], "only process 0 reports"

    alone = start(tmp_path, "together", "--train.resume", "True")
    out = alone.communicate(timeout=120)[0]
    assert alone.returncode == 0, out
    one, two = measured(tmp_path / "alone"), measured(tmp_path / "together")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for line, other in zip(one, two):
        assert line.keys() == other.keys()
        # Sums over the batch are taken in another order: float32 rounding, grown over 80 steps.
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=2e-3)
