"""Faults seeded in SHC: its rotations, its choices, its masks."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mhc_jax.ops.streams import Streams
from parity_tests.mutations import Mutation, argument, op, options


def mutations() -> Iterator[Mutation]:
    yield op("rotations backwards in SHC", "projections.cayley_transform", argument("entries_K", jnp.negative), "of 4")
    yield op("components shifted the other way", "projections.spread_rotations", _transposed)
    yield op("masked streams are mixed", "projections.masked_mixing", argument("mask_N", jnp.ones_like))
    yield op("one component too many", "routing.top_k_softmax", options(k=4), "of 3")
    yield op("chosen weights not renormalised", "routing.top_k_softmax", _not_renormalised, "of 3")
    yield op("all streams but the first ones", "routing.prefix_mask", _suffix)
    site = "mhc_jax.nn.residual.shc:_of_mean"
    yield Mutation("routing by the first stream alone", site, _first_stream, "modules", "site of topology shc")


def _transposed(healthy):
    return lambda **arrays: jnp.swapaxes(healthy(**arrays), -1, -2)


def _not_renormalised(healthy):
    return lambda logits_K, k: jnp.where(healthy(logits_K, k=k) > 0, jax.nn.softmax(logits_K), 0)


def _suffix(healthy):
    return lambda choice_N: 1 - healthy(choice_N) + choice_N


def _first_stream(healthy):
    return lambda h, phi_KD: healthy(Streams.copies(h.stack()[..., 0, :], len(h)), phi_KD)
