"""What the tensors of a published checkpoint show of its model."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

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


def is_tied(arrays: Mapping[str, np.ndarray], given: Mapping[str, Any], *, tokens: str, head: str) -> bool:
    """Whether the head is the token table: as ``tie_word_embeddings`` states, where the two are equal.

    Args:
        arrays: the tensors by name.
        given: fields of the configuration.
        tokens, head: names of the two tensors.
    """
    if head not in arrays or tokens not in arrays:
        return True
    if not np.array_equal(arrays[head], arrays[tokens], equal_nan=True):
        return False
    return given.get("tie_word_embeddings") is not False


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
