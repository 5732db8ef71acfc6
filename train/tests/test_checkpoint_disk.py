"""Checkpoints that the disk refuses: one line, and what was saved before stays good."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from train.storage import manifest
from train.storage.checkpoint import CheckpointError, Checkpoints
from train.tests.checkpoint_writer import state_at

SHAPES = jax.eval_shape(lambda: state_at(0))


def save(checkpoints, step):
    checkpoints.save(step, state_at(step), {}, {}, metric=None)


@pytest.fixture
def run(tmp_path):
    """Steps 10 and 20."""
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 10)
        save(checkpoints, 20)
    return tmp_path


def assert_is_step(found, step):
    assert int(found[0].step) == step


def limited(body: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs ``body`` in a process that may write no file longer than a kilobyte, after saving step 30."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from train.storage.checkpoint import CheckpointError, Checkpoints
from train.tests.checkpoint_writer import state_at
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    with Checkpoints(Path({str(folder)!r}), 2) as checkpoints:
        checkpoints.save(30, state_at(30), {{}}, {{}}, metric=None)
        {body}
except CheckpointError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("body", [pytest.param("checkpoints.wait()", marks=pytest.mark.slow), "pass"])
def test_what_the_disk_refuses_is_one_line_and_earlier_steps_survive(run, body):
    """Wherever the late failure of the writing thread surfaces: when waited for, or when the run is left."""
    found = limited(body, run)
    assert found.stdout == (
        f"step 30 could not be written to {run / 'checkpoints'} (File too large); the last good checkpoint is step "
        "20; make room or set the permissions there, then resume\n"
    )
    assert found.stderr == ""
    assert Checkpoints(run, 2).steps() == [10, 20]
    assert_is_step(Checkpoints(run, 2).restore(SHAPES), 20)
    with Checkpoints(run, 2) as checkpoints:  # what the failed writer left half done is cleared by the next save
        save(checkpoints, 30)
    assert not list((run / "checkpoints").glob("*tmp*"))


def refuse(path):
    raise OSError(28, "No space left on device")


def test_a_manifest_that_cannot_be_written_is_one_line(run, monkeypatch):
    monkeypatch.setattr(manifest, "seal", refuse)
    with Checkpoints(run, 2) as checkpoints:
        save(checkpoints, 30)
        with pytest.raises(CheckpointError, match="step 30 could not be written to .*No space left.* is step 20;"):
            checkpoints.wait()
    assert_is_step(Checkpoints(run, 2).restore(SHAPES, step=20), 20)


def test_a_lost_save_does_not_hide_the_fault_that_ended_the_run(run, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "seal", refuse)

    def train():
        with Checkpoints(run, 2) as checkpoints:
            save(checkpoints, 30)
            raise RuntimeError("the fault")

    with pytest.raises(RuntimeError, match="the fault"):
        train()
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: step 30 could not be written")
