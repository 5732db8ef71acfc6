"""Checks of configurations that several topologies need."""

from typing import Any


def at_least_one(config: Any, *names: str) -> None:
    """Raises ValueError unless the named fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{config.kind}: {name} must be at least 1, got {getattr(config, name)}")


def fraction_width(width: int, fractions: int) -> int:
    """Width of one of equal fractions, or a ValueError."""
    if width % fractions:
        raise ValueError(f"a width of {width} does not split into {fractions} fractions")
    return width // fractions
