"""Layers in a list, run one after another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch_ref.nn.block import Block
from torch_ref.nn.residual.base import State
from torch_ref.nn.scope import Scope


def run_stack(
    blocks: Sequence[Block], state: State, memories: Sequence[Any] | None, scope: Scope
) -> tuple[State, list[Any] | None]:
    """The residual state after the last layer, and every layer's mixer memory after the last token.

    Args:
        memories: None processes a whole sequence, and None comes back.
    """
    after, first = [], None
    for layer, block in enumerate(blocks):
        memory = None if memories is None else memories[layer]
        state, first, memory = block(state, first, memory, dataclasses.replace(scope / str(layer), layer=layer))
        after.append(memory)
    return state, None if memories is None else after
