"""Prefixes of a sequence under an operation that need not be associative, all by one fixed bracketing.

The prefix of i elements is a left fold over complete balanced trees, largest first, as the binary digits of i cut them:
``s_3 = ((0.1).2)``, ``s_7 = ((((0.1).(2.3)).(4.5)).6)``. A binary counter therefore extends prefixes one element after
another, with O(log n) of them in memory, to exactly those of a parallel scan (arXiv 2506.10918).

There is no identity element: what has nothing before it is left as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mhc_jax.registry import unknown

# Pytrees of arrays whose leading axis counts pairs, or elements.
Elements = Any
Combine = Callable[[Elements, Elements], Elements]
ScanForm = Literal["parallel", "blelloch", "sequential", "legacy_parallel", "legacy_blelloch"]
# Those that are no scan: their prefixes are wrong in the way that the published program has them wrong.
LEGACY = ("legacy_parallel", "legacy_blelloch")


def prefixes(combine: Combine, x: Elements, *, form: ScanForm = "parallel") -> Elements:
    """The prefixes of 1, 2, ..., M elements.

    Args:
        combine: ``combine(older, newer)`` of pairs that are stacked on a leading axis.
        x: M elements, stacked on a leading axis.
        form: ``"parallel"``, level by level, pairs of a level in one call; ``"blelloch"``, the classical sweeps over a
            power of two places; ``"sequential"``, a binary counter. All give the same. ``"legacy_blelloch"`` and
            ``"legacy_parallel"`` give what the published program computes under these names: zeros are combined like an
            element, and operands are swapped in the one; in the other the last group of every level forgets what is
            before it.

    Raises:
        ValueError: an unknown form, or M + 1 is no power of two, as the legacy forms need it.
    """
    if form not in get_args(ScanForm):
        raise ValueError(unknown("form of the scan", form, get_args(ScanForm)))
    count = _count(x)
    if form in LEGACY and count & (count + 1):
        raise ValueError(f"{form} needs a power of two of chunks, not {count + 1}")
    if form == "parallel":
        return _parallel(combine, x)
    if form == "blelloch":
        return _blelloch(combine, x)
    if form == "sequential":
        return _sequential(combine, x)
    return _legacy(combine, x, swapped=form == "legacy_blelloch")


def _parallel(combine: Combine, x: Elements) -> Elements:
    """Pairs first, prefixes of pairs by recursion; every other prefix has one more element than one of these."""
    count = _count(x)
    if count == 1:
        return x
    pairs = _parallel(combine, combine(_at(x, slice(0, count - 1, 2)), _at(x, slice(1, None, 2))))
    first = _at(x, slice(0, 1))
    if count > 2:
        more = combine(_at(pairs, slice(0, (count - 1) // 2)), _at(x, slice(2, None, 2)))
        first = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, more)
    return _interleaved(first, pairs)


def _interleaved(even: Elements, odd: Elements) -> Elements:
    """Elements 0, 2, 4, ... and 1, 3, 5, ... in one order."""

    def woven(a, b):
        together = jnp.zeros((len(a) + len(b), *a.shape[1:]), a.dtype)
        return together.at[0::2].set(a).at[1::2].set(b)

    return jax.tree.map(woven, even, odd)


def _blelloch(combine: Combine, x: Elements) -> Elements:
    """Up-sweep and down-sweep in place over a power of two places, of which flags say whether they hold anything."""
    count = _count(x)
    size = 1 << count.bit_length()
    held = np.arange(size) < count
    places = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, size - count)] + [(0, 0)] * (leaf.ndim - 1)), x)

    def combined(older, newer):
        """What two lists of places make, and whether it is anything; what stands beside nothing stays as it is."""
        both = held[older] & held[newer]
        made = _at(places, np.where(held[newer], newer, older))
        if both.any():
            pairs = combine(_at(places, older[both]), _at(places, newer[both]))
            made = jax.tree.map(lambda leaf, new: leaf.at[np.flatnonzero(both)].set(new), made, pairs)
        return made, held[older] | held[newer]

    def put(where, elements):
        return jax.tree.map(lambda leaf, new: leaf.at[where].set(new), places, elements)

    steps = [1 << level for level in range(count.bit_length())]
    for step in steps:
        left = np.arange(step - 1, size, 2 * step)
        made, holds = combined(left, left + step)
        places, held[left + step] = put(left + step, made), holds
    held[-1] = False
    for step in reversed(steps):
        left = np.arange(step - 1, size, 2 * step)
        (made, holds), before = combined(left + step, left), held[left + step]  # the prefix is older than the block
        places = put(left, _at(places, left + step))
        places, held[left], held[left + step] = put(left + step, made), before, holds
    return _at(places, slice(1, count + 1))


def _sequential(combine: Combine, x: Elements) -> Elements:
    def push(counter, element):
        counter, prefix = counter.push(combine, jax.tree.map(lambda leaf: leaf[None], element), jnp.ones(1, bool))
        return counter, jax.tree.map(lambda leaf: leaf[0], prefix)

    return jax.lax.scan(push, Counter.empty(_at(x, slice(0, 1)), _count(x)), x)[1]


def _legacy(combine: Combine, x: Elements, *, swapped: bool) -> Elements:
    level = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 1)] + [(0, 0)] * (leaf.ndim - 1)), x)
    blocks = []  # on the left, by level
    while _count(level) > 1:
        blocks.append(_at(level, slice(0, None, 2)))
        level = combine(blocks[-1], _at(level, slice(1, None, 2)))
    before = jax.tree.map(jnp.zeros_like, level)
    for left in reversed(blocks):
        after = combine(left, before) if swapped else combine(before, left)
        if not swapped:
            after = jax.tree.map(lambda leaf, block: leaf.at[-1].set(block[-1]), after, left)
        before = _interleaved(before, after)
    return _at(before, slice(1, None))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counter:
    """Prefixes of R rows that grow one element after another, at their own times: a binary counter with folds.

    Level k holds the tree over 2^k elements where the number of elements has that digit, and the fold of all trees down
    to it. Memory is fixed: from ``2 ** (levels + 1)`` elements on the oldest tree takes in others of half its size.

    Attributes:
        count_R: elements so far.
        trees, folds: elements (levels, R, ...).
    """

    count_R: Int[Array, " R"]
    trees: Elements
    folds: Elements

    @classmethod
    def empty(cls, like: Elements, most: int) -> Self:
        """Without elements, to hold ``most`` of them exactly.

        Args:
            like: an element for every row, (R, ...).
        """
        levels = max(1, most.bit_length() - 1)
        # Two arrays, not one twice: what is donated to a compiled step must be in one place.
        trees, folds = (jax.tree.map(lambda x: jnp.zeros((levels, *x.shape), x.dtype), like) for _ in range(2))
        return cls(jnp.zeros(_count(like), jnp.int32), trees, folds)

    def push(self, combine: Combine, x: Elements, due_R: Bool[Array, " R"]) -> tuple[Self, Elements]:
        """The counter with one more element in the rows that are due, and the prefixes of these rows with it."""
        levels = jnp.arange(_count(self.trees))[:, None]
        held_LR = (self.count_R >> levels) & 1 == 1
        merged_LR = due_R & (jnp.cumprod(held_LR, axis=0) == 1)
        stays_LR = held_LR & ~merged_LR

        def merge(tree, level):
            older, merged_R = level
            return _where(merged_R, combine, older, tree), None

        tree, _ = jax.lax.scan(merge, x, (self.trees, merged_LR))
        least_R, rows_R = jnp.argmax(stays_LR, axis=0), jnp.arange(len(due_R))
        before = jax.tree.map(lambda leaf: leaf[least_R, rows_R], self.folds)
        fold = _where(due_R & stays_LR.any(axis=0), combine, before, tree)

        place_R = jnp.minimum(jnp.sum(merged_LR, axis=0), len(levels) - 1)
        here_LR = due_R & (levels == place_R)
        trees, folds = (
            jax.tree.map(lambda old, new: jnp.where(_over(here_LR, old), new, old), old, new)
            for old, new in ((self.trees, tree), (self.folds, fold))
        )
        count_R = self.count_R + due_R
        full = 1 << len(levels)
        return Counter(jnp.where(count_R == full, full // 2, count_R), trees, folds), fold  # pyright: ignore[reportReturnType]


def _where(wanted_R: jax.Array, combine: Combine, older: Elements, newer: Elements) -> Elements:
    """``combine(older, newer)`` in the rows where it is wanted, else ``newer``; nothing is computed for none."""

    def some():
        made = combine(older, newer)
        return jax.tree.map(lambda new, old: jnp.where(_over(wanted_R, new), new, old), made, newer)

    return jax.lax.cond(wanted_R.any(), some, lambda: newer)


def _over(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mask with axes for all further axes of ``x``."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def _count(x: Elements) -> int:
    return len(jax.tree.leaves(x)[0])


def _at(x: Elements, index: Any) -> Elements:
    return jax.tree.map(lambda leaf: leaf[index], x)
