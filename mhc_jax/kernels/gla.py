"""A chunk of gated linear attention in the kernel of :mod:`mhc_jax.kernels.chunks`."""

import jax.numpy as jnp

from mhc_jax.kernels.heads import Heads, halves, second_half, sizes_of_halves


def chunk(heads: Heads, s_VK, q_CK, k_CK, v_CV, log_decay_CK):
    """C tokens of heads side by side, given the state before them, as in :mod:`mhc_jax.ops.gla`.

    Two tokens meet at the border between two halves of ``s`` tokens, to which both are decayed; ``s`` is the highest
    bit in which their numbers differ.
    """
    C = len(q_CK)
    i, j = heads.pairs(C)
    scores_CC = heads.times_transposed(q_CK, k_CK)
    *cut, (from_start_CK, to_end_CK) = halves(log_decay_CK)
    for s, (first_CK, rest_CK) in zip(sizes_of_halves(C), cut, strict=True):
        decay_CK = jnp.exp(jnp.where(second_half(q_CK.shape, s), first_CK, rest_CK))
        scores_CC = jnp.where(i ^ j >= s, heads.times_transposed(q_CK * decay_CK, k_CK * decay_CK), scores_CC)
    read_CV = heads.times_transposed(q_CK * jnp.exp(from_start_CK), s_VK)
    y_CV = read_CV + heads.times(jnp.where(i >= j, scores_CC, 0), v_CV)
    written_VK = heads.transposed_times(v_CV, k_CK * jnp.exp(to_end_CK))
    return jnp.exp(from_start_CK[-1:]) * s_VK + written_VK, y_CV
