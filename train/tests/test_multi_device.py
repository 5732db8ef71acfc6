"""Training on meshes of 8 virtual devices equals training on one device, up to float32 rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("multi_device.py")
REPOSITORY = WORKER.parents[2]
MESHES = ("data", "fsdp", "tensor", "mix")

# How much further than rounding a mesh may be from one device. Rounding is measured: the same device, the same steps,
# the sequences of each batch in reverse. A mesh reorders more sums than that (over devices, and over a sliced width):
# up to 35 times the distance was seen. An error in any communication is at least 1,000 times further away.
MARGIN = 100
FLOAT32_EPS = 1.2e-7


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What the worker printed: one process trains mHC-SSM on every mesh, and a GPT on one."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("run"))]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rematerialization" not in done.stderr, "a sharding makes XLA hold a whole array on every device"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(reports):
    return reports["mhc_ssm"]


def relative(found, truth):
    return max(abs(x - y) / abs(y) for x, y in zip(found, truth, strict=True))


@pytest.mark.parametrize("model", ["mhc_ssm", "gpt"])
def test_training_learns_and_rounding_is_small(reports, model):
    report = reports[model]
    assert report["losses"][-1] < report["losses"][0] - 0.2
    assert relative(report["reordered_losses"], report["losses"]) < 20 * FLOAT32_EPS
    assert max(report["reordered_distances"].values()) < {"mhc_ssm": 1e-4, "gpt": 1e-3}[model]


RUNS = [*(("mhc_ssm", mesh) for mesh in MESHES), ("gpt", "mix")]


@pytest.mark.parametrize(("model", "mesh"), RUNS)
def test_losses_of_20_steps_equal_one_device(reports, model, mesh):
    report = reports[model]
    rounding = max(FLOAT32_EPS, relative(report["reordered_losses"], report["losses"]))
    assert relative(report["meshes"][mesh]["losses"], report["losses"]) < MARGIN * rounding


@pytest.mark.parametrize(("model", "mesh"), RUNS)
def test_parameters_after_20_steps_equal_one_device(reports, model, mesh):
    report = reports[model]
    rounding = report["reordered_distances"]
    found = report["meshes"][mesh]["distances"]
    assert found.keys() == rounding.keys()
    far = {name: found[name] / x for name, x in rounding.items() if found[name] > MARGIN * max(x, FLOAT32_EPS)}
    assert not far


@pytest.mark.parametrize("mesh", MESHES)
def test_checkpoint_of_another_mesh_restores_bitwise(report, mesh):
    assert report["meshes"][mesh]["restored_bitwise"]
    assert report["meshes"][mesh]["restored_sharded"]


@pytest.mark.parametrize(("mesh", "most"), [("data", 1.0), ("fsdp", 0.2), ("tensor", 0.2), ("mix", 0.3)])
def test_a_device_holds_its_slice_of_parameters_and_moments(report, mesh, most):
    assert report["meshes"][mesh]["bytes"] <= most * report["bytes"]
    assert report["meshes"][mesh]["moments_follow"]


def test_an_evaluation_of_many_batches_ends_where_devices_share_two_threads():
    """All at once they block one another: the programs in front wait for threads that dispatches behind them hold."""
    worker = WORKER.with_name("many_batches.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, str(worker)], cwd=REPOSITORY, env=environment, check=True, timeout=300)
