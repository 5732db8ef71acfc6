"""The contract of a channel mixer, which transforms each token separately."""

from torch import Tensor, nn

from torch_ref.config import required
from torch_ref.nn.scope import Scope


class ChannelMixer(nn.Module):
    """Maps (B, T, D) to (B, T, D), each token separately; built as ``ChannelMixer(config, width, sites)``.

    Attributes:
        views: inputs it takes; with V > 1 the input is (V, B, T, D).
    """

    views: int = 1

    @required
    def forward(self, u_BTD: Tensor, scope: Scope) -> Tensor:
        """The output (B, T, D) of normalised inputs."""
