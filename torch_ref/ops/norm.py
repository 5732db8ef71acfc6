"""Normalisation over the last axis, in the dtype of the input."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RMS_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


def rms_norm(x: Tensor, scale_D: Tensor, *, eps: float = RMS_EPS) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * scale``."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * scale_D


def layer_norm(x: Tensor, scale_D: Tensor, bias_D: Tensor | None, *, eps: float = LAYER_NORM_EPS) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with the biased variance; no bias if None."""
    return F.layer_norm(x, scale_D.shape, scale_D, bias_D, eps)


def unit_rms_norm(x: Tensor, gamma_D: Tensor) -> Tensor:
    """``x / max(|x|, 1e-12) * sqrt(D) * (1 + gamma)``: RMSNorm of the hyper-connections, no epsilon in a mean."""
    return F.normalize(x, dim=-1, eps=1e-12) * math.sqrt(x.shape[-1]) * (1 + gamma_D)
