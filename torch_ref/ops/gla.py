"""Gated linear attention, token by token."""

import torch
from torch import Tensor


def gated_linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    s0_BHKV: Tensor | None = None,
    *,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``S_t = diag(a_t) S_{t-1} + k_t v_t'`` and ``y_t = S_t' q_t / sqrt(K)``.

    Args:
        q_BTHK, k_BTHK, v_BTHV: queries, keys, values.
        log_decay_BTHK: logarithms of the decays ``a``.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where the states are forgotten before the token is read.

    Returns:
        Output (B, T, H, V) and the states after the last token (B, H, K, V).
    """
    B, T, H, K = q_BTHK.shape
    s_BHKV = v_BTHV.new_zeros(B, H, K, v_BTHV.shape[-1]) if s0_BHKV is None else s0_BHKV
    y_TBHV = []
    for t in range(T):
        if reset_BT is not None:
            s_BHKV = s_BHKV.masked_fill(reset_BT[:, t, None, None, None], 0)
        write_BHKV = k_BTHK[:, t, :, :, None] * v_BTHV[:, t, :, None, :]
        s_BHKV = torch.diag_embed(log_decay_BTHK[:, t].exp()) @ s_BHKV + write_BHKV
        y_TBHV.append((q_BTHK[:, t, :, None, :] @ s_BHKV)[..., 0, :] * K**-0.5)
    return torch.stack(y_TBHV, 1), s_BHKV
