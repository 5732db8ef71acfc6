"""A chunk of the gated delta rule in the kernels of :mod:`mhc_jax.kernels.chunks`."""

import functools

import jax
import jax.numpy as jnp

from mhc_jax.kernels.heads import Heads, sizes_of_halves


def chunk(heads: Heads, s_VK, q_CK, k_CK, v_CV, log_decays_C1, betas_C1):
    """C tokens of heads side by side, given the state before them, as in :mod:`mhc_jax.ops.delta_rule`."""
    C, K, V = len(q_CK), q_CK.shape[1] // heads.count, v_CV.shape[1] // heads.count
    i, j = heads.pairs(C)
    between_CC = heads.sums(jnp.where(i > j, heads.spread(log_decays_C1, C), 0)).from_start()
    decay_CC = jnp.where(i >= j, jnp.exp(between_CC), 0)
    of_values, of_keys = (heads.sums(heads.spread(log_decays_C1, width)) for width in (V, K))
    since_CV = jnp.exp(of_values.from_start())

    of_queries_CC, of_keys_CC = heads.each_times_transposed([q_CK, k_CK], k_CK)
    read_CV, answer_CV = heads.each_times_transposed([q_CK, k_CK], s_VK)

    # What a token corrects depends on the corrections before it: (I + L) corrections = beta (v - answers of S).
    lower_CC = jnp.where(i > j, heads.spread(betas_C1, C) * of_keys_CC * decay_CC, 0)
    asked_CV = heads.spread(betas_C1, V) * (v_CV - since_CV * answer_CV)
    correction_CV = _unit_lower_solve(heads, lower_CC, asked_CV)

    y_CV = since_CV * read_CV + heads.times(of_queries_CC * decay_CC, correction_CV)
    written_VK = heads.transposed_times(correction_CV, k_CK * jnp.exp(of_keys.to_end()))
    return jnp.exp(of_keys.total(V)) * s_VK + written_VK, y_CV


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unit_lower_solve(heads, l_CC, b_CV):
    """``(I + L)^-1 B`` of every head, for L with nothing on and above its diagonal."""
    return heads.times(_unit_lower_inverse(heads, l_CC), b_CV)


def _solve_forward(heads, l_CC, b_CV):
    inverse_CC = _unit_lower_inverse(heads, l_CC)
    x_CV = heads.times(inverse_CC, b_CV)
    return x_CV, (inverse_CC, x_CV)


def _solve_backward(heads, saved, dx_CV):
    """The solution with the transposed matrix."""
    inverse_CC, x_CV = saved
    db_CV = heads.transposed_times(inverse_CC, dx_CV)
    return -heads.times_transposed(db_CV, x_CV), db_CV


_unit_lower_solve.defvjp(_solve_forward, _solve_backward)


def _unit_lower_inverse(heads, l_CC):
    """The inverse of I + L by halves, as in :mod:`mhc_jax.ops.delta_rule`: all halves of one size at once."""
    C = len(l_CC)
    i, j = heads.pairs(C)
    inverse_CC = jnp.where(i == j, 1.0, 0.0)
    for s in sizes_of_halves(C):
        below_CC = jnp.where((i ^ j >= s) & (i ^ j < 2 * s), l_CC, 0)
        inverse_CC -= below_CC if s == 1 else heads.times(heads.times(inverse_CC, below_CC), inverse_CC)
    return inverse_CC
