"""The factorised cache of SHC: streams as coefficients of fixed matrices of rank one."""

import torch
from torch import Tensor


def compress(h_BTND: Tensor, u_NR: Tensor, v_DR: Tensor) -> Tensor:
    """(B, T, R): entry r sums ``U[n, r] h[n, d] V[d, r]``."""
    return torch.einsum("nr,...nd,dr->...r", u_NR, h_BTND, v_DR)


def decompress(code_BTR: Tensor, u_NR: Tensor, v_DR: Tensor) -> Tensor:
    """(B, T, N, D): the code times the matrices, summed."""
    return torch.einsum("...r,nr,dr->...nd", code_BTR, u_NR, v_DR)
