"""Maps from free logits to mixing matrices: orthostochastic, orthogonal, mixtures of permutations, spectral sphere.

All return canonical matrices, ``H[i, j]`` from source stream j to destination stream i. Products
of these small matrices are unrolled sums, which XLA fuses and which no fast mode of matrix units
can round. Sinkhorn's iterations have a module of their own, :mod:`mhc_jax.ops.sinkhorn`.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mhc_jax.ops.sinkhorn import projection_tangent, solve_laplacian

Coefficients = Sequence[tuple[float, float, float]]

# Newton-Schulz steps of tokenbender's mHC: the default, and the schedule of its branch ns-coeff-schedule.
QUINTIC: Coefficients = ((3.0, -3.2, 1.2),) * 5
SCHEDULE: Coefficients = (
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
    logits_NN: Float[Array, "*B N N"], *, coefficients: Coefficients, eps: float = 1e-7, normalise: bool = False
) -> Float[Array, "*B N N"]:
    """The squared entries of the logits' orthogonal polar factor, by Newton-Schulz steps (tokenbender's mHC).

    ``X = L / (|L|_F + eps)``, then ``X <- a X + (b A + c A^2) X`` with ``A = X X^T`` for every
    (a, b, c). Rows and columns sum to one as far as the steps have converged (5 quintic steps: to
    about 1e-2; the schedule of 8: to 1e-3), and not at all if the logits have lost rank.

    Args:
        logits_NN: scale does not matter, the direction does.
        coefficients: (a, b, c) of each step, e.g. :data:`QUINTIC` or :data:`SCHEDULE`.
        eps: added to the norm.
        normalise: divide every row by its sum, which makes row sums exact; the original does not.
    """
    x = logits_NN / (jnp.sqrt(jnp.sum(jnp.square(logits_NN), axis=(-2, -1), keepdims=True)) + eps)

    def step(x, abc):
        a, b, c = abc
        gram = _product(x, jnp.swapaxes(x, -1, -2))
        return a * x + _product(b * gram + c * _product(gram, gram), x), None

    h_NN = jnp.square(jax.lax.scan(step, x, jnp.asarray(coefficients, x.dtype))[0])
    return h_NN / jnp.sum(h_NN, axis=-1, keepdims=True) if normalise else h_NN


def cayley(logits_NN: Float[Array, "*B N N"], *, alpha: float = 0.1, steps: int = 2) -> Float[Array, "*B N N"]:
    """Orthogonal, signed: the Cayley transform of ``W = L - L^T`` (JPmHC, 2602.18308).

    Args:
        logits_NN: only the antisymmetric part matters.
        alpha: step length.
        steps: fixed-point steps ``Y <- I + alpha/2 W (I + Y)`` from ``Y = I + alpha W``; 0 means the
            fixed point itself, ``(I - alpha/2 W)^-1 (I + alpha/2 W)``, which alone is exactly orthogonal.

    Raises:
        ValueError: ``steps < 0``.
    """
    if steps < 0:
        raise ValueError(f"the Cayley transform needs at least 0 steps, got {steps}")
    w_NN = logits_NN - jnp.swapaxes(logits_NN, -1, -2)
    eye = _eye_like(w_NN)
    if steps == 0:
        return 2 * _inverse(eye - alpha / 2 * w_NN) - eye
    y_NN = eye + alpha * w_NN
    for _ in range(steps):
        y_NN = eye + alpha / 2 * _product(w_NN, eye + y_NN)
    return y_NN


def permutation_mixture(logits_K: Float[Array, "*B K"], *, streams: int) -> Float[Array, "*B N N"]:
    """A convex mixture of all permutations, hence exactly doubly stochastic (mHC-lite, 2601.05732).

    ``H = sum_k softmax(l)_k P_k`` with ``P_k = eye[perm_k]`` in lexicographic order; k = 0 is the identity.

    Raises:
        ValueError: K is not ``streams!``.
    """
    if logits_K.shape[-1] != math.factorial(streams):
        raise ValueError(
            f"{streams} streams have {math.factorial(streams)} permutations, but there are {logits_K.shape[-1]} logits"
        )
    basis = np.eye(streams)[list(itertools.permutations(range(streams)))]
    weight_K = jax.nn.softmax(logits_K, axis=-1)
    mixed = jnp.matmul(weight_K, basis.reshape(len(basis), -1).astype(logits_K.dtype), precision="highest")
    return mixed.reshape(*logits_K.shape[:-1], streams, streams)


def kronecker_mixture(logits_K2: Float[Array, "*B K 2"]) -> Float[Array, "*B N N"]:
    """A Kronecker product of 2 by 2 mixtures, N = 2^K: exactly doubly stochastic, symmetric (KromHC, 2601.21579).

    ``H = U_1 x ... x U_K`` with ``U_k = [[p, 1-p], [1-p, p]]`` and ``(p, 1-p) = softmax`` of two logits.
    """
    share_K2 = jax.nn.softmax(logits_K2, axis=-1)
    factor_K22 = jnp.stack([share_K2, share_K2[..., ::-1]], axis=-2)
    h_NN = jnp.ones((*logits_K2.shape[:-2], 1, 1), logits_K2.dtype)
    for k in range(logits_K2.shape[-2]):
        product = h_NN[..., :, None, :, None] * factor_K22[..., k, None, :, None, :]
        size = 2 * h_NN.shape[-1]
        h_NN = product.reshape(*h_NN.shape[:-2], size, size)
    return h_NN


def spectral_sphere(
    u_K: Float[Array, "*B K"], v_K: Float[Array, "*B K"], s_M: Float[Array, "*B M"], *, streams: int
) -> Float[Array, "*B N N"]:
    """Signed, rows and columns sum to one, spectral norm at most one (sHC, 2603.20896).

    ``H = 11^T/n + Z U diag(tanh s) V^T Z^T``: Z is the Helmert basis of the vectors that sum to
    zero; U and V are Cayley rotations of skew matrices with entries ``tanh u``, ``tanh v``.

    Args:
        u_K, v_K: entries above the diagonal, row by row; K = (n-1)(n-2)/2.
        s_M: singular values before tanh, M = n-1.
        streams: n; with one stream H is 1.
    """
    if streams == 1:
        return jnp.ones((*s_M.shape[:-1], 1, 1), s_M.dtype)
    basis = jnp.asarray(_helmert(streams), s_M.dtype)
    left, right = (_product(basis, _rotation(jnp.tanh(entries), streams - 1)) for entries in (u_K, v_K))
    spread = _product(left * jnp.tanh(s_M)[..., None, :], jnp.swapaxes(right, -1, -2))
    return 1 / streams + spread


def circulant(logits_N: Float[Array, "*B N"], *, gamma: float) -> Float[Array, "*B N N"]:
    """A convex mixture of cyclic shifts: exactly doubly stochastic (C-mHC).

    ``H[i, (i + k) mod n] = c_k`` with ``c = (1 - gamma) e_0 + gamma softmax(l)``.
    """
    c_N = gamma * jax.nn.softmax(logits_N, axis=-1)
    c_N = c_N.at[..., 0].add(1 - gamma)
    return jnp.stack([jnp.roll(c_N, i, axis=-1) for i in range(logits_N.shape[-1])], axis=-2)


def identity_mix(mix_NN: Float[Array, "*B N N"], alpha: Float[Array, "*B"]) -> Float[Array, "*B N N"]:
    """``(1 - alpha) I + alpha S`` (tokenbender's branch mhc-residual-identity-mix)."""
    alpha = alpha[..., None, None]
    return (1 - alpha) * _eye_like(mix_NN) + alpha * mix_NN


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _newton(logits_NN, iters):
    tolerance = 1e-14 if logits_NN.dtype == jnp.float64 else 1e-6

    def scaled(v_N):
        return jax.nn.softmax(logits_NN + v_N[..., None, :], axis=-1)

    def unfinished(carry):
        k, _, _, excess_N = carry
        return (k < iters) & jnp.any(jnp.abs(excess_N) > tolerance)

    def step(carry):
        k, v_N, p_NN, excess_N = carry
        weight_NN = _product(jnp.swapaxes(p_NN, -1, -2), p_NN)
        move_N = solve_laplacian(weight_NN, -excess_N)
        # A matrix that has converged stays: its result must not depend on the others of the batch.
        going = jnp.any(jnp.abs(excess_N) > tolerance, axis=-1, keepdims=True)
        v_N = jnp.where(going, v_N + _damping(move_N) * move_N, v_N)
        p_NN = scaled(v_N)
        return k + 1, v_N, p_NN, jnp.sum(p_NN, axis=-2) - 1

    # The start is one half-step of Sinkhorn.
    v_N = -jax.nn.logsumexp(jax.nn.log_softmax(logits_NN, axis=-1), axis=-2)
    p_NN = scaled(v_N)
    return jax.lax.while_loop(unfinished, step, (0, v_N, p_NN, jnp.sum(p_NN, axis=-2) - 1))[2]


@_newton.defjvp
def _newton_jvp(iters, primals, tangents):
    p_NN = _newton(*primals, iters)
    return p_NN, projection_tangent(p_NN, *tangents)


def newton_birkhoff(logits_NN: Float[Array, "*B N N"], *, iters: int = 30) -> Float[Array, "*B N N"]:
    """The limit of Sinkhorn's iterations, by Newton's method in the dual (mHC-proj, 2606.07574).

    Minimises ``sum_i logsumexp_j(l_ij + v_j) - sum_j v_j``, whose gradient is the columns' excess
    over one and whose Hessian is a graph Laplacian over streams. Rows sum to one, columns to within
    1e-6 (float64: 1e-14) unless ``iters`` ends first: logits of standard deviation 1 take about 5
    steps, 10 about 25. Differentiated implicitly, so only the result is kept.

    Args:
        logits_NN: any scale.
        iters: the most Newton steps; a batch takes as many as its slowest matrix needs.

    Raises:
        ValueError: ``iters < 1``.
    """
    if iters < 1:
        raise ValueError(f"Newton's method needs at least 1 iterations, got {iters}")
    return _newton(logits_NN, iters)


def _damping(move_N: jax.Array) -> jax.Array:
    """``ln(1 + d) / d`` with d the spread of the move: sums of logsumexp decrease at that length without a search.

    (Their third derivative along a move is at most d times the second; Sun & Tran-Dinh 2019, for nu = 2.)
    """
    spread = jnp.max(move_N, axis=-1, keepdims=True) - jnp.min(move_N, axis=-1, keepdims=True)
    return jnp.where(spread > 0, jnp.log1p(spread) / jnp.where(spread > 0, spread, 1), 1)


def _eye_like(x_NN: jax.Array) -> jax.Array:
    return jnp.eye(x_NN.shape[-1], dtype=x_NN.dtype)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b`` as an unrolled sum."""
    return sum(a[..., :, k, None] * b[..., None, k, :] for k in range(a.shape[-1]))


def _inverse(a_NN: jax.Array) -> jax.Array:
    """By Gauss-Jordan without pivoting, which is stable where the symmetric part is the identity, as here."""
    n = a_NN.shape[-1]
    both = jnp.concatenate([a_NN, jnp.broadcast_to(_eye_like(a_NN), a_NN.shape)], axis=-1)
    for k in range(n):
        pivot = both[..., k, :] / both[..., k, k, None]
        rest = both - both[..., :, k, None] * pivot[..., None, :]
        both = rest.at[..., k, :].set(pivot)
    return both[..., n:]


def _rotation(entries_K: jax.Array, size: int) -> jax.Array:
    """``(I + A)^-1 (I - A)`` with A skew; ``entries`` stand above its diagonal, row by row."""
    rows, columns = np.triu_indices(size, 1)
    upper = jnp.zeros((*entries_K.shape[:-1], size, size), entries_K.dtype).at[..., rows, columns].set(entries_K)
    eye = _eye_like(upper)
    return 2 * _inverse(eye + upper - jnp.swapaxes(upper, -1, -2)) - eye


def _helmert(n: int) -> np.ndarray:
    """Orthonormal basis (n, n-1) of the vectors that sum to zero; column i weighs i streams against the next."""
    basis = np.zeros((n, n - 1))
    for i in range(1, n):
        basis[:i, i - 1] = 1 / math.sqrt(i * (i + 1))
        basis[i, i - 1] = -i / math.sqrt(i * (i + 1))
    return basis
