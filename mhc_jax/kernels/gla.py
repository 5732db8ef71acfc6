"""A chunk of gated linear attention in the kernels of :mod:`mhc_jax.kernels.chunks`."""

import functools

import jax.numpy as jnp

from mhc_jax.kernels.heads import Heads, sizes_of_halves
from mhc_jax.ops.chunks import Chunks


def chunk(heads: Heads, s_VK, q_CK, k_CK, v_CV, log_decay_CK):
    """C tokens of heads side by side, given the state before them, as in :mod:`mhc_jax.ops.gla`.

    Two tokens meet at the border between two halves of ``s`` tokens, to which both are decayed; ``s`` is the highest
    bit in which their numbers differ.
    """
    C = len(q_CK)
    i, j = heads.pairs(C)
    decays = heads.sums(Chunks.finite(log_decay_CK))

    def across(s, q_CK, k_CK):
        decay_CK = jnp.exp(decays.to_border(s))
        return heads.times_transposed(q_CK * decay_CK, k_CK * decay_CK)

    def read(q_CK, s_VK):
        return heads.times_transposed(q_CK * jnp.exp(decays.from_start()), s_VK)

    def carried(s_VK, k_CK, v_CV):
        written_VK = heads.transposed_times(v_CV, k_CK * jnp.exp(decays.to_end()))
        return jnp.exp(decays.total(len(s_VK))) * s_VK + written_VK

    scores_CC = heads.times_transposed(q_CK, k_CK)
    for s in sizes_of_halves(C):
        scores_CC = jnp.where(i ^ j >= s, heads.recomputed(functools.partial(across, s))(q_CK, k_CK), scores_CC)
    y_CV = heads.recomputed(read)(q_CK, s_VK) + heads.times(jnp.where(i >= j, scores_CC, 0), v_CV)
    return heads.recomputed(carried)(s_VK, k_CK, v_CV), y_CV
