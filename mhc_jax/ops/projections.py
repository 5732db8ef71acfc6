"""Maps from free logits to mixing matrices: orthostochastic, orthogonal, mixtures of permutations, spectral sphere.

All return canonical matrices, ``H[i, j]`` from source stream j to destination stream i. Products
of these small matrices are unrolled sums, which XLA fuses and which no fast mode of matrix units
can round. Sinkhorn's iterations are in a separate module, :mod:`mhc_jax.ops.sinkhorn`.
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

# Bound on the logits of a Cayley transform, beyond which a rotation is indistinguishable from a half-turn.
LARGEST_SKEW = 1e4


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
        normalise: divide every row by its sum, which makes row sums exact (a row of zeros becomes uniform); the
            original does not.
    """
    # In units of the largest entry, whose square neither over- nor underflows.
    unit = jnp.maximum(jnp.max(jnp.abs(logits_NN), axis=(-2, -1), keepdims=True), jnp.finfo(logits_NN.dtype).tiny)
    unit = jax.lax.stop_gradient(unit)
    x = logits_NN / unit
    squares = jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)
    x = x / (jnp.sqrt(jnp.where(squares > 0, squares, 1)) + eps / unit)

    def step(x, abc):
        a, b, c = abc
        gram = _product(x, jnp.swapaxes(x, -1, -2))
        return a * x + _product(b * gram + c * _product(gram, gram), x), None

    h_NN = jnp.square(jax.lax.scan(step, x, jnp.asarray(coefficients, x.dtype).reshape(-1, 3))[0])
    if not normalise:
        return h_NN
    sums = jnp.sum(h_NN, axis=-1, keepdims=True)
    told = sums > jnp.finfo(sums.dtype).tiny ** 0.5  # less, and the derivative would divide by an underflow
    return jnp.where(told, h_NN / jnp.where(told, sums, 1), 1 / h_NN.shape[-1])


def cayley(logits_NN: Float[Array, "*B N N"], *, alpha: float = 0.1, steps: int = 2) -> Float[Array, "*B N N"]:
    """Orthogonal, signed: the Cayley transform of ``W = L - L^T`` (JPmHC, 2602.18308).

    Args:
        logits_NN: only the antisymmetric part matters. Entries beyond :data:`LARGEST_SKEW` count as that.
        alpha: step length.
        steps: fixed-point steps ``Y <- I + alpha/2 W (I + Y)`` from ``Y = I + alpha W``; 0 means the
            fixed point itself, ``(I - alpha/2 W)^-1 (I + alpha/2 W)``, which alone is exactly orthogonal.

    Raises:
        ValueError: ``steps < 0``.
    """
    if steps < 0:
        raise ValueError(f"the Cayley transform needs at least 0 steps, got {steps}")
    logits_NN = jnp.clip(logits_NN, -LARGEST_SKEW, LARGEST_SKEW)
    w_NN = logits_NN - jnp.swapaxes(logits_NN, -1, -2)
    eye = _eye_like(w_NN)
    if steps == 0:
        return cayley_transform(-alpha / 2 * w_NN[..., *np.triu_indices(w_NN.shape[-1], 1)], size=w_NN.shape[-1])
    y_NN = eye + alpha * w_NN
    for _ in range(steps):
        y_NN = eye + alpha / 2 * _product(w_NN, eye + y_NN)
    return y_NN


def cayley_transform(entries_K: Float[Array, "*B K"], *, size: int) -> Float[Array, "*B N N"]:
    """The rotation ``(I + A)^-1 (I - A)`` of the skew matrix A with these entries above its diagonal, row by row.

    Every rotation without an eigenvalue of -1. Up to four rows the inverse is a closed form,
    ``((1 + s) I - A + A^2 - p A') / (1 + s + p^2)`` with s the sum of squares, p the Pfaffian (0 below four rows) and
    A' the dual of A; beyond, it is solved for, and the solution made orthogonal once more.

    Args:
        entries_K: K = N (N - 1) / 2. Entries beyond :data:`LARGEST_SKEW` count as that; narrow dtypes are widened to
            float32 for the computation.
        size: N.
    """
    wide_K = entries_K.astype(jnp.promote_types(entries_K.dtype, jnp.float32))
    wide_K = jnp.clip(wide_K, -LARGEST_SKEW, LARGEST_SKEW)
    a_NN = _skew(wide_K, size)
    eye = _eye_like(a_NN)
    if size > 4:
        rotation_NN = jnp.linalg.solve(eye + a_NN, eye - a_NN)
        # A step of Newton and Schulz squares the distance from the rotations, which grows with the entries.
        square_NN = _product(jnp.swapaxes(rotation_NN, -1, -2), rotation_NN)
        return (_product(rotation_NN, 3 * eye - square_NN) / 2).astype(entries_K.dtype)
    determinant = 1 + jnp.sum(jnp.square(wide_K), axis=-1)[..., None, None]
    adjugate_NN = determinant * eye - a_NN + _product(a_NN, a_NN)
    if size == 4:
        dual_K = wide_K[..., ::-1] * np.array([1, -1, 1, 1, -1, 1], wide_K.dtype)
        pfaffian = jnp.sum(wide_K * dual_K, axis=-1)[..., None, None] / 2
        adjugate_NN = adjugate_NN - pfaffian * _skew(dual_K, size)
        determinant = determinant + jnp.square(pfaffian)
    return (2 * adjugate_NN / determinant - eye).astype(entries_K.dtype)


def spread_rotations(entries_CK: Float[Array, "*B C K"], *, size: int) -> Float[Array, "*B C N N"]:
    """Orthogonal matrices that begin apart: number c is a :func:`cayley_transform` after a cyclic shift by c streams.

    At entries of zero it is that shift, ``H[i, (i + c) mod N] = 1``, whose determinant is -1 for odd c and even N; a
    Cayley transform alone never has that.
    """
    rotations = jnp.unstack(cayley_transform(entries_CK, size=size), axis=-3)
    return jnp.stack([jnp.roll(x_NN, c, axis=-1) for c, x_NN in enumerate(rotations)], axis=-3)


def mixture(weight_C: Float[Array, "*B C"], parts: jax.Array) -> jax.Array:
    """``sum_c weight[c] * parts[c]``, (*B, *P) from parts (C, *P).

    A convex mixture of orthogonal matrices has no singular value above 1.
    """
    inside = (1,) * (parts.ndim - 1)
    weights = jnp.unstack(weight_C, axis=-1)
    return sum(w.reshape(*w.shape, *inside) * part for w, part in zip(weights, parts, strict=True))


def masked_mixing(mix_NN: Float[Array, "*B N N"], mask_N: Float[Array, "*B N"]) -> Float[Array, "*B N N"]:
    """The matrix among the streams whose mask is 1; those whose mask is 0 stay as they are and reach no other."""
    both_NN = mask_N[..., :, None] * mask_N[..., None, :]
    return both_NN * mix_NN + (1 - mask_N)[..., None] * _eye_like(mix_NN)


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
    left, right = (_product(basis, cayley_transform(jnp.tanh(entries), size=streams - 1)) for entries in (u_K, v_K))
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
    """Columns balanced roughly, from great temperatures down; then Newton's method on the matrix itself.

    Logits of hundreds saturate the softmax and round its arguments so coarsely that Newton's method on the columns'
    potentials alone would neither get near nor end; a matrix that is scaled again and again keeps its digits.
    """
    largest = jnp.finfo(logits_NN.dtype).max / 64
    z_NN = jnp.clip(logits_NN, -largest, largest)  # neither differences nor their sums must overflow
    return _newton_on_matrix(_roughly_scaled(z_NN - jnp.max(z_NN, axis=-1, keepdims=True), iters), iters)


# Excess of a column's sum at which it is balanced well enough for the next temperature.
ROUGH = 0.5
# The softmax of logits that spread no further is far from saturated; greater spreads are cooled by this factor.
MILD_SPREAD, COOLING = 16.0, 4.0


def _roughly_scaled(z_NN, iters):
    """``softmax(z + v)`` whose columns sum to one within :data:`ROUGH`; z has row maxima 0."""

    def settled(p_NN, steps):
        return (jnp.max(jnp.abs(_excess(p_NN)), axis=-1) < ROUGH) | (steps >= iters)

    def softmax(z_NN, t):
        return jax.nn.softmax(z_NN / t[..., None, None], axis=-1)

    def unfinished(carry):
        _, p_NN, t, steps = carry
        return jnp.any((t > 1) | ~settled(p_NN, steps))

    def step(carry):
        z_NN, p_NN, t, steps = carry
        # A matrix that is done stays as it is: its result must not depend on the others of the batch.
        done = settled(p_NN, steps)
        moved_NN = _moved(z_NN, t[..., None] * _newton_move(p_NN))
        cooler = jnp.where(done, jnp.maximum(t / COOLING, 1), t)
        steps = jnp.where(cooler < t, 0, steps + ~done)
        z_NN = jnp.where(done[..., None, None], z_NN, moved_NN)
        return z_NN, softmax(z_NN, cooler), cooler, steps

    t = jnp.maximum(jnp.max(-z_NN, axis=(-2, -1)) / MILD_SPREAD, 1)
    # The start is one half-step of Sinkhorn.
    start_N = -jax.nn.logsumexp(jax.nn.log_softmax(z_NN / t[..., None, None], axis=-1), axis=-2)
    z_NN = _moved(z_NN, t[..., None] * start_N)
    carry = z_NN, softmax(z_NN, t), t, jnp.zeros(t.shape, jnp.int32)
    return jax.lax.while_loop(unfinished, step, carry)[1]


def _moved(z_NN, v_N):
    """``z + v`` with row maxima 0: entries that count stay small, so that equal ones stay equal."""
    z_NN = z_NN + v_N[..., None, :]
    return z_NN - jnp.max(z_NN, axis=-1, keepdims=True)


def _newton_on_matrix(p_NN, iters):
    tolerance = 1e-14 if p_NN.dtype == jnp.float64 else 1e-6

    def going(p_NN):
        return jnp.any(jnp.abs(_excess(p_NN)) > tolerance, axis=-1)[..., None, None]

    def unfinished(carry):
        k, p_NN = carry
        return (k < iters) & jnp.any(going(p_NN))

    def step(carry):
        k, p_NN = carry
        scaled_NN = p_NN * jnp.exp(_newton_move(p_NN))[..., None, :]
        scaled_NN = scaled_NN / jnp.sum(scaled_NN, axis=-1, keepdims=True)
        return k + 1, jnp.where(going(p_NN), scaled_NN, p_NN)

    return jax.lax.while_loop(unfinished, step, (0, p_NN))[1]


def _excess(p_NN):
    return jnp.sum(p_NN, axis=-2) - 1


def _newton_move(p_NN):
    """Change of the columns' potentials. What links streams by less than a rounding does not hold them to a force."""
    weight_NN = _product(jnp.swapaxes(p_NN, -1, -2), p_NN)
    excess_N = _excess(p_NN)
    flow_NN = (excess_N[..., None, :] - excess_N[..., :, None]) / excess_N.shape[-1]
    move_N = solve_laplacian(weight_NN, flow_NN, floor=float(jnp.finfo(p_NN.dtype).eps))
    return _damping(move_N) * move_N


@_newton.defjvp
def _newton_jvp(iters, primals, tangents):
    p_NN = _newton(*primals, iters)
    return p_NN, projection_tangent(p_NN, *tangents)


def newton_birkhoff(logits_NN: Float[Array, "*B N N"], *, iters: int = 64) -> Float[Array, "*B N N"]:
    """The limit of Sinkhorn's iterations, by Newton's method in the dual (mHC-proj, 2606.07574).

    Minimises ``sum_i logsumexp_j(l_ij + v_j) - sum_j v_j``, whose gradient is the columns' excess
    over one and whose Hessian is a graph Laplacian over streams. Rows sum to one, columns to within
    1e-6 (float64: 1e-14): logits of standard deviation 1 take about 4 steps, 10 about 20; those that spread over more
    than 16 are first solved divided by a temperature, which then falls. All finite logits converge so in at most 40
    steps a temperature, as far as has been tried (up to 8 streams, standard deviations to 1e30). Differentiated
    implicitly, so only the result is kept.

    Args:
        logits_NN: finite.
        iters: the most Newton steps at each temperature; a batch takes as many as its slowest matrix needs.

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


def _skew(entries_K: jax.Array, size: int) -> jax.Array:
    """The skew matrix with these entries above its diagonal, row by row."""
    rows, columns = np.triu_indices(size, 1)
    upper = jnp.zeros((*entries_K.shape[:-1], size, size), entries_K.dtype).at[..., rows, columns].set(entries_K)
    return upper - jnp.swapaxes(upper, -1, -2)


def _helmert(n: int) -> np.ndarray:
    """Orthonormal basis (n, n-1) of the vectors that sum to zero; column i weighs i streams against the next."""
    basis = np.zeros((n, n - 1))
    for i in range(1, n):
        basis[:i, i - 1] = 1 / math.sqrt(i * (i + 1))
        basis[i, i - 1] = -i / math.sqrt(i * (i + 1))
    return basis
