"""The contract of a sequence mixer, which exchanges information between tokens."""

from typing import Any

from torch import Tensor, nn

from torch_ref.config import required
from torch_ref.nn.scope import Scope


class Mixer(nn.Module):
    """Maps (B, T, D) to (B, T, D), in pieces by way of a state or at once.

    Built as ``Mixer(config, width, sites)``, with the number of residual sites of the whole model.

    Attributes:
        views: inputs it takes; with V > 1 the input is (V, B, T, D).
    """

    views: int = 1

    @required
    def init_state(self, batch: int, max_len: int) -> Any:
        """The state before the first token, for sequences of at most ``max_len`` columns."""

    @required
    def forward(self, u_BTD: Tensor, state: Any, scope: Scope) -> tuple[Tensor, Any]:
        """The output (B, T, D), and the state after the last token.

        What the mixer carries from token to token, (B, T, D) or as wide as it needs, passes ``scope.values`` once.
        Tokens before ``scope.start_B`` are padding: their outputs are meaningless, and no other token sees them.

        Args:
            u_BTD: normalised input.
            state: from :meth:`init_state` or an earlier call; None processes the whole sequence from an empty past,
                and None comes back.
        """
