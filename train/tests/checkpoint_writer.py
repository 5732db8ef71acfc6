"""Worker of test_checkpoint.py: saves step after step until it is killed.

``python checkpoint_writer.py FOLDER`` prints each step just before it is saved, and ``sealed STEP`` when it is certain.
"""

import sys
from pathlib import Path

import jax.numpy as jnp

from train.storage.checkpoint import Checkpoints
from train.update.state import TrainState


def state_at(step: int) -> TrainState:
    """A state that tells its step in every element."""
    params = {"embed": {"tokens": jnp.full((64, 32), float(step))}, "blocks": {"norm": jnp.full((3, 32), -float(step))}}
    moments = {"mu": {"embed": {"tokens": jnp.full((64, 32), 0.5 * step)}}}
    return TrainState(jnp.int32(step), params, moments, jnp.int32(0), jnp.int32(0))


def main(folder: Path) -> None:
    with Checkpoints(folder, keep=2) as checkpoints:
        step = checkpoints.latest_step() or 0
        while True:
            step += 1
            print(step, flush=True)
            checkpoints.save(step, state_at(step), {"position": step}, {"step": step}, metric=None)
            checkpoints.wait()
            print("sealed", step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
