"""The context of a call beyond its input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

ValueHook = Callable[[Tensor], Tensor]


def own_values(v_BTD: Tensor) -> Tensor:
    """No value residual."""
    return v_BTD


@dataclasses.dataclass(frozen=True)
class Scope:
    """Facts about one call, the same for every part that it reaches.

    Attributes:
        positions_BT: absolute positions, counted from each row's first token.
        segments_BT: tokens of different segments do not see each other; what a state holds belongs to the segment of
            the call's first token.
        column: cache column of this call's first token.
        start_B: cache column of each row's first token; what lies before it is padding, which nothing real sees.
        progress: 0 at the start of training, 1 at its end; None counts as 1.
        layer: index of the layer, from 0.
        values: hook that what a mixer carries from token to token, (B, T, D), passes through once.
        taps: filled with named activations.
        prefix: prefix of the names under which they are recorded.
        penalties: filled with auxiliary losses by name; see :meth:`penalise`.
    """

    positions_BT: Tensor
    segments_BT: Tensor | None = None
    column: int = 0
    start_B: Tensor | None = None
    progress: float | None = None
    layer: int = 0
    values: ValueHook = own_values
    taps: dict[str, Tensor] | None = None
    prefix: str = ""
    penalties: dict[str, list[Tensor]] | None = None

    def __truediv__(self, name: str) -> Scope:
        """The same scope with taps under ``name.``."""
        return self if self.taps is None else dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def tap(self, name: str, x: Tensor) -> Tensor:
        """``x``, recorded if taps are; after ``backward()`` the record's ``.grad`` is the activation's cotangent."""
        if self.taps is None:
            return x
        # A node of its own: one tensor may pass several taps, and each has its own cotangent.
        x = x.view_as(x)
        if torch.is_grad_enabled():
            if not x.requires_grad:
                x.requires_grad_()  # a constant has a cotangent too
            x.retain_grad()
        self.taps[self.prefix + name] = x
        return x

    def repeated(self, n: int) -> Scope:
        """The scope of a batch in which each row stands ``n`` times, one after another."""
        if n == 1:
            return self
        rows = {
            name: None if value is None else value.repeat_interleave(n, 0)
            for name, value in (
                ("positions_BT", self.positions_BT),
                ("segments_BT", self.segments_BT),
                ("start_B", self.start_B),
            )
        }
        return dataclasses.replace(self, **rows)

    def padding_BT(self) -> Tensor | None:
        """True where a token lies before its row's first; None where no row has padding."""
        if self.start_B is None:
            return None
        columns_T = self.column + torch.arange(self.positions_BT.shape[1], device=self.start_B.device)
        return columns_T < self.start_B[:, None]

    def penalise(self, name: str, value: Tensor) -> None:
        """Adds an auxiliary loss, a weighted scalar; the mean over the calls of one name is added to the loss.

        Raises:
            ValueError: it is not a scalar.
        """
        if value.shape:
            raise ValueError(f"penalty {name!r} has shape {tuple(value.shape)}; it must be a scalar, such as a mean")
        if self.penalties is not None:
            self.penalties.setdefault(name, []).append(value)
