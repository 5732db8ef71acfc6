"""Softmax attention over several heads, and over the latents of multi-head latent attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGV: Tensor,
    *,
    scale: float | None = None,
    start: int | None = None,
    start_B: Tensor | None = None,
    segment_ids: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q k' / sqrt(K)) v``, where query t sees the keys up to its own column.

    Args:
        q_BTHK: queries (B, T, H, K).
        k_BSGK, v_BSGV: keys and values of G heads; S = T unless ``start`` is given. G divides H: query head h uses head
            ``h // (H // G)``.
        scale: multiplies the scores, in place of 1 / sqrt(K).
        start: column of the first query among the keys.
        start_B: (B,) column of each row's first token; keys before it are seen only by their own query.
        segment_ids: (B, T); tokens of different segments do not see each other. Keys before ``start`` belong to the
            first query's segment.
        causal: False lets a query see later keys too.
        dropout: probability with which each attention probability is dropped.

    Returns:
        (B, T, H, V).

    Raises:
        ValueError: T differs from S without ``start``, or G does not divide H.
    """
    (T, H), (S, G) = q_BTHK.shape[1:3], k_BSGK.shape[1:3]
    if start is None and T != S:
        raise ValueError(f"{T} queries and {S} keys: give the position of the first query as start")
    if H % G:
        raise ValueError(f"{H} query heads are not a multiple of {G} key heads")
    heads_first = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGV))
    options = {"dropout_p": dropout, "enable_gqa": H != G, "scale": scale}
    if start is None and start_B is None and segment_ids is None:
        return F.scaled_dot_product_attention(*heads_first, is_causal=causal, **options).transpose(1, 2)
    start = start or 0
    keys_S = torch.arange(S, device=q_BTHK.device)
    queries_T1 = (torch.arange(T, device=q_BTHK.device) + start)[:, None]
    visible = keys_S <= queries_T1 if causal else torch.ones(T, S, dtype=torch.bool, device=q_BTHK.device)
    if start_B is not None:
        visible = visible & ((keys_S >= start_B[:, None, None, None]) | (keys_S == queries_T1))
    if segment_ids is not None:
        before_BS = segment_ids[:, :1].expand(-1, start)
        key_ids_BS = torch.cat([before_BS, segment_ids], 1)[:, :S]
        visible = visible & (segment_ids[:, None, :, None] == key_ids_BS[:, None, None, :])
    return F.scaled_dot_product_attention(*heads_first, attn_mask=visible, **options).transpose(1, 2)


def latent_attention(
    q_BTHK: Tensor,
    q_rope_BTHP: Tensor,
    latent_BSR: Tensor,
    k_rope_BSP: Tensor,
    k_up_RHK: Tensor,
    v_up_RHV: Tensor,
    **options: Any,
) -> Tensor:
    """Attention to keys ``[c k_up, k_rope]`` and values ``c v_up``, which every head makes of the latents c.

    Args:
        q_BTHK, q_rope_BTHP: queries for the one and for the other part of the keys.
        latent_BSR: c.
        k_rope_BSP: the part of the keys with positions, which the heads share; P may be 0.
        k_up_RHK, v_up_RHV: the maps to keys and values.
        options: of :func:`causal_attention`; without ``scale`` scores are multiplied by 1 / sqrt(K + P).

    Returns:
        (B, T, H, V).
    """
    k_BSHK = torch.tensordot(latent_BSR, k_up_RHK, 1)
    k_rope_BSHP = k_rope_BSP.unsqueeze(2).expand(-1, -1, k_BSHK.shape[2], -1)
    queries, keys = torch.cat([q_BTHK, q_rope_BTHP], -1), torch.cat([k_BSHK, k_rope_BSHP], -1)
    return causal_attention(queries, keys, torch.tensordot(latent_BSR, v_up_RHV, 1), **options)


def absorbed_latent_attention(
    q_BTHK: Tensor,
    q_rope_BTHP: Tensor,
    latent_BSR: Tensor,
    k_rope_BSP: Tensor,
    k_up_RHK: Tensor,
    v_up_RHV: Tensor,
    *,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """:func:`latent_attention` as attention of H heads of queries to one head: the latent beside the shared key.

    The maps to keys and values change sides: ``q . (c k_up) = (k_up q) . c``, and ``sum_s p_s (c_s v_up) = (sum_s p_s
    c_s) v_up``.
    """
    if scale is None:
        scale = (q_BTHK.shape[-1] + q_rope_BTHP.shape[-1]) ** -0.5
    queries = torch.cat([torch.einsum("bthk,rhk->bthr", q_BTHK, k_up_RHK), q_rope_BTHP], -1)
    keys = torch.cat([latent_BSR, k_rope_BSP], -1).unsqueeze(2)
    mixed_BTHR = causal_attention(queries, keys, latent_BSR.unsqueeze(2), scale=scale, **options)
    return torch.einsum("bthr,rhv->bthv", mixed_BTHR, v_up_RHV)
