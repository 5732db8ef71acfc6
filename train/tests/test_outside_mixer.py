"""A mixer from outside with names of its own: trained, decayed, sliced and counted by what its parameters are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.tests.meshes import MODELS, SIZES

WORKER = Path(__file__).with_name("outside_mixer.py")
REPOSITORY = WORKER.parents[2]
A_LOG, W, S = (f"blocks.mixer.branch.{name}" for name in ("A_log", "W", "s"))


@pytest.fixture(scope="module")
def report():
    """What the worker printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "examples")]),
        "COLUMNS": "300",
    }
    command = [sys.executable, str(WORKER)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_it_trains_on_eight_devices_as_on_one(report):
    assert report["losses"][-1] < report["losses"][0]
    assert report["sliced_losses"] == pytest.approx(report["losses"], rel=1e-5)
    assert report["distances"][A_LOG] < 1e-3


@pytest.mark.slow
def test_its_matrix_alone_is_decayed(report):
    assert report["decayed"]["matrices"] == {A_LOG: False, W: True, S: False}
    assert all(report["decayed"]["all"].values())


@pytest.mark.slow
def test_axes_with_known_names_are_sliced_and_others_held_whole(report):
    assert report["specs"][A_LOG] == [None, None, ["tensor", "fsdp"]]
    assert report["specs"][W] == [None, "fsdp", "tensor"]
    assert report["specs"][S] == [None, None]


@pytest.mark.slow
def test_the_table_says_so(report):
    rows = {
        row[0]: row[1:] for line in report["table"].splitlines() for row in [[x.strip() for x in line.split("|")[1:]]]
    }
    assert rows[A_LOG][:4] == ["vector", "layer decay channel", "2x1x32", "(-, -, tensor*fsdp)"]
    assert rows[S][:4] == ["vector", "layer -", "2x32", "(-, -)"]


@pytest.mark.slow
def test_its_matrix_is_counted(report):
    width, mlp = SIZES["width"], 8 * SIZES["width"] ** 2
    head = SIZES["vocab_size"] * width
    assert MODELS["gpt2"].head == "tied"
    assert report["flops"] == 6 * (SIZES["layers"] * (width**2 + mlp) + head)
