"""Coefficients of hyper-connections as functions of the residual state."""

import torch.nn.functional as F
from torch import Tensor

from torch_ref.ops.norm import rms_norm, unit_rms_norm
from torch_ref.ops.streams import project


def dynamic_weights(
    h_BTND: Tensor, fn_DK: Tensor, scale: Tensor, static_NK: Tensor, *, tanh: bool, gamma_D: Tensor | None = None
) -> Tensor:
    """``static + scale * act(x @ fn)``, act the tanh or nothing.

    Args:
        h_BTND: streams; normalised here if ``gamma_D`` is given.
        scale: a scalar, or one for each coefficient.
        static_NK: one row for each stream.
    """
    logits_BTNK = (h_BTND if gamma_D is None else unit_rms_norm(h_BTND, gamma_D)) @ fn_DK
    return static_NK + scale * (logits_BTNK.tanh() if tanh else logits_BTNK)


def flat_weights(h_BTND: Tensor, phi_KM: Tensor, *, eps: float) -> Tensor:
    """``phi @ x / sqrt(mean(x^2) + eps)``, (B, T, K), of all streams of a token in one vector x of M = N D channels."""
    # The division commutes with the product; on K numbers it is cheaper than on M.
    return project(h_BTND, phi_KM) / (h_BTND.square().mean((-2, -1))[..., None] + eps).sqrt()


def stream_gate(
    h_BTND: Tensor, scale_ND: Tensor, down_RM: Tensor, up_MR: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Gated read of Qwen4: the mean over streams of ``sigmoid(up @ SiLU(down @ x / N)) * x``, a gate for each channel.

    Args:
        scale_ND: the streams x are normalised one by one, times ``1 + scale``.

    Returns:
        The read (B, T, D), and the normalised streams (B, T, N, D).
    """
    N = h_BTND.shape[-2]
    x_BTND = rms_norm(h_BTND, 1 + scale_ND, eps=eps)
    gate_BTM = F.linear(F.silu(project(x_BTND, down_RM) / N), up_MR).sigmoid()
    return (gate_BTM.view_as(x_BTND) * x_BTND).mean(-2), x_BTND
