"""The contract of the two ends of the residual streams."""

from torch import Tensor, nn

from torch_ref.config import required
from torch_ref.nn.residual.base import State


class StreamEnds(nn.Module):
    """The embedding becomes the streams, the state the output; built as ``StreamEnds(config, width, stream_count)``."""

    @required
    def expand(self, x_BTD: Tensor) -> Tensor: ...

    @required
    def collapse(self, state: State) -> Tensor: ...
