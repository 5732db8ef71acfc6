"""Prefixes under an operation that is not associative: a binary counter, one element after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

Combine = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Counter:
    """Complete trees over all elements so far, larger before smaller, each with the fold of all trees up to it.

    Attributes:
        stack: ``(size, tree, fold)``.
    """

    stack: tuple[tuple[int, Tensor, Tensor], ...] = ()

    def push(self, combine: Combine, x: Tensor) -> Counter:
        """With one more element; trees of one size merge, the older on the left."""
        stack, size, tree = list(self.stack), 1, x
        while stack and stack[-1][0] == size:
            size, tree = 2 * size, combine(stack.pop()[1], tree)
        fold = combine(stack[-1][2], tree) if stack else tree
        return Counter((*stack, (size, tree, fold)))

    @property
    def prefix(self) -> Tensor | None:
        """Of all elements; None if there are none."""
        return self.stack[-1][2] if self.stack else None


def prefixes(combine: Combine, x: Tensor, *, form: str = "parallel") -> Tensor:
    """The prefixes of 1, 2, ..., M elements that are stacked on the first axis.

    Args:
        combine: ``combine(older, newer)``, of elements with a leading axis.
        form: the legacy ones are those of ``mhc_jax``; all others are one and the same here.

    Raises:
        ValueError: M + 1 is no power of two in a legacy form.
    """
    if form.startswith("legacy"):
        return _legacy(combine, x, swapped=form == "legacy_blelloch")
    counter, found = Counter(), []
    for element in x.split(1):
        counter = counter.push(combine, element)
        found.append(counter.prefix)
    return torch.cat(found)


def _legacy(combine: Combine, x: Tensor, *, swapped: bool) -> Tensor:
    count = len(x) + 1
    if count & (count - 1):
        raise ValueError(f"a power of two of chunks is needed, not {count}")

    def tree(first: int, size: int) -> Tensor:
        half = size // 2
        return x[first : first + 1] if size == 1 else combine(tree(first, half), tree(first + half, half))

    def in_front(first: int, size: int, before: Tensor) -> list[Tensor]:
        """What stands in front of each element of a block that ``before`` stands in front of."""
        if size == 1:
            return [before]
        half = size // 2
        left = tree(first, half)
        if swapped:
            middle = combine(left, before)
        else:  # the last block of every size forgets
            middle = left if first + size == count else combine(before, left)
        return in_front(first, half, before) + in_front(first + half, half, middle)

    return torch.cat(in_front(0, count, torch.zeros_like(x[:1]))[1:])
