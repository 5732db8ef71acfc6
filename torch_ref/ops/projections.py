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
    if not normalise:
        return h_NN
    sums = h_NN.sum(-1, keepdim=True)
    empty = sums < torch.finfo(sums.dtype).tiny ** 0.5
    return (h_NN / sums.masked_fill(empty, 1)).masked_fill(empty, 1 / h_NN.shape[-1])


def cayley(logits_NN: Tensor, *, alpha: float = 0.1, steps: int = 2) -> Tensor:
    """Orthogonal ``(I - a/2 W)^-1 (I + a/2 W)`` with ``W = logits - logits^T``; signed entries.

    Args:
        steps: iterations ``Y <- I + a/2 W (I + Y)`` from ``I + a W``, which get near it; 0 solves exactly.
    """
    skew_NN = logits_NN - logits_NN.mT
    eye_NN = eye_like(logits_NN)
    if steps == 0:
        return _solved(-alpha / 2 * skew_NN)
    y_NN = eye_NN + alpha * skew_NN
    for _ in range(steps):
        y_NN = eye_NN + alpha / 2 * skew_NN @ (eye_NN + y_NN)
    return y_NN


def cayley_transform(entries_K: Tensor, *, size: int) -> Tensor:
    """``(I + A)^-1 (I - A)`` of the skew matrix A with these entries above its diagonal, by rows."""
    row, column = torch.triu_indices(size, size, offset=1, device=entries_K.device)
    upper_NN = entries_K.new_zeros(*entries_K.shape[:-1], size, size)
    upper_NN[..., row, column] = entries_K
    return _solved(upper_NN - upper_NN.mT)


def spread_rotations(entries_CK: Tensor, *, size: int) -> Tensor:
    """Rotations times permutations: component c acts on the streams moved by c places, stream i taking stream i + c."""
    shifts = torch.stack([eye_like(entries_CK.new_empty(size, size)).roll(c, 1) for c in range(entries_CK.shape[-2])])
    return cayley_transform(entries_CK, size=size) @ shifts


def mixture(weight_C: Tensor, parts: Tensor) -> Tensor:
    """The sum of the parts, (C, ...), each times its weight."""
    weights = weight_C.reshape(*weight_C.shape, *(1,) * (parts.ndim - 1))
    return (weights * parts).sum(-parts.ndim)


def masked_mixing(mix_NN: Tensor, mask_N: Tensor) -> Tensor:
    """``M H M + (I - M)`` with M the diagonal matrix of the mask."""
    return mask_N[..., :, None] * mix_NN * mask_N[..., None, :] + torch.diag_embed(1 - mask_N)


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
    left_NM, right_NM = (helmert_NM @ cayley_transform(entries.tanh(), size=streams - 1) for entries in (u_K, v_K))
    return 1 / streams + (left_NM * s_M.tanh()[..., None, :]) @ right_NM.mT


def circulant(logits_N: Tensor, *, gamma: float) -> Tensor:
    """``H[i, j] = c[(j - i) mod N]``, ``c = (1 - gamma) e_0 + gamma softmax(logits)`` (C-mHC)."""
    index_N = torch.arange(logits_N.shape[-1], device=logits_N.device)
    return identity_mix(logits_N.softmax(-1)[..., (index_N - index_N[:, None]) % len(index_N)], gamma)


def identity_mix(mix_NN: Tensor, alpha: Tensor | float) -> Tensor:
    """``(1 - alpha) I + alpha mix``."""
    return (1 - alpha) * eye_like(mix_NN) + alpha * mix_NN


def newton_birkhoff(logits_NN: Tensor, *, iters: int = 64) -> Tensor:
    """The limit of Sinkhorn's iterations, rows and columns exact, by at most ``iters`` Newton steps a temperature."""
    return with_birkhoff_gradient(logits_NN, _newton(logits_NN.detach(), iters))


def _newton(logits_NN: Tensor, iters: int) -> Tensor:
    """Minimises ``sum_i logsumexp_j(logits_ij + v_j) - sum_j v_j``, where the column sums are 1; stops at rounding.

    Great logits are balanced at a high temperature first, which then falls to 1.
    """
    z_NN = logits_NN - logits_NN.amax(-1, keepdim=True)
    temperature = max(1.0, -z_NN.amin().item() / 10)
    while temperature > 1:
        z_NN = _descend(z_NN, temperature, iters)
        temperature = max(1.0, temperature / 3)
    h_NN = _descend(z_NN, 1.0, iters).softmax(-1)
    # Scaled from here on, the matrix keeps its digits; potentials of hundreds would not.
    tolerance = 1e-14 if logits_NN.dtype == torch.float64 else 1e-6
    for _ in range(iters):
        excess_N = h_NN.sum(-2) - 1
        if excess_N.abs().max() <= tolerance:
            break
        h_NN = h_NN * _newton_step(h_NN, excess_N)[..., None, :].exp()
        h_NN = h_NN / h_NN.sum(-1, keepdim=True)
    return h_NN


def _descend(z_NN: Tensor, temperature: float, iters: int) -> Tensor:
    """``z`` with its columns shifted so that those of ``softmax(z / temperature)`` sum to 1 within a third."""
    for _ in range(iters):
        # Half a Sinkhorn step first: it leaves regions where the softmax is saturated and Newton's step far too long.
        z_NN = z_NN - temperature * (z_NN / temperature).log_softmax(-1).logsumexp(-2, keepdim=True)
        z_NN = z_NN - z_NN.amax(-1, keepdim=True)
        h_NN = (z_NN / temperature).softmax(-1)
        excess_N = h_NN.sum(-2) - 1
        if excess_N.abs().max() <= 1 / 3:
            break
        z_NN = z_NN + temperature * _newton_step(h_NN, excess_N)[..., None, :]
    return z_NN


def _newton_step(h_NN: Tensor, excess_N: Tensor) -> Tensor:
    """Change of the columns' potentials, as far as the objective falls on the way."""
    step_N = -solve_column_potentials(h_NN, excess_N, ridge=torch.finfo(h_NN.dtype).eps)
    return _step_length(h_NN, step_N, excess_N) * step_N


def _step_length(h_NN: Tensor, step_N: Tensor, excess_N: Tensor) -> Tensor:
    """Largest of 1, 1/2, 1/4, ... at which the objective falls by a part of what its slope promises, (..., 1)."""

    def change(length: Tensor) -> Tensor:
        v_N = length * step_N
        return ((h_NN.log() + v_N[..., None, :]).logsumexp(-1) - v_N).sum(-1, keepdim=True)

    slope = (excess_N * step_N).sum(-1, keepdim=True)
    rounding = 8 * torch.finfo(h_NN.dtype).eps * (1 + step_N.abs().amax(-1, keepdim=True))
    length = torch.ones_like(slope)
    for _ in range(40):
        short = change(length) <= 1e-4 * length * slope + length * rounding
        if short.all():
            break
        length = torch.where(short, length, length / 2)
    return length


def eye_like(matrix_NN: Tensor) -> Tensor:
    """The (N, N) identity, in the dtype of ``matrix_NN``."""
    return torch.eye(matrix_NN.shape[-1], dtype=matrix_NN.dtype, device=matrix_NN.device)


def _solved(skew_NN: Tensor) -> Tensor:
    """``(I + A)^-1 (I - A)``."""
    eye_NN = eye_like(skew_NN)
    return torch.linalg.solve(eye_NN + skew_NN, eye_NN - skew_NN)


def _helmert(like: Tensor, size: int) -> Tensor:
    """Orthonormal basis (size, size - 1) of vectors of sum zero; column i - 1 compares entry i with those before."""
    i = torch.arange(1, size, dtype=like.dtype, device=like.device)
    basis_NM = torch.ones(size, size - 1, dtype=like.dtype, device=like.device).triu()
    basis_NM[1:] -= torch.diag(i)
    return basis_NM / (i * (i + 1)).sqrt()
