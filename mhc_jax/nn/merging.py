"""Prefixes under an operation that is a network: which side is which, and the auxiliary losses of its parts."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.prefix_scan import ScanForm, prefixes

Merge = Callable[[jax.Array, jax.Array, Scope], jax.Array]


class Marks(nnx.Module):
    """Vectors (K, D) that tell K kinds of summaries apart, to which they are added."""

    def __init__(self, count: int, width: int, std: float, init: Init):
        self.table = init("table", normal(std), count, width, role="table", axes=("", "width"))


def merged_prefixes(merge: Merge, x_BRCD: jax.Array, scope: Scope, form: ScanForm) -> jax.Array:
    """The prefixes of 1, 2, ..., R elements (C, D) of every text, (B, R, C, D).

    An auxiliary loss of ``merge`` is recorded as its mean over all merges that prefixes consist of, each of them taken
    over all texts and counted once. Without such losses all pairs of a level are merged by one call, otherwise one
    after another.

    Args:
        merge: of older and newer elements (rows, C, D), in a scope with a key of its own.
        scope: of all merges.
        form: see :func:`mhc_jax.ops.prefix_scan.prefixes`.
    """
    (B, R, C, D), calls = x_BRCD.shape, itertools.count()
    x_RBCD = jnp.swapaxes(x_BRCD, 0, 1)

    def together(older_MBCD, newer_MBCD):
        # Rows of one text stay together, as the devices of a mesh have them.
        older, newer = (jnp.swapaxes(x, 0, 1).reshape(-1, C, D) for x in (older_MBCD, newer_MBCD))
        merged = merge(older, newer, scope.keyed(str(next(calls))))
        return jnp.swapaxes(merged.reshape(B, -1, C, D), 0, 1)

    def one(older_BCD, newer_BCD, key):
        """One merge in all texts, and what is tallied: that there was one, and its losses."""
        inside = scope.replace(key=key, penalties={})
        return merge(older_BCD, newer_BCD, inside), (jnp.ones(()), inside.mean_penalties())

    def in_turn(older, newer):
        (older_MBCD, _), (newer_MBCD, tally) = older, newer
        key = scope.key_of(str(next(calls)))
        keys_M = None if key is None else jax.random.split(key, len(newer_MBCD))
        merged_MBCD, own = jax.lax.map(lambda pair: one(*pair), (older_MBCD, newer_MBCD, keys_M))
        # A prefix tallies the merges that its last element made possible: all prefixes together each merge once.
        return merged_MBCD, jax.tree.map(jnp.add, tally, own)

    _, own = jax.eval_shape(one, x_RBCD[0], x_RBCD[0], scope.key)
    if R == 1 or not own[1]:
        return jnp.swapaxes(prefixes(together, x_RBCD, form=form), 0, 1)
    tally = jax.tree.map(lambda x: jnp.zeros((R, *x.shape), x.dtype), own)
    found_RBCD, (merges_R, losses) = prefixes(in_turn, (x_RBCD, tally), form=form)
    for name, loss_R in losses.items():
        scope.penalise(name, loss_R.sum() / merges_R.sum())
    return jnp.swapaxes(found_RBCD, 0, 1)
