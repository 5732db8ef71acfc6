"""Softmax attention over several heads."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mhc_jax.registry import unknown

AttentionName = Literal["xla", "cudnn", "splash"]


def causal_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGK: Float[Array, "B S G K"],
    *,
    start: Int[Array, ""] | int | None = None,
    start_B: Int[Array, " B"] | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    keep_BHTS: Float[Array, "B H T S"] | None = None,
    implementation: AttentionName = "xla",
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Float[Array, "B T H K"]:
    """``softmax(q k' / sqrt(K)) v``, where query t sees the keys up to its own position (Vaswani et al. 2017, eq. 1).

    Args:
        q_BTHK: queries.
        k_BSGK, v_BSGK: keys and values, S = T unless ``start`` is given. G divides H: query head h uses head
            ``h // (H // G)`` (grouped queries, arXiv 2305.13245).
        start: position of the first query among the keys, which may then be a longer cache; later keys are not seen.
        start_B: keys before it are padding that no query sees; a query before it sees only itself and is meaningless.
        causal: False lets every query see later keys too.
        segment_ids: tokens of different segments do not see each other (S = T).
        keep_BHTS: multiplies the probabilities (dropout: 0 or 1 / (1 - rate)).
        implementation: ``"xla"`` forms all T x S scores. The others do not, and take none of ``start``, ``start_B`` and
            ``keep_BHTS``: ``"cudnn"`` is the fused kernel of NVIDIA GPUs in 16 bits, ``"splash"`` that of TPUs, see
            :func:`mhc_jax.kernels.splash.splash_attention`.
        batch_sharding: sharding of arrays (B, ...) on several devices, for kernels that XLA cannot slice.

    Raises:
        ValueError: an unknown implementation, T differs from S without ``start``, G does not divide H, or a kernel is
            asked for what it cannot do.
    """
    if implementation not in get_args(AttentionName):
        raise ValueError(unknown("implementation of attention", implementation, get_args(AttentionName)))
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    if H % G:
        raise ValueError(f"{G} heads of keys do not divide {H} heads of queries")
    if start is None and T != S:
        raise ValueError(f"{T} queries and {S} keys: give the position of the first query as start")
    same_BTS = None if segment_ids is None else segment_ids[:, :, None] == segment_ids[:, None, :]
    if implementation != "xla" and not (start is start_B is keep_BHTS is None):
        raise ValueError(f"{implementation} takes none of start, start_B and keep_BHTS; use implementation 'xla'")
    if implementation == "splash":
        from mhc_jax.kernels.splash import splash_attention  # Pallas takes long to import

        masks: dict[str, Any] = {"causal": causal, "segment_ids": segment_ids}
        return splash_attention(q_BTHK, k_BSGK, v_BSGK, **masks, batch_sharding=batch_sharding)
    if implementation == "cudnn":
        mask = None if same_BTS is None else same_BTS[:, None]
        return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, mask=mask, is_causal=causal, implementation="cudnn")
    queries_T1 = (0 if start is None else start) + jnp.arange(T)[:, None]
    visible = jnp.arange(S) <= (queries_T1 if causal else S)
    if start_B is not None:
        visible = visible & ((jnp.arange(S) >= start_B[:, None, None]) | (jnp.arange(S) == queries_T1))[:, None]
    if same_BTS is not None:
        visible = visible & same_BTS[:, None]
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    # A group of one has no axis: with it the TPU compiler takes half as long again over a layer's attention.
    q, query, score = (q_BTHK, "btgk", "bgts") if G == H else (q_BTHK.reshape(B, T, G, H // G, K), "btgrk", "bgrts")
    scores = jnp.einsum(f"{query},bsgk->{score}", q, k_BSGK, preferred_element_type=dtype) * K**-0.5
    weights = jax.nn.softmax(jnp.where(visible, scores.reshape(B, H, T, S), -jnp.inf), axis=-1)
    if keep_BHTS is not None:
        weights = weights * keep_BHTS
    weights = weights.reshape(scores.shape).astype(v_BSGK.dtype)
    return jnp.einsum(f"{score},bsgk->{query}", weights, v_BSGK).reshape(q_BTHK.shape)
