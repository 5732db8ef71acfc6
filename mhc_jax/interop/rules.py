"""Translation between the PyTorch mirror's tensors and published ones that are cut, fused or laid out otherwise."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mhc_jax.interop.keys import account
from mhc_jax.interop.torch_weights import check_floating
from mhc_jax.tree import Shapes

Arrays = Mapping[str, np.ndarray]
# From the tensors of one side to those of the other, in the order of their names.
Translate = Callable[..., Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some tensors of the mirror, and the published tensors that hold the same numbers."""

    mirror: tuple[str, ...]
    published: tuple[str, ...]
    to_published: Translate
    to_mirror: Translate


def renamed(mirror: str, published: str, *, transposed: bool = False) -> Rule:
    """One tensor under another name."""
    turn = (lambda x: (x.T,)) if transposed else (lambda x: (x,))
    return Rule((mirror,), (published,), turn, turn)


def reordered(mirror: str, published: str, order: np.ndarray) -> Rule:
    """Rows in another order inside every head: row i of a published head is row ``order[i]`` of the mirror's."""

    def rows(x: np.ndarray, order: np.ndarray) -> tuple[np.ndarray]:
        return (x.reshape(-1, len(order), *x.shape[1:])[:, order].reshape(x.shape),)

    back = np.argsort(order)
    return Rule((mirror,), (published,), lambda x: rows(x, order), lambda x: rows(x, back))


def fused(mirror: Sequence[str], published: str, *, transposed: bool = False) -> Rule:
    """Layers side by side: one matrix or bias whose outputs are those of all, in order."""
    axis = -1 if transposed else 0

    def fuse(*parts):
        return (np.concatenate([x.T if transposed else x for x in parts], axis=axis),)

    def split(whole):
        return [x.T if transposed else x for x in np.split(whole, len(mirror), axis=axis)]

    return Rule(tuple(mirror), (published,), fuse, split)


def joined(mirror: Sequence[str], published: str, widths: Sequence[int], heads: int = 1) -> Rule:
    """Layers head by head in one: of every head first the rows of the first layer, ``widths[0]`` of them, and so on."""

    def join(*parts):
        of_heads = [x.reshape(heads, width, *x.shape[1:]) for x, width in zip(parts, widths, strict=True)]
        return (np.concatenate(of_heads, axis=1).reshape(-1, *parts[0].shape[1:]),)

    def split(whole):
        of_heads = whole.reshape(heads, sum(widths), *whole.shape[1:])
        parts = np.split(of_heads, np.cumsum(widths)[:-1], axis=1)
        return [x.reshape(-1, *whole.shape[1:]) for x in parts]

    return Rule(tuple(mirror), (published,), join, split)


def published_shapes(rules: Iterable[Rule], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The published tensors' shapes, from those of the mirror."""
    found = {}
    for rule in rules:
        hollow = [np.broadcast_to(np.False_, shapes[name]) for name in rule.mirror]
        found |= {name: x.shape for name, x in zip(rule.published, rule.to_published(*hollow), strict=True)}
    return found


def read(what: str, rules: Sequence[Rule], shapes: Shapes, arrays: Arrays) -> dict[str, np.ndarray]:
    """The mirror's tensors.

    Args:
        what: names the published weights in the message.
        rules: cover every tensor of the mirror once.
        shapes: shapes of the mirror's tensors.
        arrays: the published tensors.

    Raises:
        InteropError: published tensors that are missing, unexpected, of the wrong shape or not floating point.
    """
    check_floating(arrays)
    account(what, published_shapes(rules, shapes), {name: x.shape for name, x in arrays.items()})
    found = {}
    for rule in rules:
        translated = rule.to_mirror(*(arrays[name] for name in rule.published))
        found |= dict(zip(rule.mirror, translated, strict=True))
    return found


def write(rules: Iterable[Rule], tensors: Arrays) -> dict[str, np.ndarray]:
    """The published tensors, as contiguous copies."""
    found = {}
    for rule in rules:
        translated = rule.to_published(*(tensors[name] for name in rule.mirror))
        found |= {name: np.array(x, order="C") for name, x in zip(rule.published, translated, strict=True)}
    return found
