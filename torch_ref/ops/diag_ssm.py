"""The diagonal state-space layer of mHC-SSM: one real scalar state per channel, time-invariant."""

import torch
from torch import Tensor

from torch_ref.ops.diag_scan import diagonal_scan

POLE_MARGIN = 1e-4


def pole(logit_a_D: Tensor) -> Tensor:
    """``clip(sigmoid(logit_a), 1e-4, 1 - 1e-4)``; no gradient reaches a clipped logit."""
    return torch.sigmoid(logit_a_D).clamp(POLE_MARGIN, 1 - POLE_MARGIN)


def diag_ssm(
    u_BTD: Tensor,
    logit_a_D: Tensor,
    b_D: Tensor,
    c_D: Tensor,
    d_D: Tensor,
    s0_BD: Tensor | None = None,
    *,
    reset_BT: Tensor | None = None,
    form: str = "sequential",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """``s_t = a s_{t-1} + b u_t``, ``y_t = c s_t + d u_t`` for every channel.

    Args:
        u_BTD: input.
        logit_a_D: pole before :func:`pole`.
        b_D, c_D, d_D: input, output and skip gains.
        s0_BD: state before the first token; zeros if omitted.
        reset_BT: true where the state is reset before the token is read.
        form, chunk: see :func:`torch_ref.ops.diag_scan.diagonal_scan`.

    Returns:
        Output (B, T, D) and the state after the last token (B, D).
    """
    a = pole(logit_a_D)
    if reset_BT is not None:
        a = torch.where(reset_BT[..., None], 0, a)
    s_BTD = diagonal_scan(a, b_D * u_BTD, s0_BD, form=form, chunk=chunk)
    return c_D * s_BTD + d_D * u_BTD, s_BTD[:, -1]
