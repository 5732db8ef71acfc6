"""The plain residual, ``x + branch(norm(x))``, and its identity ends."""

from torch_ref.config import register
from torch_ref.nn.residual.base import Residual, StreamEnds


@register("residual", "plain")
class PlainResidual(Residual):
    """State (B, T, D)."""

    stream_count = None

    def __init__(self, config, width: int, site: int, sites: int):
        super().__init__()

    def pre(self, state, scope):
        return state, None

    def post(self, state, y, ctx, scope):
        return state + y


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
