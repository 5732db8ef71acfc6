"""Layers in a list, walked one after another."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torch_ref.nn.block import Block
from torch_ref.nn.taps import Tap, under


def run_stack(
    blocks: Sequence[Block], state: Any, memories: Sequence[Any], *, segment_ids: Tensor | None, tap: Tap
) -> tuple[Any, list[Any]]:
    """The state after the last layer, and every layer's mixer memory after the last token."""
    after, first = [], None
    for layer, (block, memory) in enumerate(zip(blocks, memories, strict=True)):
        state, first, memory = block(state, first, memory, segment_ids=segment_ids, tap=under(str(layer), tap))
        after.append(memory)
    return state, after
