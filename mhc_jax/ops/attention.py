"""Causal softmax attention over several heads."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mhc_jax.registry import unknown

AttentionName = Literal["xla", "cudnn"]


def causal_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSHK: Float[Array, "B S H K"],
    v_BSHK: Float[Array, "B S H K"],
    *,
    start: Int[Array, ""] | int | None = None,
    first_B: Int[Array, " B"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    keep_BHTS: Float[Array, "B H T S"] | None = None,
    implementation: AttentionName = "xla",
) -> Float[Array, "B T H K"]:
    """``softmax(q k' / sqrt(K)) v``, where query t sees the keys up to its own position (Vaswani et al. 2017, eq. 1).

    Args:
        q_BTHK, k_BSHK, v_BSHK: queries, keys and values; S = T unless ``start`` is given.
        start: position of the first query among the keys, which may then be a longer cache; later keys are not seen.
        first_B: keys before it are padding that no query sees; a query before it sees itself alone, and means nothing.
        segment_ids: tokens of different segments do not see each other (S = T).
        keep_BHTS: multiplies the probabilities (dropout: 0 or 1 / (1 - rate)).
        implementation: ``"cudnn"`` is the fused kernel of NVIDIA GPUs in bfloat16; it takes none of
            ``start``, ``first_B`` and ``keep_BHTS``.

    Raises:
        ValueError: an unknown implementation, T differs from S without ``start``, or cuDNN is asked for what it
            cannot do.
    """
    if implementation not in get_args(AttentionName):
        raise ValueError(unknown("implementation of attention", implementation, get_args(AttentionName)))
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    if start is None and T != S:
        raise ValueError(f"{T} queries and {S} keys: give the position of the first query as start")
    same_BTS = None if segment_ids is None else segment_ids[:, :, None] == segment_ids[:, None, :]
    if implementation == "cudnn":
        if not (start is first_B is keep_BHTS is None):
            raise ValueError("cudnn attention takes none of start, first_B and keep_BHTS; use implementation 'xla'")
        mask = None if same_BTS is None else same_BTS[:, None]
        return jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=mask, is_causal=True, implementation="cudnn")
    queries_T1 = (0 if start is None else start) + jnp.arange(T)[:, None]
    visible = jnp.arange(S) <= queries_T1
    if first_B is not None:
        visible = visible & ((jnp.arange(S) >= first_B[:, None, None]) | (jnp.arange(S) == queries_T1))[:, None]
    if same_BTS is not None:
        visible = visible & same_BTS[:, None]
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    scores = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=dtype) * q_BTHK.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    if keep_BHTS is not None:
        weights = weights * keep_BHTS
    return jnp.einsum("bhts,bshk->bthk", weights.astype(v_BSHK.dtype), v_BSHK)
