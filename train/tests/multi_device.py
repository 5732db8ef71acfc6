"""Worker of test_multi_device.py: the same training on several meshes of 8 virtual devices.

Runs in a process of its own, because the number of devices is fixed when JAX starts:
``python multi_device.py FOLDER`` prints one JSON object on its last line.
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

from mhc_jax.models import gpt2, mhc_ssm, with_topology
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.residual import DenseEndsConfig, StreamAdaptersConfig
from mhc_jax.ops import streams
from train import sharding
from train.checkpoint import Checkpoints
from train.config import DataConfig, MeshConfig, OptimConfig, RunConfig, TrainConfig
from train.optimizer import make_optimizer
from train.step import init_state, make_train_step

STEPS = 20
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=1, tensor=8),
    "mix": MeshConfig(data=2, fsdp=2, tensor=2),
}
CONFIG = RunConfig(
    model=mhc_ssm(
        "adapters",
        norm="ln",
        vocab_size=72,
        max_len=16,
        width=32,
        layers=2,
        # Adapters that act and streams that differ from the first step on: every gradient is well above rounding.
        adapters=StreamAdaptersConfig(rank=8, zero_init=False),
        ends=DenseEndsConfig(init="uniform"),
    ),
    data=DataConfig(seq_len=16, batch_size=16),
    optim=OptimConfig(lr=1e-2, warmup_steps=2),
    train=TrainConfig(loss_chunk=8, accumulate=2),
)
# Attention and MLP over streams whose coefficients depend on the token, from the first step on.
GPT = CONFIG.replace(
    model=with_topology(
        # Without biases: that of the keys has no gradient but rounding.
        gpt2(vocab_size=72, max_len=16, width=32, layers=2, mixer=AttentionConfig(heads=4, bias=False)),
        "deepseek_v4",
    )
)


def batches():
    """Each sequence counts up from a random token, so that there is something to learn in 20 steps."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = ((rng.integers(0, 72, (16, 1)) + np.arange(17)) % 72).astype(np.int32)
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


def abstract_state(config, optimizer, mesh):
    shapes = jax.eval_shape(lambda: init_state(config, optimizer))
    shardings = sharding.state_shardings(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def trainer(config, mesh):
    """A function that trains on ``batches`` from the start: the last state, and the loss of each step."""
    sharding.check(config, mesh)
    optimizer = make_optimizer(config.optim, STEPS)
    shardings = jax.tree.map(sharding_of, abstract_state(config, optimizer, mesh))
    initialise = jax.jit(lambda: init_state(config, optimizer), out_shardings=shardings)
    step = jax.jit(make_train_step(config, optimizer, mesh), donate_argnums=0, out_shardings=(shardings, None))

    def train(batches):
        state, losses = initialise(), []
        for batch in batches:
            state, metrics = step(state, sharding.global_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        return state, losses

    return train


def sharding_of(array):
    return array.sharding


def flat(tree):
    return {sharding.dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def distances(found, truth):
    """By parameter: |found - truth| over |truth|, in the 2-norm."""
    return {name: float(np.linalg.norm(found[name] - x) / np.linalg.norm(x)) for name, x in truth.items()}


def on_one_device(config):
    """The last state, and the report to which the meshes are added."""
    train = trainer(config, jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES))
    state, losses = train(batches())
    truth = flat(state.params)
    # The same sequences in another order: what differs is the rounding of the sums over the batch.
    reordered, reordered_losses = train({name: x[::-1] for name, x in batch.items()} for batch in batches())
    report = {
        "losses": losses,
        "reordered_losses": reordered_losses,
        "reordered_distances": distances(flat(reordered.params), truth),
        "bytes": sum(x.nbytes for x in truth.values()),
        "meshes": {},
    }
    return state, report


def gpt():
    """The report of the GPT on the mesh that slices along all axes."""
    # The form of accelerators: it is theirs that must be sliced well.
    streams._contracts = lambda: False
    state, report = on_one_device(GPT)
    truth = flat(state.params)
    state, losses = trainer(GPT, sharding.make_mesh(MESHES["mix"]))(batches())
    report["meshes"]["mix"] = {"losses": losses, "distances": distances(flat(state.params), truth)}
    return report


def main(folder):
    state, report = on_one_device(CONFIG)
    truth = flat(state.params)
    with Checkpoints(folder, keep=1) as checkpoints:
        for name, mesh_config in MESHES.items():
            checkpoints.save(STEPS, state, {}, {}, metric=None)  # on the mesh before, restored on this one
            saved, mesh = flat(state), sharding.make_mesh(mesh_config)
            target = abstract_state(CONFIG, make_optimizer(CONFIG.optim, STEPS), mesh)
            restored = checkpoints.restore(target)[0]
            state, found = trainer(CONFIG, mesh)(batches())
            adam = optax.tree.get_all_with_path(state.opt_state, "mu")[0][1]
            report["meshes"][name] = {
                "losses": found,
                "distances": distances(flat(state.params), truth),
                "bytes": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params)),
                "moments_follow": jax.tree.map(sharding_of, adam) == jax.tree.map(sharding_of, state.params),
                "restored_bitwise": all(np.array_equal(x, saved[key]) for key, x in flat(restored).items()),
                "restored_sharded": jax.tree.map(sharding_of, restored) == jax.tree.map(sharding_of, target),
            }
    print(json.dumps({"mhc_ssm": report, "gpt": gpt()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
