"""Strict accounting of the keys and shapes of a set of weights."""

from mhc_jax.config import ConfigError
from mhc_jax.tree import Shapes, misfits


class InteropError(ConfigError):
    """Weights or a file that do not fit the model. The message names the faults, on one line."""


def account(what: str, expected: Shapes, found: Shapes) -> None:
    """Every expected key must be present once, with its shape, and no other key may be.

    Args:
        what: names the weights in the message.
        expected: key to shape.
        found: key to shape.

    Raises:
        InteropError: says how many keys are missing, unexpected or of the wrong shape, and which.
    """
    if faults := misfits(expected, found):
        raise InteropError(f"{what} do not fit the model: {faults}")
