"""Worker of test_multi_device.py: the same training on several meshes of 8 virtual devices.

Runs in a process of its own, because the number of devices is fixed when JAX starts:
``python multi_device.py FOLDER quick`` (or ``all``) prints one JSON object on its last line.
"""

import json
import os
import sys
from pathlib import Path

# Beside what the tests set to compile quickly.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import optax

from mhc_jax.backend import compiling_for
from mhc_jax.functional import param_info
from mhc_jax.tree import dotted
from train.config import MeshConfig
from train.devices import sharding
from train.measure import hlo
from train.measure.lowering import abstract_state, lower_train_step, shardings, whole
from train.measure.streams import make_stream_step
from train.storage.checkpoint import Checkpoints
from train.tests.meshes import ALL, LENGTH, MEASURED, MESHES, QUICK, VOCABULARY, run_config
from train.update.optimizer import make_optimizer
from train.update.step import init_state


def batches(config):
    """Each sequence counts up from a random token, so that there is something to learn in ten steps."""
    rng = np.random.default_rng(0)
    for _ in range(config.train.steps):
        tokens = (
            (rng.integers(0, VOCABULARY, (config.data.batch_size, 1)) + np.arange(LENGTH + 1)) % VOCABULARY
        ).astype(np.int32)
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


class Trainer:
    """The compiled step of a configuration on a mesh."""

    def __init__(self, config, mesh):
        sharding.check(config, mesh)
        self.config, self.mesh = config, mesh
        self.optimizer = make_optimizer(config.optim, config.train.steps, param_info(config.model))
        self.state = abstract_state(config, self.optimizer, mesh)
        # Of streams whose coefficients depend on the token the form of accelerators: it is theirs that is sliced.
        with compiling_for("tpu" if config.model.residual.kind == "dynamic_mhc" else "cpu"):
            self.step = lower_train_step(config, self.optimizer, self.state, mesh).compile()

    def train(self, batches):
        """The last state, trained on ``batches`` from the start, and the loss of each step."""
        initialise = jax.jit(lambda: init_state(self.config, self.optimizer), out_shardings=shardings(self.state))
        state, losses = initialise(), []
        for batch in batches:
            state, metrics = self.step(state, sharding.global_batch(batch, self.mesh), None)  # no teacher
            losses.append(float(metrics["loss"]))
        return state, losses

    def program(self):
        """What the compiled step shows of memory, shapes and communication."""
        text, memory = self.step.as_text(), self.step.memory_analysis()
        return {
            "temporaries": memory.temp_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "state": sum(local_bytes(leaf) for leaf in jax.tree.leaves(self.state)),
            "collectives": {kind: each.bytes for kind, each in hlo.collectives(text).items()},
            "sizes": sizes(text),
        }

    def sizes_for_streams(self):
        """Sizes in the step that measures streams."""
        step = jax.jit(make_stream_step(self.config, self.mesh), out_shardings=whole(self.mesh))
        tokens = jax.ShapeDtypeStruct(
            (self.config.data.batch_size, LENGTH), np.int32, sharding=sharding.batch_sharding(self.mesh)
        )
        return sizes(step.lower(self.state.params, {"inputs": tokens, "targets": tokens}).compile().as_text())


def sizes(text):
    """All sizes of axes in a compiled program."""
    return sorted({size for shape in hlo.shapes(text) for size in shape})


def local_bytes(leaf):
    """Of an array or an abstract one on each device."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def flat(tree):
    return {dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def distances(found, truth):
    """By parameter: |found - truth| over |truth|, in the 2-norm."""
    return {name: float(np.linalg.norm(found[name] - x) / np.linalg.norm(x)) for name, x in truth.items()}


def on_one_device(config):
    """The last state, and the report to which the meshes are added."""
    trainer = Trainer(config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    state, losses = trainer.train(batches(config))
    truth = flat(state.params)
    # The same sequences in another order: what differs is the rounding of the sums over the batch.
    reordered, reordered_losses = trainer.train({k: x[::-1] for k, x in batch.items()} for batch in batches(config))
    report = {
        "losses": losses,
        "reordered_losses": reordered_losses,
        "reordered_distances": distances(flat(reordered.params), truth),
        "bytes": sum(x.nbytes for x in truth.values()),
        "meshes": {},
    }
    return state, report


def report_of(model, meshes, checkpoints):
    config = run_config(model)
    state, report = on_one_device(config)
    truth = flat(state.params)
    for name in meshes:
        trainer = Trainer(config, sharding.make_mesh(MESHES[name]))
        found = report["meshes"][name] = {"program": trainer.program()}
        if model == "mhc_ssm":
            checkpoints.save(config.train.steps, state, {}, {}, metric=None)  # on the mesh before, restored on this one
            saved, restored = flat(state), checkpoints.restore(trainer.state)[0]
            found["restored_bitwise"] = all(np.array_equal(x, saved[key]) for key, x in flat(restored).items())
            found["restored_sharded"] = shardings(restored) == shardings(trainer.state)
        if (model, name) in MEASURED:
            found["sizes_for_streams"] = trainer.sizes_for_streams()
        state, found["losses"] = trainer.train(batches(config))
        found["distances"] = distances(flat(state.params), truth)
        found["bytes"] = sum(local_bytes(x) for x in jax.tree.leaves(state.params))
        adam = optax.tree.get_all_with_path(state.opt_state, "mu")[0][1]
        found["moments_follow"] = shardings(adam) == shardings(state.params)
    return report


def main(folder, runs):
    with Checkpoints(folder, keep=1) as checkpoints:
        print(json.dumps({model: report_of(model, meshes, checkpoints) for model, meshes in runs.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"quick": QUICK, "all": ALL}[sys.argv[2]])
