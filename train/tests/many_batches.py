"""Worker of test_multi_device.py: scores 5 times 200 batches on 8 virtual devices that share two threads."""

import os

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
os.environ |= {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": "2"}

import jax
import jax.numpy as jnp
import numpy as np

from train.config import MeshConfig
from train.devices import sharding
from train.measure.scores import evaluate

MESH = sharding.make_mesh(MeshConfig(fsdp=8))


def placed(*spec):
    return jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(*spec))


def score(kernels, batch):
    """Many collectives, so that programs meet each other's."""
    x = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), batch["inputs"], kernels)[0]
    return {"loss": jnp.sum(x), "tokens": jnp.float32(x.size)}


def main():
    kernels = jax.device_put(np.full((8, 64, 64), 1 / 64, np.float32), placed(None, "fsdp"))
    step = jax.jit(score, out_shardings=placed())
    for _ in range(5):
        batches = (sharding.global_batch({"inputs": np.ones((64, 64), np.float32)}, MESH) for _ in range(200))
        assert evaluate(step, kernels, batches)["tokens"] == 200 * 64 * 64


if __name__ == "__main__":
    main()
