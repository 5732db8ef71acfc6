"""A site (a residual topology around a normalised branch), and the block of sites that is one layer."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.nn.layers import Norm
from torch_ref.nn.mixers import Mixer
from torch_ref.nn.residual import Residual
from torch_ref.nn.taps import Tap, under


class Site(nn.Module):
    """``state = post(state, dropout(branch(norm(u))))`` with ``u = pre(state)``."""

    def __init__(self, residual: Residual, branch: Mixer, width: int, norm: str, rate: float):
        super().__init__()
        self.residual, self.branch, self.rate = residual, branch, rate
        self.norm = Norm(width, norm)

    def forward(self, state: Tensor, memory: Any, *, segment_ids: Tensor | None, tap: Tap) -> tuple[Tensor, Any]:
        """The state after the site, and the mixer's memory after the last token."""
        residual_tap = under("residual", tap)
        u_BTD, ctx = self.residual.pre(state, tap=residual_tap)
        x_BTD = self.norm(tap("u", u_BTD))
        y_BTD, memory = self.branch(x_BTD, memory, segment_ids=segment_ids, tap=under("branch", tap))
        y_BTD = tap("y", F.dropout(y_BTD, self.rate, self.training))
        return tap("state", self.residual.post(state, y_BTD, ctx, tap=residual_tap)), memory


class Block(nn.Module):
    """One layer: a single site, ``mixer``."""

    def __init__(self, mixer: Site):
        super().__init__()
        self.mixer = mixer

    def init_memory(self, batch: int, max_len: int) -> Any:
        """The mixer state before the first token."""
        return self.mixer.branch.init_state(batch, max_len)

    def forward(self, state: Tensor, memory: Any, *, segment_ids: Tensor | None, tap: Tap) -> tuple[Tensor, Any]:
        """See :meth:`Site.forward`."""
        return self.mixer(state, memory, segment_ids=segment_ids, tap=under("mixer", tap))
