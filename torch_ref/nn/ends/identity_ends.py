"""Ends of a topology without parallel streams."""

from torch_ref.config import register
from torch_ref.nn.ends.base import StreamEnds


@register("ends", "identity")
class IdentityEnds(StreamEnds):
    """The embedding is the state and the state is the output."""

    def __init__(self, config, width: int, stream_count: int | None):
        super().__init__()
        if stream_count is not None:
            raise ValueError(f"a residual of {stream_count} streams needs ends that expand, e.g. 'copy'")

    def expand(self, x_BTD):
        return x_BTD

    def collapse(self, state):
        return state
