"""Maps of logits to mixing matrices that keep the streams bounded. Row i of a matrix feeds stream i."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ref.ops.sinkhorn import solve_column_potentials, with_birkhoff_gradient

QUINTIC = ((3.0, -3.2, 1.2),) * 5
SCHEDULE = (
    (7.2086, -15.5131, 9.0178),
    (3.9623, -2.5813, 0.4542),
    (3.9466, -2.5765, 0.4544),
    (3.8991, -2.5671, 0.4566),
    (3.7186, -2.5308, 0.4653),
    (3.1390, -2.3073, 0.4733),
    (2.1715, -1.5246, 0.3885),
    (1.8648, -1.2224, 0.3577),
)


def orthostochastic(
    logits_NN: Tensor, *, coefficients: Sequence[Sequence[float]], eps: float = 1e-7, normalise: bool = False
) -> Tensor:
    """Squared entries of (nearly) the orthogonal polar factor of the logits, by Newton-Schulz steps.

    Args:
        coefficients: ``(a, b, c)`` of each step ``X <- a X + (b A + c A^2) X`` with ``A = X X^T``.
        eps: added to the Frobenius norm that the logits are divided by.
        normalise: divide each row by its sum, which finitely many steps leave only near 1.
    """
    x_NN = logits_NN / (torch.linalg.matrix_norm(logits_NN, keepdim=True) + eps)
    for a, b, c in coefficients:
        gram_NN = x_NN @ x_NN.mT
        x_NN = a * x_NN + (b * gram_NN + c * gram_NN @ gram_NN) @ x_NN
    h_NN = x_NN.square()
    return h_NN / h_NN.sum(-1, keepdim=True) if normalise else h_NN


def cayley(logits_NN: Tensor, *, alpha: float = 0.1, steps: int = 2) -> Tensor:
    """Orthogonal ``(I - a/2 W)^-1 (I + a/2 W)`` with ``W = logits - logits^T``; signed entries.

    Args:
        steps: iterations ``Y <- I + a/2 W (I + Y)`` from ``I + a W``, which get near it; 0 solves exactly.
    """
    skew_NN = logits_NN - logits_NN.mT
    eye_NN = eye_like(logits_NN)
    if steps == 0:
        return _cayley_transform(alpha / 2 * skew_NN)
    y_NN = eye_NN + alpha * skew_NN
    for _ in range(steps):
        y_NN = eye_NN + alpha / 2 * skew_NN @ (eye_NN + y_NN)
    return y_NN


def permutation_mixture(logits_K: Tensor, *, streams: int) -> Tensor:
    """Convex combination of all permutation matrices, in lexicographic order, with softmax weights (mHC-lite).

    Raises:
        ValueError: the logits are not ``streams!`` many.
    """
    count = math.factorial(streams)
    if logits_K.shape[-1] != count:
        raise ValueError(f"{streams} streams have {count} permutations, got {logits_K.shape[-1]} logits")
    orders = torch.tensor(list(itertools.permutations(range(streams))), device=logits_K.device)
    permutations_KNN = torch.eye(streams, dtype=logits_K.dtype, device=logits_K.device)[orders]
    return torch.einsum("...k,kij->...ij", logits_K.softmax(-1), permutations_KNN)


def kronecker_mixture(logits_K2: Tensor) -> Tensor:
    """``U_1 (x) ... (x) U_K``, each ``[[p, 1 - p], [1 - p, p]]`` with (p, 1 - p) the softmax of two logits (KromHC)."""
    weights_K2 = logits_K2.softmax(-1)
    factors_K22 = torch.stack([weights_K2, weights_K2.flip(-1)], -2)
    h = factors_K22.new_ones(*logits_K2.shape[:-2], 1, 1)
    for factor_22 in factors_K22.unbind(-3):
        size = 2 * h.shape[-1]
        h = torch.einsum("...ij,...kl->...ikjl", h, factor_22).reshape(*h.shape[:-2], size, size)
    return h


def spectral_sphere(u_K: Tensor, v_K: Tensor, s_M: Tensor, *, streams: int) -> Tensor:
    """Row and column sums 1, singular values at most 1, signed entries (sHC): ``J + Z U diag(tanh s) V^T Z^T``.

    J averages the streams, Z spans the differences between them, U and V rotate these.

    Args:
        u_K: upper triangle, by rows, of U's skew generator of size M = N - 1, before its tanh; ``v_K`` of V's.
        s_M: singular values before their tanh.
    """
    helmert_NM = _helmert(s_M, streams)
    left_NM, right_NM = (helmert_NM @ _rotation(entries.tanh(), streams - 1) for entries in (u_K, v_K))
    return 1 / streams + (left_NM * s_M.tanh()[..., None, :]) @ right_NM.mT


def circulant(logits_N: Tensor, *, gamma: float) -> Tensor:
    """``H[i, j] = c[(j - i) mod N]``, ``c = (1 - gamma) e_0 + gamma softmax(logits)`` (C-mHC)."""
    index_N = torch.arange(logits_N.shape[-1], device=logits_N.device)
    return identity_mix(logits_N.softmax(-1)[..., (index_N - index_N[:, None]) % len(index_N)], gamma)


def identity_mix(mix_NN: Tensor, alpha: Tensor | float) -> Tensor:
    """``(1 - alpha) I + alpha mix``."""
    return (1 - alpha) * eye_like(mix_NN) + alpha * mix_NN


def newton_birkhoff(logits_NN: Tensor, *, iters: int = 30) -> Tensor:
    """The limit of Sinkhorn's iterations, rows and columns exact, by at most ``iters`` damped Newton steps."""
    return with_birkhoff_gradient(logits_NN, _newton(logits_NN.detach(), iters))


def _newton(logits_NN: Tensor, iters: int) -> Tensor:
    """Minimises ``sum_i logsumexp_j(logits_ij + v_j) - sum_j v_j``, where the column sums are 1; stops at rounding."""
    tolerance = 1e-14 if logits_NN.dtype == torch.float64 else 1e-6
    v_N = torch.zeros_like(logits_NN[..., 0, :])
    for _ in range(iters):
        # Half a Sinkhorn step first: it leaves regions where the softmax is saturated and Newton's step far too long.
        v_N = v_N - (logits_NN + v_N[..., None, :]).log_softmax(-1).logsumexp(-2)
        h_NN = (logits_NN + v_N[..., None, :]).softmax(-1)
        gradient_N = h_NN.sum(-2) - 1
        if gradient_N.abs().max() <= tolerance:
            break
        step_N = -solve_column_potentials(h_NN, gradient_N)
        v_N = v_N + _step_length(logits_NN, v_N, step_N, gradient_N) * step_N
    return (logits_NN + v_N[..., None, :]).softmax(-1)


def _step_length(logits_NN: Tensor, v_N: Tensor, step_N: Tensor, gradient_N: Tensor) -> Tensor:
    """Largest of 1, 1/2, 1/4, ... at which the objective falls by a part of what its slope promises, (..., 1)."""

    def objective(v_N: Tensor) -> Tensor:
        return ((logits_NN + v_N[..., None, :]).logsumexp(-1) - v_N).sum(-1, keepdim=True)

    start = objective(v_N)
    slope = (gradient_N * step_N).sum(-1, keepdim=True)
    rounding = 8 * torch.finfo(start.dtype).eps * (1 + start.abs())
    length = torch.ones_like(start)
    for _ in range(40):
        short = objective(v_N + length * step_N) <= start + 1e-4 * length * slope + rounding
        if short.all():
            break
        length = torch.where(short, length, length / 2)
    return length


def eye_like(matrix_NN: Tensor) -> Tensor:
    """The (N, N) identity, in the dtype of ``matrix_NN``."""
    return torch.eye(matrix_NN.shape[-1], dtype=matrix_NN.dtype, device=matrix_NN.device)


def _cayley_transform(skew_NN: Tensor) -> Tensor:
    """``(I - A)^-1 (I + A)``."""
    eye_NN = eye_like(skew_NN)
    return torch.linalg.solve(eye_NN - skew_NN, eye_NN + skew_NN)


def _rotation(entries_K: Tensor, size: int) -> Tensor:
    """``(I + A)^-1 (I - A)`` of the skew matrix A with these entries above its diagonal, by rows."""
    row, column = torch.triu_indices(size, size, offset=1, device=entries_K.device)
    upper_MM = entries_K.new_zeros(*entries_K.shape[:-1], size, size)
    upper_MM[..., row, column] = entries_K
    return _cayley_transform(upper_MM.mT - upper_MM)


def _helmert(like: Tensor, size: int) -> Tensor:
    """Orthonormal basis (size, size - 1) of vectors of sum zero; column i - 1 compares entry i with those before."""
    i = torch.arange(1, size, dtype=like.dtype, device=like.device)
    basis_NM = torch.ones(size, size - 1, dtype=like.dtype, device=like.device).triu()
    basis_NM[1:] -= torch.diag(i)
    return basis_NM / (i * (i + 1)).sqrt()
