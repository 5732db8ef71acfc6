"""Faults seeded in the loss of a classifier on prefixes."""

from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp

from parity_tests.mutations import Mutation, argument, op


def mutations() -> Iterator[Mutation]:
    path, case = "loss.prefix_cross_entropy", "of chunks of 3"
    roll = partial(jnp.roll, axis=1)
    yield op(
        "a prefix answers for its chunk's first token", path, argument("targets_BT", partial(roll, shift=-1)), case
    )
    yield op("prefixes of the chunk before", path, argument("prefixes_BNCD", partial(roll, shift=1)), case)
    yield op("a prefix read backwards", path, argument("head_VCD", partial(jnp.flip, axis=1)), case)
