"""The mHC layer of RLM-mHC on given weights: as written, and folded into one matrix.

Expanding weights (D, N D) stand input first, as in ``x @ W``; flow j is made by columns jD to (j + 1)D.
"""

import torch
from torch import Tensor


def flows(x_BTD: Tensor, expand_DM: Tensor, contract_MD: Tensor, mixing_NN: Tensor) -> Tensor:
    """``sum_i (sum_j P[i, j] x E_j) C_i``: flow j of a token is ``x E_j``."""
    width = x_BTD.shape[-1]
    made = [x_BTD @ part for part in expand_DM.split(width, 1)]
    mixed = [torch.stack([weight * flow for weight, flow in zip(row, made, strict=True)]).sum(0) for row in mixing_NN]
    return torch.stack([flow @ part for flow, part in zip(mixed, contract_MD.split(width, 0), strict=True)]).sum(0)


def folded(x_BTD: Tensor, expand_DM: Tensor, contract_MD: Tensor, mixing_NN: Tensor) -> Tensor:
    """The same by one matrix."""
    return x_BTD @ fold(expand_DM, contract_MD, mixing_NN)


def fold(expand_DM: Tensor, contract_MD: Tensor, mixing_NN: Tensor) -> Tensor:
    """``sum_ij P[i, j] E_j C_i``, (D, D)."""
    width = len(expand_DM)
    expand = torch.stack(expand_DM.split(width, 1))
    contract = torch.stack(contract_MD.split(width, 0))
    return torch.einsum("ij,jab,ibc->ac", mixing_NN, expand, contract)
