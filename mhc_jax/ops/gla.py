"""Gated linear attention (Yang, Wang, Shen, Panda and Kim, arXiv 2312.06635)."""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mhc_jax.ops.chunks import FORGET, Chunks, Form, Walk, sums_between


def gated_linear_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTHK: Float[Array, "B T H K"],
    v_BTHV: Float[Array, "B T H V"],
    log_decay_BTHK: Float[Array, "B T H K"],
    s0_BHKV: Float[Array, "B H K V"] | None = None,
    *,
    reset_BT: Bool[Array, "B T"] | None = None,
    form: Form = "chunked",
    chunk: int = 64,
    block: int = 16,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``S_t = diag(a_t) S_{t-1} + k_t v_t'``, ``y_t = S_t' q_t / sqrt(K)`` with ``a = exp(log_decay)``.

    Sums are in float32 whatever the inputs, or in float64. No exponent is above 0, and none comes from a difference of
    sums: gates from 0 to -1000 neither overflow nor lose digits.

    Args:
        q_BTHK, k_BTHK, v_BTHV: queries, keys, values.
        log_decay_BTHK: logarithms of the decays of every key channel, at most 0.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where states are forgotten before the token is read.
        form: ``"chunked"`` walks over chunks, with dense products inside each; ``"recurrent"`` walks over the tokens.
            A single token is one step of the recurrence in both.
        chunk: tokens of a chunk; T need not be a multiple. Only states between chunks are kept for the backward pass.
        block: tokens of a block of a chunk (secondary chunking, section 4.3). Scores of two blocks are one product;
            inside a block they take the decay of every pair of tokens in every channel.

    Returns:
        Output (B, T, H, V) in the dtype of ``v_BTHV``, and the states after the last token (B, H, K, V).

    Raises:
        ValueError: an unknown form, ``chunk`` or ``block`` below 1, or a ``block`` that does not divide ``chunk``.
    """
    Chunks.check(form, chunk=chunk, block=block)
    if chunk % block:
        raise ValueError(f"block {block} must divide chunk {chunk}")
    dtype, (B, T, H, K), V = jnp.promote_types(v_BTHV.dtype, jnp.float32), q_BTHK.shape, v_BTHV.shape[-1]
    if reset_BT is not None:
        log_decay_BTHK = jnp.where(reset_BT[..., None, None], FORGET, log_decay_BTHK)
    s0_BHKV = jnp.zeros((B, H, K, V), dtype) if s0_BHKV is None else s0_BHKV.astype(dtype)
    inputs = [x.astype(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK)]
    inputs[0] /= math.sqrt(K)
    if form == "recurrent" or T == 1:
        s_BHKV, y_BTHV = Chunks(T, min(chunk, T)).scan(Walk(_step), s0_BHKV, inputs)
    else:
        whole_blocks = -(-T // block) * block
        s_BHKV, y_BTHV = Chunks(T, min(chunk, whole_blocks)).scan(functools.partial(_chunk, block), s0_BHKV, inputs)
    return y_BTHV.astype(v_BTHV.dtype), s_BHKV


def _step(s_BHKV, token):
    """One token."""
    q_BHK, k_BHK, v_BHV, log_decay_BHK = token
    s_BHKV = jnp.exp(log_decay_BHK)[..., None] * s_BHKV + k_BHK[..., None] * v_BHV[..., None, :]
    return s_BHKV, jnp.einsum("bhkv,bhk->bhv", s_BHKV, q_BHK)


def _chunk(block, s_BHKV, piece):
    """N blocks of R tokens at once, given the state before them."""
    q, k, v, log_decay = (_blocks(jnp.swapaxes(x, 1, 2), block) for x in piece)  # (B, H, N, R, ...)
    B, H, N, R, V = v.shape
    pairs_BHNRRK = sums_between(log_decay)
    from_start = jnp.cumsum(log_decay, axis=-2)
    to_end = pairs_BHNRRK[..., -1, :, :]
    total_BHNK = from_start[..., -1, :]
    blocks_BHNNK = sums_between(total_BHNK)
    # At [n, m]: over the blocks after m and before n.
    apart_BHNNK = jnp.pad(blocks_BHNNK[..., :-1, :, :], [(0, 0), (0, 0), (1, 0), (0, 0), (0, 0)])
    before_BHNK = jnp.pad(jnp.cumsum(total_BHNK, axis=-2), [(0, 0), (0, 0), (1, 0), (0, 0)])

    # Scores of an earlier block's keys, met at the start of the query's block.
    q_met = q * jnp.exp(from_start)
    k_met = k[:, :, None] * jnp.exp(to_end[:, :, None] + apart_BHNNK[..., None, :])
    far_BHNRNR = jnp.einsum("bhnik,bhnmjk->bhnimj", q_met, k_met)
    # Scores inside a block.
    seen_RR = jnp.tril(jnp.ones((R, R), bool))
    decay_BHNRRK = jnp.exp(jnp.where(seen_RR[..., None], pairs_BHNRRK, -jnp.inf))
    near_BHNRR = jnp.einsum("bhnik,bhnjk,bhnijk->bhnij", q, k, decay_BHNRRK)

    earlier_NN, same_NN = jnp.tril(jnp.ones((N, N), v.dtype), -1), jnp.eye(N, dtype=v.dtype)
    scores_BHNRNR = far_BHNRNR * earlier_NN[:, None, :, None]
    scores_BHNRNR += near_BHNRR[..., None, :] * same_NN[:, None, :, None]
    y = jnp.einsum("bhnimj,bhmjv->bhniv", scores_BHNRNR, v)
    y += jnp.einsum("bhnik,bhkv->bhniv", q_met * jnp.exp(before_BHNK[..., :-1, None, :]), s_BHKV)

    k_left = k * jnp.exp(to_end + blocks_BHNNK[..., -1, :, None, :])
    s_BHKV = jnp.exp(before_BHNK[..., -1, :])[..., None] * s_BHKV + jnp.einsum("bhnjk,bhnjv->bhkv", k_left, v)
    return s_BHKV, jnp.swapaxes(y.reshape(B, H, N * R, V), 1, 2)


def _blocks(x_BHCM, block):
    """(B, H, C / block, block, ...)."""
    B, H, C, *rest = x_BHCM.shape
    return x_BHCM.reshape(B, H, C // block, block, *rest)
