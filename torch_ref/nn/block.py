"""A site (a residual topology around a normalised branch), and the block of sites that is one layer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.nn.residual.base import Residual, State, streams_of, with_streams
from torch_ref.nn.scope import Scope
from torch_ref.nn.value_residual import ValueResidual


class Site(nn.Module):
    """``state = post(state, dropout(branch(norm(u))))`` with ``u = pre(state)``."""

    def __init__(self, residual: Residual, branch: nn.Module, norm: nn.Module, rate: float):
        super().__init__()
        self.residual, self.branch, self.norm, self.rate = residual, branch, norm, rate

    def forward(
        self, state: State, run: Callable[[Tensor, Scope], tuple[Tensor, Any]], scope: Scope
    ) -> tuple[State, Any]:
        """The state after the site, and what else ``run``, the branch on its input and scope, returned."""
        residual = self.residual
        u, ctx = residual.pre(state, scope / "residual")
        x = self.norm(scope.tap("u", u))
        if residual.views > 1 and self.branch.views == 1:
            x = x.mean(0)
        elif residual.branches > 1:
            x = x.transpose(0, 1).flatten(0, 1)
        y, out = run(x, (scope / "branch").repeated(residual.branches))
        if residual.branches > 1:
            y = y.unflatten(0, (-1, residual.branches)).transpose(0, 1)
        y = scope.tap("y", F.dropout(y, self.rate, self.training))
        state = residual.post(state, y, ctx, scope / "residual")
        return with_streams(state, scope.tap("state", streams_of(state))), out


class Block(nn.Module):
    """One layer: its sites by name, of which ``mixer`` mixes tokens; with value residual, its weights ``values``."""

    mixer: Site
    values: ValueResidual | None

    def __init__(self, sites: Mapping[str, Site], values: ValueResidual | None):
        super().__init__()
        self.names = tuple(sites)
        for name, site in sites.items():
            self.add_module(name, site)
        self.values = values

    def init_memory(self, batch: int, max_len: int) -> Any:
        """The mixer's state before the first token."""
        mixer: Any = self.mixer.branch
        return mixer.init_state(batch * self.mixer.residual.branches, max_len)

    def forward(
        self, state: State, first: Tensor | None, memory: Any, scope: Scope
    ) -> tuple[State, Tensor | None, Any]:
        """The residual state after the layer, the first layer's values, and the mixer's memory after the last token.

        Args:
            first: the first layer's values; None in the first layer.
            memory: the mixer's state; None processes a whole sequence, and None comes back.
        """
        seen = first

        def values(own: Tensor) -> Tensor:
            nonlocal seen
            if self.values is None:
                return own
            seen = own if first is None else first
            return self.values(own, seen)

        def mix(x: Tensor, inside: Scope) -> tuple[Tensor, Any]:
            return self.mixer.branch(x, memory, dataclasses.replace(inside, values=values))

        for name in self.names:
            site: Any = self.get_submodule(name)
            if name == "mixer":
                state, memory = site(state, mix, scope / name)
            else:
                state, _ = site(state, lambda x, inside, site=site: (site.branch(x, inside), None), scope / name)
        return state, seen, memory
