"""The contract of a residual topology, and of the two ends of its streams."""

from typing import Any

from torch import Tensor, nn

from torch_ref.nn.taps import Tap, no_tap


class Residual(nn.Module):
    """How the residual state passes one site, built as ``Residual(config, layer)``. Position-wise by contract.

    Attributes:
        stream_count: N of the state (B, T, N, D), or None if the state is (B, T, D).
    """

    stream_count: int | None

    def pre(self, state: Tensor, *, tap: Tap = no_tap) -> tuple[Tensor, Any]:
        """What the branch reads, (B, T, D), and the context that :meth:`post` needs."""
        raise NotImplementedError

    def post(self, state: Tensor, y: Tensor, ctx: Any, *, tap: Tap = no_tap) -> Tensor:
        """The state after the branch has returned ``y``: (B, T, D), or (B, T, N, D) if it differs by stream."""
        raise NotImplementedError


class StreamEnds(nn.Module):
    """The embedding becomes the state, the state the output; built as ``StreamEnds(config, width, stream_count)``."""

    def expand(self, x_BTD: Tensor) -> Tensor:
        raise NotImplementedError

    def collapse(self, state: Tensor) -> Tensor:
        raise NotImplementedError
