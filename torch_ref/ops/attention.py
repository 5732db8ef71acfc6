"""Softmax attention over several heads."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    *,
    start: int | None = None,
    start_B: Tensor | None = None,
    segment_ids: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q k' / sqrt(K)) v``, where query t sees the keys up to its own column.

    Args:
        q_BTHK: queries (B, T, H, K).
        k_BSGK, v_BSGK: keys and values of G heads; S = T unless ``start`` is given. G divides H: query head h uses head
            ``h // (H // G)``.
        start: column of the first query among the keys.
        start_B: (B,) column of each row's first token; keys before it are seen only by their own query.
        segment_ids: (B, T); tokens of different segments do not see each other. Keys before ``start`` belong to the
            first query's segment.
        causal: False lets a query see later keys too.
        dropout: probability with which each attention probability is dropped.

    Returns:
        (B, T, H, K).

    Raises:
        ValueError: T differs from S without ``start``, or G does not divide H.
    """
    (T, H), (S, G) = q_BTHK.shape[1:3], k_BSGK.shape[1:3]
    if start is None and T != S:
        raise ValueError(f"{T} queries and {S} keys: give the position of the first query as start")
    if H % G:
        raise ValueError(f"{H} query heads are not a multiple of {G} key heads")
    heads_first = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    options = {"dropout_p": dropout, "enable_gqa": H != G}
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
