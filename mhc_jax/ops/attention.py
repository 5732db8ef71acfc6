"""Softmax attention over several heads, and over latents from which their keys and values are made."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mhc_jax.backend import target_backend
from mhc_jax.registry import unknown

AttentionName = Literal["xla", "cudnn", "splash"]

# On a CPU, scores of that many queries or more are formed in blocks, each of which leaves out the keys behind it: with
# four, some 5/8 of the scores. More blocks are no faster, and neither are shorter ones.
CPU_ROWS, CPU_BLOCKS = 128, 4


def causal_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGV: Float[Array, "B S G V"],
    *,
    scale: float | None = None,
    start: Int[Array, ""] | int | None = None,
    start_B: Int[Array, " B"] | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    keep_BHTS: Float[Array, "B H T S"] | None = None,
    implementation: AttentionName = "xla",
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Float[Array, "B T H V"]:
    """``softmax(q k' / sqrt(K)) v``, where query t sees the keys up to its own position (Vaswani et al. 2017, eq. 1).

    Args:
        q_BTHK: queries.
        k_BSGK, v_BSGV: keys and values, S = T unless ``start`` is given. G divides H: query head h uses head
            ``h // (H // G)`` (grouped queries, arXiv 2305.13245).
        scale: factor of the scores; ``1 / sqrt(K)`` if None.
        start: position of the first query among the keys, which may then be a longer cache; later keys are not seen.
        start_B: keys before it are padding that no query sees; a query before it sees only itself and is meaningless.
        causal: False lets every query see later keys too.
        segment_ids: tokens of different segments do not see each other (S = T).
        keep_BHTS: multiplies the probabilities (dropout: 0 or 1 / (1 - rate)).
        implementation: ``"xla"`` forms the T x S scores, on a CPU without many of those that no query sees. The others
            do not, and take none of ``start``, ``start_B`` and ``keep_BHTS``: ``"cudnn"`` is the fused kernel of NVIDIA
            GPUs in 16 bits, ``"splash"`` that of TPUs, see :func:`mhc_jax.kernels.splash.splash_attention`.
        batch_sharding: sharding of arrays (B, ...) on several devices, for kernels that XLA cannot slice.

    Raises:
        ValueError: an unknown implementation, T differs from S without ``start``, G does not divide H, or a kernel is
            asked for what it cannot do.
    """
    if implementation not in get_args(AttentionName):
        raise ValueError(unknown("implementation of attention", implementation, get_args(AttentionName)))
    (B, _, H, K), G = q_BTHK.shape, k_BSGK.shape[2]
    if H % G:
        raise ValueError(f"{G} heads of keys do not divide {H} heads of queries")
    T, S = _lengths(q_BTHK, k_BSGK, start)
    if implementation != "xla" and not (start is start_B is keep_BHTS is None):
        raise ValueError(f"{implementation} takes none of start, start_B and keep_BHTS; use implementation 'xla'")
    scale = math.pow(K, -0.5) if scale is None else scale
    if implementation == "splash":
        from mhc_jax.kernels.splash import splash_attention  # Pallas takes long to import

        masks: dict[str, Any] = {"causal": causal, "segment_ids": segment_ids}
        return splash_attention(q_BTHK, k_BSGK, v_BSGV, scale=scale, **masks, batch_sharding=batch_sharding)
    if implementation == "cudnn":
        return _cudnn(q_BTHK, k_BSGK, v_BSGV, scale, causal, segment_ids)
    visible = _visible(T, S, start, start_B, causal, segment_ids)
    # A length that is a symbol, as in exported programs, has no blocks.
    if not (causal and start is None and target_backend() == "cpu" and isinstance(T, int) and T >= CPU_ROWS):
        return _over_keys(q_BTHK, k_BSGK, v_BSGV, scale, visible, keep_BHTS)

    def rows(first: int, last: int) -> jax.Array:
        """Of the queries from ``first`` to ``last``, over the keys that any of them may see."""
        keep = None if keep_BHTS is None else jnp.broadcast_to(keep_BHTS, (B, H, T, T))[..., first:last, :last]
        k, v, seen = k_BSGK[:, :last], v_BSGV[:, :last], visible[..., first:last, :last]
        return _over_keys(q_BTHK[:, first:last], k, v, scale, seen, keep)

    length = -(-T // CPU_BLOCKS)
    return jnp.concatenate([rows(first, min(first + length, T)) for first in range(0, T, length)], axis=1)


def _over_keys(q_BTHK, k_BSGK, v_BSGV, scale: float, visible: jax.Array, keep_BHTS: jax.Array | None) -> jax.Array:
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    # A group of one has no axis: with it the TPU compiler takes half as long again over a layer's attention.
    q, query, score = (q_BTHK, "btg", "bgts") if G == H else (q_BTHK.reshape(B, T, G, H // G, K), "btgr", "bgrts")
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    scores = jnp.einsum(f"{query}k,bsgk->{score}", q, k_BSGK, preferred_element_type=dtype) * scale
    weights = _weights(scores.reshape(B, H, T, S), visible, keep_BHTS)
    weights = weights.reshape(scores.shape).astype(v_BSGV.dtype)
    return jnp.einsum(f"{score},bsgv->{query}v", weights, v_BSGV).reshape(B, T, H, v_BSGV.shape[-1])


def latent_attention(
    q_BTHK: Float[Array, "B T H K"],
    q_rope_BTHP: Float[Array, "B T H P"],
    latent_BSR: Float[Array, "B S R"],
    k_rope_BSP: Float[Array, "B S P"],
    k_up_RHK: Float[Array, "R H K"],
    v_up_RHV: Float[Array, "R H V"],
    *,
    scale: float | None = None,
    start: Int[Array, ""] | int | None = None,
    start_B: Int[Array, " B"] | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    keep_BHTS: Float[Array, "B H T S"] | None = None,
    implementation: AttentionName = "xla",
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Float[Array, "B T H V"]:
    """Attention whose keys and values are made of latents (DeepSeek-V2, arXiv 2405.04434, eq. 9 to 19).

    Key h of token s is ``[k_up_h c_s; k_rope_s]``, its value ``v_up_h c_s``. Both are formed here: the form for many
    queries, as in training.

    Args:
        q_BTHK, q_rope_BTHP: the two parts of every query, for what has no position and for what is turned.
        latent_BSR: latents c, S = T unless ``start`` is given.
        k_rope_BSP: turned part of the keys, one for all heads; P may be 0.
        k_up_RHK, v_up_RHV: from a latent to keys and values.
        scale: factor of the scores; ``1 / sqrt(K + P)`` if None.
        start, start_B, causal, segment_ids, keep_BHTS, implementation, batch_sharding: see :func:`causal_attention`.

    Raises:
        ValueError: see :func:`causal_attention`.
    """
    k_BSHK = jnp.einsum("bsr,rhk->bshk", latent_BSR, k_up_RHK)
    v_BSHV = jnp.einsum("bsr,rhv->bshv", latent_BSR, v_up_RHV)
    k_rope_BSHP = jnp.broadcast_to(k_rope_BSP[:, :, None], (*k_BSHK.shape[:3], k_rope_BSP.shape[-1]))
    return causal_attention(
        jnp.concatenate([q_BTHK, q_rope_BTHP], axis=-1),
        jnp.concatenate([k_BSHK, k_rope_BSHP], axis=-1),
        v_BSHV,
        scale=scale,
        start=start,
        start_B=start_B,
        causal=causal,
        segment_ids=segment_ids,
        keep_BHTS=keep_BHTS,
        implementation=implementation,
        batch_sharding=batch_sharding,
    )


def absorbed_latent_attention(
    q_BTHK: Float[Array, "B T H K"],
    q_rope_BTHP: Float[Array, "B T H P"],
    latent_BSR: Float[Array, "B S R"],
    k_rope_BSP: Float[Array, "B S P"],
    k_up_RHK: Float[Array, "R H K"],
    v_up_RHV: Float[Array, "R H V"],
    *,
    scale: float | None = None,
    start: Int[Array, ""] | int | None = None,
    start_B: Int[Array, " B"] | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    keep_BHTS: Float[Array, "B H T S"] | None = None,
) -> Float[Array, "B T H V"]:
    """:func:`latent_attention` without keys and values: the form for few queries, as in decoding.

    ``q_h' (k_up_h c) = (k_up_h' q_h)' c``, so queries go to the latents; values are made of the one latent that every
    head has mixed. Each step then reads the latents once for all heads.
    """
    (K, P), dtype = (q_BTHK.shape[-1], q_rope_BTHP.shape[-1]), jnp.promote_types(q_BTHK.dtype, jnp.float32)
    T, S = _lengths(q_BTHK, latent_BSR, start)
    q_BTHR = jnp.einsum("bthk,rhk->bthr", q_BTHK, k_up_RHK)
    scores = jnp.einsum("bthr,bsr->bhts", q_BTHR, latent_BSR, preferred_element_type=dtype)
    scores += jnp.einsum("bthp,bsp->bhts", q_rope_BTHP, k_rope_BSP, preferred_element_type=dtype)
    scale = math.pow(K + P, -0.5) if scale is None else scale
    weights = _weights(scores * scale, _visible(T, S, start, start_B, causal, segment_ids), keep_BHTS)
    mixed_BTHR = jnp.einsum("bhts,bsr->bthr", weights.astype(latent_BSR.dtype), latent_BSR)
    return jnp.einsum("bthr,rhv->bthv", mixed_BTHR, v_up_RHV)


def _lengths(queries: jax.Array, keys: jax.Array, start: Any) -> tuple[int, int]:
    """T and S of arrays (B, T, ...) and (B, S, ...)."""
    T, S = queries.shape[1], keys.shape[1]
    if start is None and T != S:
        raise ValueError(f"{T} queries and {S} keys: give the position of the first query as start")
    return T, S


def _visible(T: int, S: int, start: Any, start_B: Any, causal: bool, segment_ids: Any) -> jax.Array:
    """Which keys each query sees, broadcast to (B, H, T, S)."""
    queries_T1 = (0 if start is None else start) + jnp.arange(T)[:, None]
    visible = jnp.arange(S) <= (queries_T1 if causal else S)
    if start_B is not None:
        visible = visible & ((jnp.arange(S) >= start_B[:, None, None]) | (jnp.arange(S) == queries_T1))[:, None]
    return visible if segment_ids is None else visible & _same(segment_ids)


def _same(segment_ids: jax.Array) -> jax.Array:
    """Pairs of tokens in one segment, (B, 1, T, T)."""
    return (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]


def _weights(scores_BHTS: jax.Array, visible: jax.Array, keep_BHTS: jax.Array | None) -> jax.Array:
    """Probabilities over the keys that are seen."""
    weights_BHTS = jax.nn.softmax(jnp.where(visible, scores_BHTS, -jnp.inf), axis=-1)
    return weights_BHTS if keep_BHTS is None else weights_BHTS * keep_BHTS


def _cudnn(q_BTHK, k_BSGK, v_BSGV, scale: float, causal: bool, segment_ids: Any) -> jax.Array:
    """The fused kernel, which has one width for keys and values: zeros fill the narrower ones."""
    width, mask = max(q_BTHK.shape[-1], v_BSGV.shape[-1]), None if segment_ids is None else _same(segment_ids)
    q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[-1]),)) for x in (q_BTHK, k_BSGK, v_BSGV))
    y = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, is_causal=causal, implementation="cudnn")
    return y[..., : v_BSGV.shape[-1]]
