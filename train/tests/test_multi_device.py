"""Training on meshes of 8 virtual devices: equal to one device up to rounding, sliced, and with no needless talk."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from mhc_jax.functional import param_info, param_shapes
from train.devices import sharding
from train.tests.meshes import CHUNK, DEVICES, LENGTH, MEASURED, MESHES, MODELS, ROWS, STREAMS, run_config

WORKER = Path(__file__).with_name("multi_device.py")
REPOSITORY = WORKER.parents[2]

# How much further than rounding a mesh may be from one device. Rounding is measured: the same device, the same steps,
# the sequences of each batch in reverse. A mesh reorders more sums than that (over devices, and over a sliced width):
# up to 35 times the distance was seen. An error in any communication is at least 1,000 times further away.
MARGIN = 100
FLOAT32_EPS = 1.2e-7
FLOAT32 = 4
# Parameters that all streams share, by how many products there are: adapters read every stream, and write the one
# output of the branch to every stream.
SHARED = {"(down|norm)\\..*": STREAMS + 1, "up\\..*": 2 * STREAMS, "dynamic_(alpha|beta)_fn": STREAMS}


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=pytest.mark.slow)])
def reports(request, tmp_path_factory):
    """What the worker printed: one process trains the models on their meshes."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("run")), request.param]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def runs(reports):
    """Of every model and mesh: both names, the report of the model, and what was found on the mesh."""
    for model, report in reports.items():
        for mesh, found in report["meshes"].items():
            yield model, mesh, report, found


def relative(found, truth):
    return max(abs(x - y) / abs(y) for x, y in zip(found, truth, strict=True))


def test_training_learns_and_rounding_is_small(reports):
    losses = reports["mhc_ssm"]["losses"]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.1
    for report in reports.values():
        assert relative(report["reordered_losses"], report["losses"]) < 20 * FLOAT32_EPS
        assert max(report["reordered_distances"].values()) < 1e-3


def test_losses_equal_one_device(reports):
    for model, mesh, report, found in runs(reports):
        rounding = max(FLOAT32_EPS, relative(report["reordered_losses"], report["losses"]))
        assert relative(found["losses"], report["losses"]) < MARGIN * rounding, (model, mesh)


def test_parameters_equal_one_device(reports):
    for model, mesh, report, found in runs(reports):
        rounding, distances = report["reordered_distances"], found["distances"]
        assert distances.keys() == rounding.keys()
        far = {
            name: distances[name] / x for name, x in rounding.items() if distances[name] > MARGIN * max(x, FLOAT32_EPS)
        }
        assert not far, (model, mesh)


def test_checkpoint_of_another_mesh_restores_bitwise(reports):
    """The first of them restores what one device saved."""
    for mesh, found in reports["mhc_ssm"]["meshes"].items():
        assert found["restored_bitwise"], mesh
        assert found["restored_sharded"], mesh


def test_a_device_holds_its_slice_of_parameters_and_moments(reports):
    most = {"data": 1.0, "fsdp": 0.2, "data_fsdp": 0.35, "mix": 0.3, "tensor": 0.2}
    for mesh, found in reports["mhc_ssm"]["meshes"].items():
        assert found["bytes"] <= most[mesh] * reports["mhc_ssm"]["bytes"], mesh
        assert found["moments_follow"], mesh


def test_a_device_computes_the_rows_of_its_slice_alone(reports):
    for model, mesh, _, found in runs(reports):
        assert not sizes_of_several_slices(found["program"]["sizes"], mesh), (model, mesh)
        if (model, mesh) in MEASURED:
            assert not sizes_of_several_slices(found["sizes_for_streams"], mesh), (model, mesh)


def test_the_donated_state_is_written_in_place(reports):
    for model, mesh, _, found in runs(reports):
        assert found["program"]["aliased"] >= found["program"]["state"], (model, mesh)


def test_slicing_parameters_costs_one_gathered_layer_and_no_more(reports):
    for model, report in reports.items():
        blocks = jax.tree.leaves(param_shapes(MODELS[model])["blocks"])
        layer = sum(math.prod(leaf.shape[1:]) * FLOAT32 for leaf in blocks)
        temporaries = {mesh: found["program"]["temporaries"] for mesh, found in report["meshes"].items()}
        if {"data", "fsdp"} <= temporaries.keys():
            assert temporaries["fsdp"] <= temporaries["data"] + layer, model


def test_devices_exchange_parameters_gradients_and_sums_of_sliced_products_alone(reports):
    """Bytes that arrive at a device in one step, by kind, against arithmetic on the parameters' shapes."""
    for model, mesh, _, found in runs(reports):
        collectives = found["program"]["collectives"]
        reduced = collectives.get("all-reduce", 0) + collectives.get("reduce-scatter", 0)
        moved = collectives.get("all-to-all", 0) + collectives.get("collective-permute", 0)
        summed, (once, always) = gradients(model, mesh) + sums_of_products(model, mesh), gathers(model, mesh)
        # Beside them statistics of the loss, and norms of the gradients.
        assert 0.85 * summed <= reduced <= 1.03 * summed + 2**12, (model, mesh, summed, collectives)
        assert 0.98 * once <= collectives.get("all-gather", 0) <= 1.02 * always, (model, mesh, once, collectives)
        assert moved <= halves(model, mesh), (model, mesh, collectives)
        assert "collective-broadcast" not in collectives


def sizes_of_several_slices(sizes, mesh):
    slices = slices_of(mesh)
    rows = ROWS * DEVICES // slices
    # What is left of a size without the rows is odd or has more factors of two than the slices, see meshes.py.
    others = [size // rows for size in sizes if size and size % rows == 0]
    assert others, "no array has the rows of a device"
    return [rows * other for other in others if 1 < (other & -other) <= slices]


def accumulated(model):
    return run_config(model).train.accumulate


def slices_of(mesh):
    return (MESHES[mesh].data or 1) * MESHES[mesh].fsdp


def parameters(model, mesh):
    """Name, bytes of what one slice of ``tensor`` uses, and by how much ``fsdp`` and ``tensor`` slice it."""
    axes = MESHES[mesh]
    sizes = {"fsdp": axes.fsdp, "tensor": axes.tensor}
    infos = param_info(MODELS[model])
    abstract = AbstractMesh((axes.data, axes.fsdp, axes.tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    for name, spec in sharding.param_specs(infos, abstract).items():
        used = {axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}
        fsdp, tensor = (sizes[axis] if axis in used else 1 for axis in ("fsdp", "tensor"))
        if {"streams", "position"} & set(infos[name].axes):
            fsdp, tensor = fsdp * tensor, 1  # see sharding.GATHERED
        yield name, math.prod(infos[name].shape) * FLOAT32 // tensor, fsdp, tensor


def gathers(model, mesh):
    """What a device lacks of the parameters is gathered: in the layers for both passes, outside them perhaps once."""
    lacking = [(name.startswith("blocks"), size) for name, size, fsdp, _ in parameters(model, mesh) if fsdp > 1]
    inside, outside = (sum(size for layers, size in lacking if layers == where) for where in (True, False))
    return 2 * accumulated(model) * inside + outside, accumulated(model) * (2 * inside + outside)


def gradients(model, mesh):
    """Each is reduced for every use, within ``fsdp`` and then within ``data``: the head's for every chunk."""
    total = 0
    for name, size, fsdp, _ in parameters(model, mesh):
        uses = 1
        if name == "embed.tokens":
            uses = LENGTH // CHUNK + 1
        for pattern, of_streams in SHARED.items():
            if re.fullmatch(rf"blocks\.\w+\.residual\.{pattern}", name):
                uses = of_streams
        total += size * uses * (1 + 1 / fsdp if fsdp > 1 and MESHES[mesh].data > 1 else 1)
    return accumulated(model) * total if slices_of(mesh) > 1 else 0


def sums_of_products(model, mesh):
    """Activations (rows, T, D) that ``tensor`` has in parts: after row-wise products, and before column-wise ones."""
    if MESHES[mesh].tensor == 1:
        return 0
    each = {r"(in|[qkv]|up)_proj|(out|down)_proj": 1, "down": STREAMS + 1, "up": 2 * STREAMS}
    times = 2  # the lookup in slices of the vocabulary, and the gradient of the head's input
    for name, *_ in parameters(model, mesh):
        owner = name.removesuffix(".kernel").rsplit(".", 1)[-1]
        times += MODELS[model].layers * sum(
            count for pattern, count in each.items() if name.endswith(".kernel") and re.fullmatch(pattern, owner)
        )
    return times * activation(model, mesh)


def activation(model, mesh):
    """Bytes of (rows, T, D) over all micro-batches."""
    branches = MODELS[model].residual.branches
    return accumulated(model) * branches * ROWS * DEVICES // slices_of(mesh) * LENGTH * MODELS[model].width * FLOAT32


def halves(model, mesh):
    """The two halves of the SSM's first product lie on different devices, and are spread over all of them."""
    tensor = MESHES[mesh].tensor
    if tensor == 1 or model != "mhc_ssm":
        return 0
    return MODELS[model].layers * 10 * activation(model, mesh) / tensor


@pytest.mark.slow
def test_an_evaluation_of_many_batches_ends_where_devices_share_two_threads():
    """All at once they block one another: the programs in front wait for threads that dispatches behind them hold."""
    worker = WORKER.with_name("many_batches.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, str(worker)], cwd=REPOSITORY, env=environment, check=True, timeout=300)
