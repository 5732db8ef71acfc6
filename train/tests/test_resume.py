"""A run killed at a random step, resumed, stopped by a signal and resumed again ends bitwise as one never disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from train import prepare
from train.checkpoint import Checkpoints
from train.metrics import read_metrics
from train.optimizer import make_optimizer
from train.step import init_state
from train.tests.runs import tiny_run

STEPS = 240
PLUGIN = """
import pathlib
from mhc_jax.config import ConfigError
from mhc_jax.registry import register
from train.config import RunConfig

@register("config", "tiny")
def tiny():
    return RunConfig.from_json(pathlib.Path(__file__).with_name("tiny.json").read_text())
"""
MEASURED = ("loss", "lr", "grad_norm", "param_norm", "update_norm", "tokens", "skipped", "val_loss", "val_bpb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration ``tiny`` that the command loads as a plug-in; with dropout, so that its randomness counts."""
    folder = tmp_path_factory.mktemp("resume")
    config = tiny_run(folder)
    config = config.replace(
        model=config.model.replace(dropout=0.1),
        train=config.train.replace(steps=STEPS, sample_tokens=0, eval_every=60),
        checkpoint=config.checkpoint.replace(every=20),
    )
    (folder / "tiny.json").write_text(config.to_json())
    (folder / "tiny_plugin.py").write_text(PLUGIN)
    return folder


def start(folder: Path, name: str, *flags: str) -> subprocess.Popen:
    argv = ["-m", "train", "tiny", "--import", "tiny_plugin", "--run-dir", str(folder / name), *flags]
    return subprocess.Popen(
        [sys.executable, *argv],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_done(run_dir: Path) -> int:
    """The last step in the metrics, whether or not the process is in the middle of a line."""
    return max((line["step"] for line in read_metrics(run_dir / "metrics.jsonl")), default=0)


def stop_at(process: subprocess.Popen, run_dir: Path, step: int, number: signal.Signals) -> str:
    """Sends a signal once the run has done ``step`` steps; what the process printed."""
    while steps_done(run_dir) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=120)[0]


def final(folder: Path, name: str):
    config = prepare.resolve(prepare.RunConfig.from_json((folder / "tiny.json").read_text()))
    optimizer = make_optimizer(config.optim, STEPS)
    abstract = jax.eval_shape(lambda: init_state(config, optimizer))
    return Checkpoints(folder / name, 2).restore(abstract, STEPS)


def measured(folder: Path, name: str) -> list[dict]:
    lines = read_metrics(folder / name / "metrics.jsonl")
    return [{key: line[key] for key in ("step", *MEASURED) if key in line} for line in lines]


def test_killed_and_interrupted_run_equals_the_undisturbed_one_bitwise(folder):
    undisturbed = start(folder, "whole")
    kill_at, term_at = random.SystemRandom().choice(range(25, 100)), random.SystemRandom().choice(range(110, 180))
    print(f"kill -9 at step {kill_at}, SIGTERM at step {term_at}")
    assert undisturbed.wait(timeout=240) == 0, undisturbed.communicate()[0]

    killed = start(folder, "broken")
    stop_at(killed, folder / "broken", kill_at, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "broken" / "summary.json").exists()

    interrupted = start(folder, "broken", "--train.resume", "True")
    out = stop_at(interrupted, folder / "broken", term_at, signal.SIGTERM)
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
    assert measured(folder, "whole") == measured(folder, "broken")
    assert [line["step"] for line in measured(folder, "whole") if "loss" in line] == list(range(1, STEPS + 1))
