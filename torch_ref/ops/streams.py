"""Parallel residual streams (B, T, N, D): how they are read, mixed, written and compared.

Orientation: ``mix[i, j]`` is the weight from source stream j to destination stream i.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def split_streams(x_BTM: Tensor, streams: int) -> Tensor:
    """Cuts the last axis into ``streams`` equal runs; run i becomes stream i."""
    return x_BTM.unflatten(-1, (streams, -1))


def read(h_BTND: Tensor, weight_N: Tensor) -> Tensor:
    """``u = sum_i weight[i] * h_i``; weights (N,) or per token (B, T, N)."""
    return (weight_N[..., None] * h_BTND).sum(-2)


def mix(h_BTND: Tensor, mix_MN: Tensor) -> Tensor:
    """``h'_i = sum_j mix[i, j] * h_j``; matrix (M, N) or per token (B, T, M, N), which gives M streams."""
    return torch.einsum("...ij,...jd->...id", mix_MN, h_BTND)


def project(h_BTND: Tensor, phi_KM: Tensor) -> Tensor:
    """``phi @ x``, (B, T, K), of all streams of a token in one vector x of M = N D channels."""
    return F.linear(h_BTND.flatten(-2), phi_KM)


def write(y: Tensor, weight_N: Tensor, *, per_stream: bool) -> Tensor:
    """``weight[i] * y_i`` for every stream i, (B, T, N, D).

    Args:
        y: (B, T, N, D) if ``per_stream``, else (B, T, D), the same for all streams.
        weight_N: (N,) or per token (B, T, N).
    """
    y_BTND = y if per_stream else y[..., None, :]
    return weight_N[..., None] * y_BTND


def diversity(h_BTND: Tensor) -> Tensor:
    """``mean |G - I|`` over the cosine matrix G of the streams' means over batch and time (mHC-SSM, section 1.7)."""
    mean_ND = F.normalize(h_BTND.mean((0, 1)), dim=-1, eps=1e-8)
    gram_NN = mean_ND @ mean_ND.T
    return (gram_NN - torch.eye(len(gram_NN), dtype=gram_NN.dtype, device=gram_NN.device)).abs().mean()
