"""Worker of test_distill.py: one student on one device and on two, which share student, teacher and batch.

Runs in a process of its own, because the number of devices is fixed when JAX starts: ``python two_devices.py FOLDER``
trains the configuration ``FOLDER/two.json`` to ``FOLDER/MESH`` and prints one JSON object on its last line.
"""

import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from train.config import MeshConfig, RunConfig
from train.devices import sharding
from train.loop import teacher
from train.loop.run import run
from train.storage.folder import read_metrics

MESHES = {"data": MeshConfig(data=2), "fsdp": MeshConfig(fsdp=2)}


def main(folder: Path) -> None:
    config = RunConfig.from_json((folder / "two.json").read_text())
    report, placed = {}, teacher.place

    def place(*arguments):
        found = placed(*arguments)
        shares = {x.size / np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(found)}
        report["slices"] = max(shares)
        return found

    sys.modules["train.loop.run"].place = place
    for name, mesh in MESHES.items():
        run(config.replace(run_dir=str(folder / name), mesh=mesh))
        lines = read_metrics(folder / name / "metrics.jsonl")
        losses = [[line[key] for key in ("loss", "kl", "hidden", "cross_entropy")] for line in lines if "kl" in line]
        report[name] = {"losses": losses, "slices": report.pop("slices")}
    assert sharding.make_mesh(MESHES["fsdp"]).size == 2
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
