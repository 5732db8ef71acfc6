"""The gated delta rule, token by token."""

import torch
from torch import Tensor


def gated_delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    s0_BHKV: Tensor | None = None,
    *,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``S_t = a_t (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'`` and ``y_t = S_t' q_t / sqrt(K)``.

    Args:
        q_BTHK, k_BTHK, v_BTHV: queries, keys, values.
        log_decay_BTH: logarithms of the decays ``a``.
        beta_BTH: strengths of the corrections.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where the states are forgotten before the token is read.

    Returns:
        Output (B, T, H, V) and the states after the last token (B, H, K, V).
    """
    B, T, H, K = q_BTHK.shape
    s_BHKV = v_BTHV.new_zeros(B, H, K, v_BTHV.shape[-1]) if s0_BHKV is None else s0_BHKV
    identity = torch.eye(K).to(q_BTHK)
    y_TBHV = []
    for t in range(T):
        if reset_BT is not None:
            s_BHKV = s_BHKV.masked_fill(reset_BT[:, t, None, None, None], 0)
        k_BHK1, beta_BH11 = k_BTHK[:, t, :, :, None], beta_BTH[:, t, :, None, None]
        carried_BHKK = log_decay_BTH[:, t, :, None, None].exp() * (identity - beta_BH11 * k_BHK1 @ k_BHK1.mT)
        s_BHKV = carried_BHKK @ s_BHKV + beta_BH11 * k_BHK1 @ v_BTHV[:, t, :, None, :]
        y_TBHV.append((s_BHKV.mT @ q_BTHK[:, t, :, :, None])[..., 0] * K**-0.5)
    return torch.stack(y_TBHV, 1), s_BHKV
