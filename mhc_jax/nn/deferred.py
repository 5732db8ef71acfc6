"""Streams that are not computed before somebody needs them, so that one kernel can do what two sites want of them."""

import abc
from collections.abc import Callable
from typing import Any

import jax

from mhc_jax.ops.streams import Streams


class Deferred(abc.ABC):
    """Streams that are not computed before somebody needs them: a pytree of what they come from."""

    @abc.abstractmethod
    def computed(self) -> Streams: ...

    @abc.abstractmethod
    def projected(
        self, project: Callable[[Streams, jax.Array], jax.Array], param: jax.Array
    ) -> tuple[Streams, jax.Array]:
        """The streams, and ``project(streams, param)``."""


def projected(
    h: Streams | Deferred, project: Callable[[Streams, jax.Array], jax.Array], param: jax.Array
) -> tuple[Streams, jax.Array]:
    """The streams, and ``project(streams, param)``: (B, T, K) for every token alone, from a matrix."""
    return h.projected(project, param) if isinstance(h, Deferred) else (h, project(h, param))


def is_deferred(x: Any) -> bool:
    """Whether these are deferred streams."""
    return isinstance(x, Deferred)


def computed(tree: Any) -> Any:
    """The tree with all deferred streams in it computed."""
    return jax.tree.map(lambda x: x.computed() if is_deferred(x) else x, tree, is_leaf=is_deferred)
