"""Faults seeded in the z-loss."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from parity_tests.mutations import Mutation, argument, op


def mutations() -> Iterator[Mutation]:
    yield op("z-loss at places without a target", "loss.z_loss", argument("targets_BT", jnp.zeros_like))
    objective = "train.objectives.cross_entropy:chunked_cross_entropy_and_z_loss"
    yield Mutation("z-loss without a gradient", objective, _still, "gradients", "adapters 4, rms, z-loss")


def _still(healthy):
    def still(*args, **options):
        total, entropy, squares, count = healthy(*args, **options)
        return jax.lax.stop_gradient(total), entropy, squares, count

    return still
