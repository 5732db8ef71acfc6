"""Strict accounting of the keys and shapes of a set of weights."""

from collections.abc import Iterable, Mapping

from mhc_jax.config import ConfigError

Shapes = Mapping[str, tuple[int, ...]]

_LISTED = 20


class InteropError(ConfigError):
    """Weights or a file that do not fit the model. The message names every fault, on one line."""


def account(what: str, expected: Shapes, found: Shapes) -> None:
    """Every expected key must be present once, with its shape, and no other key may be.

    Args:
        what: names the weights in the message.
        expected: key to shape.
        found: key to shape.

    Raises:
        InteropError: lists the missing, the unexpected and the wrongly shaped keys.
    """
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "wrong shape": [
            f"{key} is {tuple(found[key])}, expected {tuple(expected[key])}"
            for key in expected
            if key in found and tuple(found[key]) != tuple(expected[key])
        ],
    }
    listed = [f"{fault} ({len(keys)}): {_capped(keys)}" for fault, keys in faults.items() if keys]
    if listed:
        raise InteropError(f"{what} do not fit the model: {'; '.join(listed)}")


def _capped(keys: Iterable[str]) -> str:
    keys = list(keys)
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + rest
