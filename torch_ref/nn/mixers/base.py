"""The contract of a sequence mixer: how tokens exchange information."""

from typing import Any

from torch import Tensor, nn

from torch_ref.nn.taps import Tap, no_tap


class Mixer(nn.Module):
    """Maps (B, T, D) to (B, T, D) causally, after a state of fixed size; built as ``Mixer(config, width)``."""

    def init_state(self, batch: int, max_len: int) -> Any:
        """State before the first token, for sequences of at most ``max_len`` tokens."""
        raise NotImplementedError

    def forward(
        self, u_BTD: Tensor, state: Any, *, segment_ids: Tensor | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, Any]:
        """The output, and the state after the last token.

        Args:
            u_BTD: normalised input.
            state: from :meth:`init_state` or an earlier call.
            segment_ids: (B, T); tokens of different segments do not see each other.
        """
        raise NotImplementedError
