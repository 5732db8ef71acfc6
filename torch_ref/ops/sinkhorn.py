"""Sinkhorn projections onto (nearly) doubly stochastic matrices: rows (last axis) first, columns last."""

import torch
from torch import Tensor

SINKHORN_EPS = 1e-8


def sinkhorn_rows_then_columns(
    logits_NN: Tensor, *, iters: int, temperature: float = 1.0, eps: float = SINKHORN_EPS
) -> Tensor:
    """Exponentials, shifted by their row's maximum, then ``iters`` times rows and columns over their sum plus ``eps``.

    ``iters = 0`` returns the bare exponentials.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 0``.
    """
    check(iters, 0, temperature)
    z = logits_NN / temperature
    p = torch.exp(z - z.amax(-1, keepdim=True))
    for _ in range(iters):
        p = p / (p.sum(-1, keepdim=True) + eps)
        p = p / (p.sum(-2, keepdim=True) + eps)
    return p


def log_sinkhorn(logits_NN: Tensor, *, iters: int, temperature: float = 1.0) -> Tensor:
    """The same order on logarithms: exact normalisation, no epsilon, no under- or overflow.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    check(iters, 1, temperature)
    log_p = logits_NN / temperature
    for _ in range(iters):
        log_p = log_p.log_softmax(-1)
        log_p = log_p.log_softmax(-2)
    return log_p.exp()


def check(iters: int, least: int, temperature: float) -> None:
    """Raises ValueError unless the arguments make sense."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if iters < least:
        raise ValueError(f"iters must be at least {least}, got {iters}")
