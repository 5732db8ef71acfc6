"""Names for the interchangeable parts: residual topologies, sequence mixers, stream ends, systems.

A part is registered once, under an axis and a name, and is found again by that name in
configuration files, checkpoints and error messages.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_REGISTRY: dict[str, dict[str, Any]] = {}


def register(axis: str, name: str) -> Callable[[T], T]:
    """Decorator that files ``item`` under ``axis`` and ``name``.

    A class also receives ``kind = name``, the tag by which it is written to JSON.

    Raises:
        ValueError: the name is already taken on that axis by another item.
    """

    def add(item: T) -> T:
        names = _REGISTRY.setdefault(axis, {})
        if name in names and names[name].__qualname__ != item.__qualname__:  # type: ignore[attr-defined]
            raise ValueError(f"{axis} {name!r} is already registered by {names[name].__module__}")
        names[name] = item
        if isinstance(item, type):
            item.kind = name  # type: ignore[attr-defined]
        return item

    return add


def get(axis: str, name: str) -> Any:
    """The item registered under ``axis`` and ``name``.

    Raises:
        KeyError: no such name; the message lists the names and the nearest one.
    """
    names = _REGISTRY.get(axis, {})
    if name not in names:
        raise KeyError(f"unknown {axis} {name!r}{did_you_mean(name, names)}; known: {', '.join(sorted(names))}")
    return names[name]


def names(axis: str) -> list[str]:
    """All names registered on one axis, sorted."""
    return sorted(_REGISTRY.get(axis, {}))


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the candidate nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(candidates), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
