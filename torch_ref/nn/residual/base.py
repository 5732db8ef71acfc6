"""The contract of a residual topology."""

from typing import Any

from torch import Tensor, nn

from torch_ref.config import required
from torch_ref.nn.scope import Scope

State = Any


def streams_of(state: State) -> Tensor:
    """The streams in a state: the state itself, or the entry ``"streams"`` of a dict."""
    return state["streams"] if isinstance(state, dict) else state


def with_streams(state: State, h: Tensor) -> State:
    """The state with other streams."""
    return state | {"streams": h} if isinstance(state, dict) else h


class Residual(nn.Module):
    """The path of the residual state through one site; built as ``Residual(config, width, site, sites)``.

    ``site`` counts the sites of the whole model from 0, ``sites`` is their number. A state is an array of streams, or
    a dict that holds it under ``"streams"``. The state of a token must not depend on other tokens.

    Attributes:
        stream_count: N of the streams (B, T, N, D), or None if they are (B, T, D).
        views: number of reads per site; with V > 1, :meth:`pre` returns (V, B, T, D).
        branches: number of runs of the branch per site; with I > 1, :meth:`pre` returns and :meth:`post` takes
            (I, B, T, D).
        normalised: whether :meth:`pre` returns a normalised array.
    """

    stream_count: int | None
    views: int = 1
    branches: int = 1
    normalised: bool = False

    @staticmethod
    def begin(h: Tensor) -> State:
        """The state before the first site, from the expanded streams."""
        return h

    @required
    def pre(self, state: State, scope: Scope) -> tuple[Tensor, Any]:
        """The input of the branch, (B, T, D), and the context that :meth:`post` needs.

        Args:
            state: from :meth:`begin` or the site before.
        """

    @required
    def post(self, state: State, y: Tensor, ctx: Any, scope: Scope) -> State:
        """The state after the branch has returned ``y``: (B, T, D), or (B, T, N, D) if it differs by stream."""
