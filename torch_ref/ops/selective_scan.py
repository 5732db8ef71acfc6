"""The selective state-space recurrence of Mamba, token by token."""

import torch
from torch import Tensor


def selective_scan(
    u_BTE: Tensor,
    dt_BTE: Tensor,
    a_log_EN: Tensor,
    in_BTN: Tensor,
    out_BTN: Tensor,
    skip_E: Tensor,
    s0_BEN: Tensor | None = None,
    *,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``s_t = exp(-dt_t exp(a_log)) s_{t-1} + dt_t u_t in_t'``, ``y_t = s_t out_t + skip u_t``.

    Args:
        u_BTE: input.
        dt_BTE: positive time steps.
        a_log_EN: logarithms of the rates of decay.
        in_BTN, out_BTN: what a token writes to and reads from the N states of every channel.
        skip_E: gain of the direct path.
        s0_BEN: states before the first token; zeros if omitted.
        reset_BT: true where the states are forgotten before the token is read.

    Returns:
        Output (B, T, E) and the states after the last token (B, E, N).
    """
    B, T, E = u_BTE.shape
    s_BEN = u_BTE.new_zeros(B, E, a_log_EN.shape[1]) if s0_BEN is None else s0_BEN
    rate_EN = a_log_EN.exp()
    y_TBE = []
    for t in range(T):
        dt_BE1 = dt_BTE[:, t, :, None]
        if reset_BT is not None:
            s_BEN = s_BEN.masked_fill(reset_BT[:, t, None, None], 0)
        s_BEN = s_BEN * torch.exp(-dt_BE1 * rate_EN) + dt_BE1 * u_BTE[:, t, :, None] * in_BTN[:, t, None, :]
        y_TBE.append((s_BEN @ out_BTN[:, t, :, None])[..., 0] + skip_E * u_BTE[:, t])
    return torch.stack(y_TBE, 1), s_BEN
