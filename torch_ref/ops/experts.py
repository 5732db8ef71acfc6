"""Mixtures of gated perceptrons, every expert on every token."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_experts(
    x_BTD: Tensor, weight_BTE: Tensor, gate_EDF: Tensor, up_EDF: Tensor, down_EFD: Tensor, *, k: int
) -> Tensor:
    """``sum_e weight_e * (SiLU(x G_e) * (x U_e)) D_e`` over the k experts of greatest weight."""
    chosen = torch.zeros_like(weight_BTE).scatter(-1, weight_BTE.topk(k).indices, 1.0)
    weight_BTE = chosen * weight_BTE
    parts = zip(weight_BTE.unbind(-1), gate_EDF, up_EDF, down_EFD, strict=True)
    outputs = [weight[..., None] * ((F.silu(x_BTD @ g) * (x_BTD @ u)) @ d) for weight, g, u, d in parts]
    return torch.stack(outputs).sum(0)
