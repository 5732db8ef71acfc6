"""The plain residual, ``x + branch(norm(x))``."""

from torch_ref.config import register
from torch_ref.nn.residual.base import Residual


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
