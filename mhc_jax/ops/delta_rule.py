"""The gated delta rule of Gated DeltaNet (Yang, Kautz and Hatamizadeh, arXiv 2412.06464)."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float

from mhc_jax.backend import target_backend
from mhc_jax.ops.chunks import Chunks, Form, Implementation, Walk, sums_between


def gated_delta_rule(
    q_BTHK: Float[Array, "B T H K"],
    k_BTHK: Float[Array, "B T H K"],
    v_BTHV: Float[Array, "B T H V"],
    log_decay_BTH: Float[Array, "B T H"],
    beta_BTH: Float[Array, "B T H"],
    s0_BHKV: Float[Array, "B H K V"] | None = None,
    *,
    reset_BT: Bool[Array, "B T"] | None = None,
    form: Form = "chunked",
    chunk: int = 64,
    implementation: Implementation = "xla",
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``S_t = a_t (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'``, ``y_t = S_t' q_t / sqrt(K)``.

    With ``a = exp(log_decay)``. A token corrects what the decayed state answers to its key towards its value, by the
    share ``beta``: with a key of length 1, ``beta`` = 1 replaces the answer, and ``beta`` in (1, 2) gives the state's
    transition a negative eigenvalue.

    Inside a chunk all corrections are the solution of one triangular system (the UT transform, section 3.3). Sums are
    in float32 whatever the inputs, or in float64; every exponent is at most 0 and comes without cancellation.

    Args:
        q_BTHK: queries.
        k_BTHK: keys, usually of length 1.
        v_BTHV: values.
        log_decay_BTH: logarithms of the decays, at most 0; -inf is a reset.
        beta_BTH: strength of the correction.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where states are forgotten before the token is read.
        form: ``"chunked"`` walks over chunks, with dense products inside each; ``"recurrent"`` walks over the tokens.
            A single token is one step of the recurrence in both.
        chunk: tokens of a chunk; T need not be a multiple. Only states between chunks are kept for the backward pass.
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
    log_decay_BTH = Chunks.finite(Chunks.with_resets(log_decay_BTH, reset_BT))
    qkv, gates = (q_BTHK, k_BTHK, v_BTHV), (log_decay_BTH, beta_BTH)
    if implementation == "pallas" and B and T > 1:
        from mhc_jax.kernels import chunks, delta_rule  # Pallas takes long to import

        return chunks.scan(delta_rule.chunk, s0_BHKV, qkv, gates, chunk=chunk, batch_sharding=batch_sharding)
    inputs = [jax.lax.collapse(x.astype(dtype), 2) for x in (*qkv, *gates)]
    inputs[0] /= math.sqrt(K)
    inside = Walk(_step) if form == "recurrent" or T == 1 else _chunk
    s_BHKV, y_BTM = Chunks(T, Chunks.fitting(chunk, T)).scan(inside, s0_BHKV, inputs)
    return y_BTM.reshape(v_BTHV.shape).astype(v_BTHV.dtype), s_BHKV


def _step(s_BHKV, token):
    """One token."""
    *qkv, log_decay_BH, beta_BH = token
    q_BHK, k_BHK, v_BHV = (x_BM.reshape(*s_BHKV.shape[:2], -1) for x_BM in qkv)
    s_BHKV = jnp.exp(log_decay_BH)[..., None, None] * s_BHKV
    correction_BHV = beta_BH[..., None] * (v_BHV - jnp.einsum("bhkv,bhk->bhv", s_BHKV, k_BHK))
    s_BHKV = s_BHKV + k_BHK[..., None] * correction_BHV[..., None, :]
    return s_BHKV, jnp.einsum("bhkv,bhk->bhv", s_BHKV, q_BHK).reshape(token[2].shape)


def _chunk(s_BHKV, piece):
    """C tokens at once, given the state before them."""
    q_BHCK, k_BHCK, v_BHCV, log_decay_BHC1, beta_BHC1 = (Chunks.by_head(x_BCM, s_BHKV.shape[1]) for x_BCM in piece)
    between_BHCC = sums_between(log_decay_BHC1)[..., 0]
    seen = jnp.tril(jnp.ones(between_BHCC.shape[-2:], bool))
    decay_BHCC = jnp.exp(jnp.where(seen, between_BHCC, -jnp.inf))
    since_BHC1 = jnp.exp(jnp.cumsum(log_decay_BHC1, axis=-2))

    # What a token corrects depends on the corrections before it: (I + L) corrections = beta (v - answers of S).
    lower_BHCC = jnp.tril(beta_BHC1 * (k_BHCK @ k_BHCK.mT) * decay_BHCC, -1)
    asked_BHCV = beta_BHC1 * (v_BHCV - since_BHC1 * (k_BHCK @ s_BHKV))
    correction_BHCV = _unit_lower_solve(lower_BHCC, asked_BHCV)

    y_BHCV = since_BHC1 * (q_BHCK @ s_BHKV) + ((q_BHCK @ k_BHCK.mT) * decay_BHCC) @ correction_BHCV
    kept_BHC1 = decay_BHCC[..., -1, :, None]
    s_BHKV = since_BHC1[..., -1:, :] * s_BHKV + (kept_BHC1 * k_BHCK).mT @ correction_BHCV
    return s_BHKV, Chunks.side_by_side(y_BHCV)


def _unit_lower_solve(l_CC: Float[Array, "*B C C"], b_CV: Float[Array, "*B C V"]) -> Float[Array, "*B C V"]:
    """``(I + L)^-1 B`` for L with nothing on and above its diagonal; derivatives are solutions with the same matrix."""
    inverse_CC = _unit_lower_inverse(jax.lax.stop_gradient(l_CC))
    return jax.lax.custom_linear_solve(
        lambda x_CV: x_CV + l_CC @ x_CV, b_CV, lambda _, b_CV: inverse_CC @ b_CV, lambda _, b_CV: inverse_CC.mT @ b_CV
    )


def _unit_lower_inverse(l_CC: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """The inverse of I + L, L being what of the argument lies below its diagonal.

    By halves, ``[[A, 0], [M, B]]^-1 = [[A^-1, 0], [-B^-1 M A^-1, B^-1]]``: products alone, which accelerators are made
    for, and none of powers of L, whose entries would grow where those of the inverse do not. In small triangles all
    halves of one size at once, under a mask. (On CPU, XLA's triangular solves of a batch can also wait for each other
    forever.)
    """
    C = l_CC.shape[-1]
    if _uncut() >= C:
        inverse_CC = jnp.broadcast_to(jnp.eye(C, dtype=l_CC.dtype), l_CC.shape)
        for s, across_CC in Chunks.borders(C):
            below_CC = jnp.where(across_CC, l_CC, 0)
            inverse_CC -= below_CC if s == 1 else inverse_CC @ below_CC @ inverse_CC
        return inverse_CC
    half = C // 2
    upper, lower = _unit_lower_inverse(l_CC[..., :half, :half]), _unit_lower_inverse(l_CC[..., half:, half:])
    corner = -lower @ l_CC[..., half:, :half] @ upper
    return jnp.block([[upper, jnp.zeros_like(corner.mT)], [corner, lower]])


def _uncut() -> int:
    """Rows of triangles that are not cut: several times the least arithmetic, in few kernels, which count on a GPU."""
    return 64 if target_backend() == "gpu" else 16
