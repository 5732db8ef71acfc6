"""Causal depth-wise convolution over time."""

import torch
from torch import Tensor


def causal_depthwise_conv(
    u_BTD: Tensor,
    filter_KD: Tensor,
    bias_D: Tensor,
    history_BJD: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """``y_t = bias + sum_k filter[k] * u_{t-(K-1)+k}``: a cross-correlation, its last tap on the current token.

    Args:
        u_BTD: input.
        filter_KD: taps of each channel, oldest first.
        bias_D: added to every output.
        history_BJD: the K-1 inputs before the first token, in the first token's segment; zeros if omitted.
        segment_ids: (B, T); tokens of other segments do not reach a token.
    """
    B, T, D = u_BTD.shape
    K = filter_KD.shape[0]
    if history_BJD is None:
        history_BJD = u_BTD.new_zeros(B, K - 1, D)
    padded = torch.cat([history_BJD, u_BTD], 1)
    if segment_ids is not None:
        padded_ids = torch.cat([segment_ids[:, :1].expand(B, K - 1), segment_ids], 1)
    y_BTD = bias_D
    for k in range(K):
        term = filter_KD[k] * padded[:, k : k + T]
        if segment_ids is not None:
            term = torch.where((padded_ids[:, k : k + T] == segment_ids)[..., None], term, 0)
        y_BTD = y_BTD + term
    return y_BTD
