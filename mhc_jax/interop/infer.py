"""What the tensors of a published checkpoint show of its model."""

import re
from typing import TypeVar

from mhc_jax.config import ConfigError
from mhc_jax.interop.keys import InteropError
from mhc_jax.nn.model import ModelConfig
from mhc_jax.tree import Shapes

Model = TypeVar("Model", bound=ModelConfig)


def shape_of(system: str, shapes: Shapes, name: str, rank: int = 2) -> tuple[int, ...]:
    """The shape of a tensor of that rank.

    Raises:
        InteropError: there is none of that name and rank, or it is empty.
    """
    found = shapes.get(name, ())
    if len(found) != rank or 0 in found:
        raise InteropError(f"not {system} weights: {name} of rank {rank} is missing or empty")
    return found


def layer_count(shapes: Shapes, prefix: str = "layers") -> int:
    """How many numbers follow ``prefix.`` in the names."""
    return len({match[1] for name in shapes if (match := re.match(rf"{prefix}\.(\d+)\.", name))})


def validated(system: str, config: Model) -> Model:
    """``config``; its faults are those of the checkpoint of ``system`` that it was read from.

    Raises:
        InteropError: it contradicts itself.
    """
    try:
        config.validate()
    except ConfigError as error:
        raise InteropError(f"{system}: {error}") from None
    return config
