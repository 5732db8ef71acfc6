"""The contract of a sequence mixer: how tokens exchange information."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torch_ref.nn.taps import Tap, no_tap

ValueHook = Callable[[Tensor], Tensor]


def own_values(v_BTD: Tensor) -> Tensor:
    """No value residual."""
    return v_BTD


class Mixer(nn.Module):
    """Maps (B, T, D) to (B, T, D) causally, after a state of fixed size.

    Built as ``Mixer(config, width, sites)``, with the number of residual sites of the whole model.

    Attributes:
        views: inputs it takes; with V > 1 the input is (V, B, T, D).
    """

    views: int = 1

    def init_state(self, batch: int, max_len: int) -> Any:
        """State before the first token, for sequences of at most ``max_len`` tokens."""
        raise NotImplementedError

    def forward(
        self,
        u_BTD: Tensor,
        state: Any,
        *,
        segment_ids: Tensor | None = None,
        values: ValueHook = own_values,
        tap: Tap = no_tap,
    ) -> tuple[Tensor, Any]:
        """The output, and the state after the last token.

        Args:
            u_BTD: normalised input.
            state: from :meth:`init_state` or an earlier call.
            segment_ids: (B, T); tokens of different segments do not see each other.
            values: what is carried from token to token, (B, T, D), passes through it once.
        """
        raise NotImplementedError
