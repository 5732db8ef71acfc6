"""Nested dicts of parameters by dotted names, and what keeps one from being another."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jax.tree_util import KeyPath, keystr

from mhc_jax import registry

Shapes = Mapping[str, tuple[int, ...]]

_LISTED, _LONGEST = 5, 100


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a": {"b": x}}`` becomes ``{"a.b": x}``, in the order of the tree."""
    return dict(_walk(tree, ""))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def dotted(path: KeyPath) -> str:
    """``"blocks.mixer.norm.scale"`` for the path of a leaf, as ``jax.tree_util`` gives it."""
    return keystr(path, simple=True, separator=".")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def misfits(expected: Shapes, found: Shapes) -> str:
    """The missing, unexpected and wrongly shaped names, on one line; empty if there are none.

    Of each kind the number and the first few are given.
    """
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": [
            f"{name} is {tuple(found[name])}, expected {tuple(expected[name])}"
            for name in expected
            if name in found and tuple(found[name]) != tuple(expected[name])
        ],
    }
    return "; ".join(f"{fault} ({len(names)}): {listed(names)}" for fault, names in faults.items() if names)


def listed(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    return registry.listed(map(readable, names), limit=_LISTED)


def readable(name: str) -> str:
    """A name out of a file, fit for one line: cut short, its control characters escaped."""
    name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
    return name if name.isprintable() else ascii(name)
