"""Causal softmax attention over several heads."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    *,
    start: int | None = None,
    segment_ids: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Every query attends to the keys up to its own position; scores are divided by sqrt(K).

    Args:
        q_BTHK: queries (B, T, H, K).
        k_BSHK, v_BSHK: keys and values; S = T unless ``start`` is given.
        start: position of the first query among the keys; keys after a query's position are not seen.
        segment_ids: (B, T); tokens of different segments do not see each other (S = T).
        dropout: probability with which each attention probability is dropped.

    Returns:
        (B, T, H, K).
    """
    queries, keys = q_BTHK.shape[1], k_BSHK.shape[1]
    if start is None and queries != keys:
        raise ValueError(f"{queries} queries and {keys} keys: give the position of the first query as start")
    heads_first = (x.transpose(1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    if start is None and segment_ids is None:
        return F.scaled_dot_product_attention(*heads_first, is_causal=True, dropout_p=dropout).transpose(1, 2)
    position = torch.arange(queries, device=q_BTHK.device) + (start or 0)
    visible = torch.arange(keys, device=q_BTHK.device) <= position[:, None]
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    return F.scaled_dot_product_attention(*heads_first, attn_mask=visible, dropout_p=dropout).transpose(1, 2)
