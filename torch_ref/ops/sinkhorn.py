"""Sinkhorn projections onto (nearly) doubly stochastic matrices: one function for each published form.

Rows are the last axis, columns the one before it; every function names the order of its half-steps, of which only the
last is exact. Row i of the matrix feeds stream i: the published code of lucidrains and DeepSeek, which stores the
transpose, normalises the other way round in its own names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SINKHORN_EPS = 1e-8
CLAMP = 1e-12
DEEPSEEK_EPS = 1e-6


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


def log_sinkhorn_columns_then_rows(logits_NN: Tensor, *, iters: int, temperature: float = 1.0) -> Tensor:
    """The order of the mHC paper, on logarithms: columns first, rows exact.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    return log_sinkhorn(logits_NN.mT, iters=iters, temperature=temperature).mT


def sinkhorn_clamped(logits_NN: Tensor, *, iters: int) -> Tensor:
    """Form of lucidrains: rows, then columns, over their sum or 1e-12 if that is larger.

    ``iters = 0`` returns the logits themselves, as the published code does.

    Raises:
        ValueError: ``iters < 0``.
    """
    check(iters, 0, 1.0)
    if iters == 0:
        return logits_NN
    p = torch.exp(logits_NN - logits_NN.detach().amax(-1, keepdim=True))
    for _ in range(iters):
        p = p / p.sum(-1, keepdim=True).clamp_min(CLAMP)
        p = p / p.sum(-2, keepdim=True).clamp_min(CLAMP)
    return p


def sinkhorn_clipped(logits_NN: Tensor, *, iters: int, eps: float = SINKHORN_EPS) -> Tensor:
    """Form of RLM-mHC: logits are clipped to [-50, 50], and their exponentials divided by sums of rows, then columns.

    ``eps`` is added to every sum. ``iters = 0`` returns the exponentials.

    Raises:
        ValueError: ``iters < 0``.
    """
    check(iters, 0, 1.0)
    p = logits_NN.clamp(-50, 50).exp()
    for _ in range(iters):
        for axis in (-1, -2):
            p = p / (p.sum(axis, keepdim=True) + eps)
    return p


def sinkhorn_deepseek(logits_NN: Tensor, *, iters: int, eps: float = DEEPSEEK_EPS) -> Tensor:
    """Form of DeepSeek-V4: a softmax of every column, then rows and columns in turn, rows last; ``eps`` in each sum.

    Raises:
        ValueError: ``iters < 1``.
    """
    check(iters, 1, 1.0)
    p = logits_NN.softmax(-2) + eps
    p = p / (p.sum(-1, keepdim=True) + eps)
    for _ in range(iters - 1):
        p = p / (p.sum(-2, keepdim=True) + eps)
        p = p / (p.sum(-1, keepdim=True) + eps)
    return p


def implicit_sinkhorn(logits_NN: Tensor, *, iters: int, temperature: float = 1.0) -> Tensor:
    """:func:`log_sinkhorn_columns_then_rows` with the gradient of its limit, which keeps only the result.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    z_NN = logits_NN / temperature
    return with_birkhoff_gradient(z_NN, log_sinkhorn_columns_then_rows(z_NN.detach(), iters=iters))


def with_birkhoff_gradient(logits_NN: Tensor, h_NN: Tensor) -> Tensor:
    """``h`` with the gradient of the entropic projection of ``logits`` onto the doubly stochastic matrices.

    Args:
        h_NN: that projection; its rows must be exact, its columns nearly so.
    """
    return _BirkhoffGradient.apply(logits_NN, h_NN)


def solve_column_potentials(h_NN: Tensor, right_N: Tensor, *, ridge: float | None = None) -> Tensor:
    """Solves ``(diag(h^T 1) - h^T h) v = right`` with ``v_N = 0``; ``right`` sums to zero.

    For ``h = softmax(logits + v)`` by row the matrix is the derivative of the column sums by the potentials v.

    Args:
        ridge: added to its diagonal, so that the parts of a graph that falls apart have a solution; by default the
            least normal number.
    """
    weights_NN = h_NN.mT @ h_NN
    weights_NN = weights_NN - torch.diag_embed(weights_NN.diagonal(dim1=-2, dim2=-1))
    # Rows of h sum to 1, so this is a graph's Laplacian. Its diagonal as a sum of positive terms stays exact where h
    # is nearly a permutation.
    degree_N = weights_NN.sum(-1)
    limits = torch.finfo(h_NN.dtype)
    ridge = limits.tiny if ridge is None else ridge
    laplacian_NN = torch.diag_embed(degree_N * (1 + 4 * limits.eps) + ridge) - weights_NN
    return F.pad(torch.linalg.solve(laplacian_NN[..., :-1, :-1], right_N[..., :-1]), (0, 1))


class _BirkhoffGradient(torch.autograd.Function):
    """``h = softmax(logits + v)`` by row, where the potentials v of the columns make the column sums 1."""

    @staticmethod
    def forward(ctx, logits_NN, h_NN):
        ctx.save_for_backward(h_NN)
        return h_NN.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_NN):
        (h_NN,) = ctx.saved_tensors
        potentials_N = solve_column_potentials(h_NN, _softmax_gradient(h_NN, grad_NN).sum(-2))
        return _softmax_gradient(h_NN, grad_NN - potentials_N[..., None, :]), None


def _softmax_gradient(h_NN: Tensor, grad_NN: Tensor) -> Tensor:
    """Cotangent of the logits of a row-wise softmax."""
    return h_NN * (grad_NN - (h_NN * grad_NN).sum(-1, keepdim=True))


def check(iters: int, least: int, temperature: float) -> None:
    """Raises ValueError unless the arguments make sense."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if iters < least:
        raise ValueError(f"iters must be at least {least}, got {iters}")
