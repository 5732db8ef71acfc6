"""Gated linear attention (Yang, Wang, Shen, Panda and Kim, arXiv 2312.06635)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float

from mhc_jax.backend import target_backend
from mhc_jax.ops.chunks import Chunks, Form, Implementation, Walk


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
    implementation: Implementation = "xla",
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``S_t = diag(a_t) S_{t-1} + k_t v_t'``, ``y_t = S_t' q_t / sqrt(K)`` with ``a = exp(log_decay)``.

    Sums are in float32 whatever the inputs, or in float64. No exponent is above 0, and none comes from a difference of
    sums: gates from 0 to -1000 neither overflow nor lose digits. For that a chunk is cut into halves again and again,
    secondary chunking (section 4.3) down to single tokens.

    Args:
        q_BTHK, k_BTHK, v_BTHV: queries, keys, values.
        log_decay_BTHK: logarithms of the decays of every key channel, at most 0; -inf is a reset.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where states are forgotten before the token is read.
        form: ``"chunked"`` walks over chunks, with dense products inside each; ``"recurrent"`` walks over the tokens.
            A single token is one step of the recurrence in both.
        chunk: tokens of a chunk, rounded up to a power of two in the chunked form; T need not be a multiple. Only
            states between chunks are kept for the backward pass.
        implementation: ``"xla"``, or ``"pallas"`` for the chunked form in one kernel, see
            :mod:`mhc_jax.kernels.chunks`; there a chunk has at least 16 tokens, a power of two, on a GPU 64, where
            queries, keys, values and output are rounded to bfloat16.
        batch_sharding: sharding of arrays (B, ...) on several devices, which only the kernel has to know.

    Returns:
        Output (B, T, H, V) in the dtype of ``v_BTHV``, and the states after the last token (B, H, K, V).

    Raises:
        ValueError: an unknown form or implementation, ``chunk < 1``, or no kernel for these heads, this form or dtype.
    """
    Chunks.check(form, implementation, chunk=chunk)
    dtype, (B, T, H, K), V = jnp.promote_types(v_BTHV.dtype, jnp.float32), q_BTHK.shape, v_BTHV.shape[-1]
    s0_BHKV = jnp.zeros((B, H, K, V), dtype) if s0_BHKV is None else s0_BHKV.astype(dtype)
    qkv, log_decay_BTHK = (q_BTHK, k_BTHK, v_BTHV), Chunks.with_resets(log_decay_BTHK, reset_BT)
    if implementation == "pallas" and B and T > 1:
        from mhc_jax.kernels import chunks, gla  # Pallas takes long to import

        wide = *qkv, log_decay_BTHK
        return chunks.scan(gla.chunk, s0_BHKV, wide, (), chunk=chunk, batch_sharding=batch_sharding)
    inputs = [jax.lax.collapse(x.astype(dtype), 2) for x in (*qkv, Chunks.finite(log_decay_BTHK))]
    inputs[0] /= math.sqrt(K)
    size = Chunks.fitting(chunk, T)
    if form == "recurrent" or T == 1:
        s_BHKV, y_BTM = Chunks(T, size).scan(Walk(_step), s0_BHKV, inputs)
    else:
        s_BHKV, y_BTM = Chunks(T, 1 << (size - 1).bit_length()).scan(_chunk, s0_BHKV, inputs)
    return y_BTM.reshape(v_BTHV.shape).astype(v_BTHV.dtype), s_BHKV


def _step(s_BHKV, token):
    """One token."""
    q_BHK, k_BHK, v_BHV, log_decay_BHK = (x_BM.reshape(*s_BHKV.shape[:2], -1) for x_BM in token)
    s_BHKV = jnp.exp(log_decay_BHK)[..., None] * s_BHKV + k_BHK[..., None] * v_BHV[..., None, :]
    return s_BHKV, jnp.einsum("bhkv,bhk->bhv", s_BHKV, q_BHK).reshape(token[2].shape)


def _chunk(s_BHKV, piece):
    """C tokens at once, given the state before them; C is a power of two."""
    q_BHCK, k_BHCK, v_BHCV, log_decay_BHCK = (Chunks.by_head(x_BCM, s_BHKV.shape[1]) for x_BCM in piece)
    scores_BHCC, from_start_BHCK, to_end_BHCK = _scores(q_BHCK, k_BHCK, log_decay_BHCK)
    y_BHCV = scores_BHCC @ v_BHCV + (q_BHCK * jnp.exp(from_start_BHCK)) @ s_BHKV
    kept_BHK = jnp.exp(from_start_BHCK[..., -1, :])
    s_BHKV = kept_BHK[..., None] * s_BHKV + (k_BHCK * jnp.exp(to_end_BHCK)).mT @ v_BHCV
    return s_BHKV, Chunks.side_by_side(y_BHCV)


def _scores(q_BHCK, k_BHCK, log_decay_BHCK):
    """``sum_K q_i k_j exp(decays after j, up to i)`` for j <= i, and zeros.

    Blocks of a few tokens are joined to pairs, these to fours, and so on. The scores between the two halves of a joint
    block are one product: both sides are decayed to the border between them, so no exponent is above 0.

    Returns:
        The scores (B, H, C, C), and for every token the sums of the decays up to it and after it.
    """
    B, H, C, K = q_BHCK.shape
    size = min(_block(), C)
    q, k, log_decay = (x.reshape(B, H, C // size, size, K) for x in (q_BHCK, k_BHCK, log_decay_BHCK))
    scores, from_start, to_end = _block_scores(q, k, log_decay)
    while scores.shape[2] > 1:
        (q1, q2), (k1, k2), (start1, start2), (end1, end2), (scores1, scores2) = (
            (x[:, :, ::2], x[:, :, 1::2]) for x in (q, k, from_start, to_end, scores)
        )
        across = (q2 * jnp.exp(start2)) @ (k1 * jnp.exp(end1)).mT
        scores = jnp.block([[scores1, jnp.zeros_like(across)], [across, scores2]])
        q, k = jnp.concatenate([q1, q2], axis=-2), jnp.concatenate([k1, k2], axis=-2)
        to_end = jnp.concatenate([end1 + start2[..., -1:, :], end2], axis=-2)
        from_start = jnp.concatenate([start1, start2 + start1[..., -1:, :]], axis=-2)
    return scores[:, :, 0], from_start[:, :, 0], to_end[:, :, 0]


def _block() -> int:
    """Tokens of the blocks that are not cut: arithmetic counts on a CPU, and the number of kernels elsewhere."""
    return 1 if target_backend() == "cpu" else 64


def _block_scores(q_CK, k_CK, log_decay_CK):
    """The same with the halves of one size all at once, in a product of whole matrices."""
    C = q_CK.shape[-2]
    scores_CC = jnp.eye(C, dtype=q_CK.dtype) * jnp.sum(q_CK * k_CK, axis=-1, keepdims=True)
    i, j = np.ogrid[:C, :C]
    for s, across_CC in Chunks.borders(C):
        of_half_CC = (i // s == j // s) & np.where(i // s % 2 == 1, i >= j, i < j)
        decay_CK = jnp.exp(_sums(of_half_CC, log_decay_CK))
        scores_CC += jnp.where(across_CC, (q_CK * decay_CK) @ (k_CK * decay_CK).mT, 0)
    return scores_CC, _sums(i >= j, log_decay_CK), _sums(i < j, log_decay_CK)


def _sums(which_CC, x_CK):
    """Of the rows that are true in each row of ``which_CC``."""
    return jnp.einsum("ij,...jk->...ik", which_CC.astype(x_CK.dtype), x_CK, precision="highest")
