"""A site (a residual topology around a normalised branch), and the block of sites that is one layer."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.nn.layers import Norm
from torch_ref.nn.residual.base import Residual, streams_of, with_streams
from torch_ref.nn.taps import Tap, under
from torch_ref.nn.value_residual import ValueResidual


class Site(nn.Module):
    """``state = post(state, dropout(branch(norm(u))))`` with ``u = pre(state)``."""

    def __init__(self, residual: Residual, branch: nn.Module, width: int, norm: str, rate: float, norm_bias: bool):
        super().__init__()
        self.residual, self.branch, self.rate = residual, branch, rate
        self.norm = nn.Identity() if residual.normalised else Norm(width, norm, norm_bias)

    def forward(self, state: Any, run: Callable[[Tensor], tuple[Tensor, Any]], *, tap: Tap) -> tuple[Any, Any]:
        """The state after the site, and what else ``run``, the branch, returned."""
        residual, residual_tap = self.residual, under("residual", tap)
        u, ctx = residual.pre(state, tap=residual_tap)
        x = self.norm(tap("u", u))
        if residual.views > 1 and self.branch.views == 1:
            x = x.mean(0)
        elif residual.branches > 1:
            x = x.transpose(0, 1).flatten(0, 1)
        y, out = run(x)
        if residual.branches > 1:
            y = y.unflatten(0, (-1, residual.branches)).transpose(0, 1)
        y = tap("y", F.dropout(y, self.rate, self.training))
        state = residual.post(state, y, ctx, tap=residual_tap)
        return with_streams(state, tap("state", streams_of(state))), out


class Block(nn.Module):
    """One layer: a site ``mixer`` and, in most models, a site ``mlp``; with value residual, its weights ``values``."""

    def __init__(self, mixer: Site, mlp: Site | None, values: ValueResidual | None):
        super().__init__()
        self.mixer, self.mlp, self.values = mixer, mlp, values

    def init_memory(self, batch: int, max_len: int) -> Any:
        """The mixer state before the first token."""
        mixer: Any = self.mixer.branch
        return mixer.init_state(batch * self.mixer.residual.branches, max_len)

    def forward(
        self, state: Any, first: Tensor | None, memory: Any, *, segment_ids: Tensor | None, tap: Tap
    ) -> tuple[Any, Tensor | None, Any]:
        """The residual state after the layer, the first layer's values, and the mixer's memory after the last token.

        Args:
            first: the first layer's values; None in the first layer.
        """
        if segment_ids is not None:
            segment_ids = segment_ids.repeat_interleave(self.mixer.residual.branches, 0)
        seen = first

        def values(own: Tensor) -> Tensor:
            nonlocal seen
            if self.values is None:
                return own
            seen = own if first is None else first
            return self.values(own, seen)

        def mix(x: Tensor) -> tuple[Tensor, Any]:
            inside = under("mixer.branch", tap)
            return self.mixer.branch(x, memory, segment_ids=segment_ids, values=values, tap=inside)

        state, memory = self.mixer(state, mix, tap=under("mixer", tap))
        if self.mlp is not None:
            branch, inside = self.mlp.branch, under("mlp.branch", tap)
            state, _ = self.mlp(state, lambda x: (branch(x, tap=inside), None), tap=under("mlp", tap))
        return state, seen, memory
