"""Sums over the tokens between two of a chunk."""

import torch
from torch import Tensor


def sums_between(x_CK: Tensor) -> Tensor:
    """(..., C, C, K): at ``[i, j]`` the sum of the rows ``j + 1 .. i``, zero where there are none."""
    rows = [x_CK[..., j + 1 :, :].cumsum(-2) for j in range(x_CK.shape[-2])]
    return torch.stack(
        [torch.cat([torch.zeros_like(x_CK[..., : j + 1, :]), row], -2) for j, row in enumerate(rows)], -2
    )
