"""What a mixer keeps of every token, by column of the cache, where it is written in place."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns:
    """Arrays with one entry for each column of the cache.

    A part of a mixer's state that :func:`mhc_jax.nn.stack.run_stack` leaves where it is, in one array of all layers: a
    step writes its own columns and nothing else. As any other state it would be taken apart and put together again,
    which copies the cache of every layer several times for every token.

    Attributes:
        array: (B, ..., S) of one layer, or (L, B, ..., S) of all.
        layer: which of them is meant; None if ``array`` is of one.
    """

    array: jax.Array
    layer: jax.Array | None = None

    def written(self, new_BT: jax.Array, column: jax.Array) -> "Columns":
        """With ``new_BT`` (B, T, ...) in the columns from ``column`` on; ConfigError if they can be in none."""
        (B, *_, S), (rows, length) = self.array.shape[self.layer is not None :], new_BT.shape[:2]
        if rows != B or length > S:
            raise ConfigError(f"a cache of {B} rows and {S} tokens cannot hold {rows} rows of {length}; see init_cache")
        new, starts = jnp.moveaxis(new_BT, 1, -1).astype(self.array.dtype), [*[0] * (new_BT.ndim - 1), column]
        if self.layer is not None:
            new, starts = new[None], [self.layer, *starts]
        starts = [jnp.asarray(start, jnp.int32) for start in starts]
        return Columns(jax.lax.dynamic_update_slice(self.array, new, starts), self.layer)

    def read(self) -> jax.Array:
        """All columns of the layer, (B, S, ...)."""
        array = self.array
        if self.layer is not None:
            array = jax.lax.dynamic_index_in_dim(array, self.layer, keepdims=False)
        columns_BS = jnp.moveaxis(array, -1, 1)
        if array.dtype == jnp.bfloat16 and target_backend() == "cpu":
            # XLA makes one product of it and what reads it, which its CPU runtime then lacks for bfloat16.
            return jax.lax.optimization_barrier(columns_BS)
        return columns_BS

    def of(self, layer: jax.Array | None) -> "Columns":
        """The part of one layer of the array of all; None for the array itself."""
        return Columns(self.array, layer)


def _is_columns(x: Any) -> bool:
    return isinstance(x, Columns)


def split(states: Any) -> tuple[Any, Any]:
    """The columns of a mixer's state, of no layer in particular, and its other arrays; each with None for the rest."""
    columns = jax.tree.map(lambda x: x.of(None) if _is_columns(x) else None, states, is_leaf=_is_columns)
    others = jax.tree.map(lambda x: None if _is_columns(x) else x, states, is_leaf=_is_columns)
    return columns, others


def joined(columns: Any, others: Any, layer: jax.Array | None = None) -> Any:
    """What :func:`split` took apart, the columns of that layer."""
    return jax.tree.map(
        lambda x, other: other if x is None else x.of(layer),
        columns,
        others,
        is_leaf=lambda x: x is None or _is_columns(x),
    )
