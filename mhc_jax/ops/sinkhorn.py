"""Sinkhorn projections onto (nearly) doubly stochastic matrices. Row = last axis.

Public code bases stop at different half-steps, add epsilons at different places and work in
different domains, so every published order is a separate function here. All act on canonical
matrices, ``H[i, j]`` from source stream j to destination stream i: a code base that stores the
transpose runs, in its terms, the other order.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SINKHORN_EPS = 1e-8
CLAMP = 1e-12
CLIP = 50.0
# Streams may be linked by weights that underflow; then the links' forces vanish too, and 0 / floor is 0.
WEIGHT_FLOOR = 1e-30

# Axes of a matrix while it is iterated, see _iterate; less 2, of a matrix as it is given. Sums over the sources make
# rows, over the destinations columns.
COLUMNS, ROWS = 0, 1


class HalfSteps(NamedTuple):
    """An order of the half-steps of an iteration: the sums over the axis ``second`` become exact."""

    first: int
    second: int

    def on_logs(self, z: jax.Array) -> jax.Array:
        """The first iteration, see :func:`_from_logs`."""
        return jnp.exp(self.logs(z))

    def logs(self, z: jax.Array) -> jax.Array:
        """Logarithms of the first iteration's result."""
        largest = jnp.finfo(z.dtype).max / 8
        z = jnp.clip(z, -largest, largest)  # differences must not overflow
        for axis in self:
            # In this order: beside a large maximum the logarithm of the sum would be rounded away.
            z = z - jax.lax.stop_gradient(jnp.max(z, axis=axis, keepdims=True))
            z = z - jnp.log(jnp.sum(jnp.exp(z), axis=axis, keepdims=True))
        return z

    def again(self, p: jax.Array) -> jax.Array:
        """A further iteration."""
        return _normalised(_normalised(p, self.first), self.second)


# Of iterations begun on logarithms.
ORDERS = {"columns_then_rows": HalfSteps(COLUMNS, ROWS), "rows_then_columns": HalfSteps(ROWS, COLUMNS)}


def sinkhorn_rows_then_columns(
    logits_NN: Float[Array, "*L N N"], *, iters: int, temperature: float = 1.0, eps: float = SINKHORN_EPS
) -> Float[Array, "*L N N"]:
    """The order of mHC-SSM: exponentials, then ``iters`` times (rows / (sum + eps), columns / (sum + eps)).

    Columns sum to one up to ``eps``; rows only in the limit. ``iters = 0`` returns the bare
    exponentials (row maximum 1), as the original does.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 0``.
    """
    _check(iters, 0, temperature)
    z = logits_NN / temperature

    def iteration(p):
        return _normalised(_normalised(p, ROWS, eps), COLUMNS, eps)

    return _iterate(iteration, jnp.exp(z - jnp.max(z, axis=-1, keepdims=True)), iters)


def log_sinkhorn(logits_NN: Float[Array, "*L N N"], *, iters: int, temperature: float = 1.0) -> Float[Array, "*L N N"]:
    """The same order without epsilons, begun in the log domain: no sum under- or overflows, see :func:`_from_logs`.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    _check(iters, 1, temperature)
    return _from_logs(logits_NN / temperature, iters, ORDERS["rows_then_columns"])


def log_sinkhorn_columns_then_rows(
    logits_NN: Float[Array, "*L N N"], *, iters: int, temperature: float = 1.0
) -> Float[Array, "*L N N"]:
    """The order of the mHC paper (2512.24880, ``M <- T_r(T_c(M))``) and of tokenbender's code, begun in the log domain.

    Rows sum to one: equal streams stay equal, and no stream can grow. Columns sum to one in the limit.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    _check(iters, 1, temperature)
    return _from_logs(logits_NN / temperature, iters, ORDERS["columns_then_rows"])


def sinkhorn_clamped(logits_NN: Float[Array, "*L N N"], *, iters: int) -> Float[Array, "*L N N"]:
    """The linear form of lucidrains' ``hyper-connections``: rows then columns, sums clamped from below at 1e-12.

    Columns sum to one. ``iters = 0`` returns the raw logits, as the original does.

    Raises:
        ValueError: ``iters < 0``.
    """
    _check(iters, 0, 1.0)
    if iters == 0:
        return logits_NN

    def iteration(p):
        p = p / jnp.maximum(_sum(p, ROWS), CLAMP)
        return p / jnp.maximum(_sum(p, COLUMNS), CLAMP)

    largest = jax.lax.stop_gradient(jnp.max(logits_NN, axis=-1, keepdims=True))
    return _iterate(iteration, jnp.exp(logits_NN - largest), iters)


def sinkhorn_clipped(
    logits_NN: Float[Array, "*L N N"], *, iters: int, eps: float = SINKHORN_EPS
) -> Float[Array, "*L N N"]:
    """The form of RLM-mHC: exponentials of logits clipped to ±50, then rows and columns over their sum plus ``eps``.

    Columns sum to one up to ``eps``, which a row of logits near -50 does not outweigh: then the result is another
    matrix than the exact projection. ``iters = 0`` returns the bare exponentials, as the original does.

    Raises:
        ValueError: ``iters < 0``.
    """
    _check(iters, 0, 1.0)

    def iteration(p):
        return _normalised(_normalised(p, ROWS, eps), COLUMNS, eps)

    return _iterate(iteration, jnp.exp(jnp.clip(logits_NN, -CLIP, CLIP)), iters)


def sinkhorn_deepseek(logits_NN: Float[Array, "*L N N"], *, iters: int, eps: float = 1e-6) -> Float[Array, "*L N N"]:
    """The form of DeepSeek-V4 (transformers, TileKernels, MaxText): softmax and ``eps``, then sums plus ``eps``.

    A softmax over the columns and one division of the rows count as the first iteration; rows sum
    to one up to ``eps``. The published tensor is the transpose of this one.

    Raises:
        ValueError: ``iters < 1``.
    """
    _check(iters, 1, 1.0)

    def iteration(p):
        return _normalised(_normalised(p, COLUMNS, eps), ROWS, eps)

    p = jax.nn.softmax(logits_NN, axis=-2) + eps
    return _iterate(iteration, p / (jnp.sum(p, axis=-1, keepdims=True) + eps), iters - 1)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _implicit(logits_NN, iters, temperature):
    return log_sinkhorn_columns_then_rows(logits_NN, iters=iters, temperature=temperature)


@_implicit.defjvp
def _implicit_jvp(iters, temperature, primals, tangents):
    p_NN = _implicit(*primals, iters, temperature)
    return p_NN, projection_tangent(p_NN, tangents[0] / temperature)


def implicit_sinkhorn(
    logits_NN: Float[Array, "*L N N"], *, iters: int, temperature: float = 1.0
) -> Float[Array, "*L N N"]:
    """:func:`log_sinkhorn_columns_then_rows`, differentiated at its fixed point instead of through its iterations.

    Only the result is kept for the backward pass. The derivative is that of the exact projection,
    so it differs from the iterations' own by as much as the columns are off.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    return _implicit(logits_NN, iters, temperature)


def projection_tangent(p_NN: Float[Array, "*L N N"], tangent_NN: Float[Array, "*L N N"]) -> Float[Array, "*L N N"]:
    """Derivative of the entropic projection onto doubly stochastic matrices, at its result.

    The result is ``exp(logits + u_i + v_j)``, so ``dp = p * (dlogits + du_i + dv_j)``. Constant row
    sums give du; constant column sums then ask of dv, with ``w = p^T p``, that
    ``sum_k w[j, k] (dv_j - dv_k)`` undo the change of column j: a graph Laplacian over streams.

    Args:
        p_NN: the projection; its rows sum to one.
        tangent_NN: tangent of the logits.
    """
    rows = range(p_NN.shape[-1])
    links = [p_NN[..., i, :, None] * p_NN[..., i, None, :] for i in rows]
    flow_NN = sum(links[i] * (tangent_NN[..., i, None, :] - tangent_NN[..., i, :, None]) for i in rows)
    dv_N = solve_laplacian(sum(links), flow_NN)
    return _softmax_tangent(p_NN, tangent_NN + dv_N[..., None, :])


def _softmax_tangent(p_NN, dz_NN):
    """``p * (dz - sum_k p_k dz_k)`` along rows, by differences of dz so that nothing cancels where p is near 0 or 1."""
    change = sum(p_NN[..., k, None] * (dz_NN - dz_NN[..., k, None]) for k in range(p_NN.shape[-1]))
    return p_NN * change


def solve_laplacian(
    weight_NN: Float[Array, "*L N N"], flow_NN: Float[Array, "*L N N"], *, floor: float = WEIGHT_FLOOR
) -> Float[Array, "*L N"]:
    """The x with ``sum_k weight[j, k] (x_j - x_k) = sum_k flow[j, k]`` for all j, and ``x_0 = 0``.

    Streams are eliminated one after another using only sums of non-negative numbers (Grassmann,
    Taksar & Heyman 1985), so weakly linked streams lose no digits. What drives two groups of streams apart is never
    the difference of what drives their members: between each pair the flow stays of the size of their link. Linear in
    the flow, unrolled over the few streams.

    Args:
        weight_NN: symmetric, not negative; the diagonal is ignored.
        flow_NN: antisymmetric.
        floor: least sum of weights that holds a stream.
    """
    eliminated = []
    for j in range(flow_NN.shape[-1] - 1, 0, -1):
        link_N, drive_N = weight_NN[..., j, :j], flow_NN[..., j, :j]
        total = jnp.maximum(jnp.sum(link_N, axis=-1, keepdims=True), floor)
        share_N = link_N / total
        eliminated.append((share_N, jnp.sum(drive_N, axis=-1, keepdims=True) / total))
        weight_NN = weight_NN[..., :j, :j] + link_N[..., :, None] * share_N[..., None, :]
        passed_NN = share_N[..., :, None] * drive_N[..., None, :]
        flow_NN = flow_NN[..., :j, :j] + passed_NN - jnp.swapaxes(passed_NN, -1, -2)
    x_N = jnp.zeros_like(flow_NN[..., 0, :1])
    for share_N, own in reversed(eliminated):
        x_N = jnp.concatenate([x_N, own + jnp.sum(share_N * x_N, axis=-1, keepdims=True)], axis=-1)
    return x_N


def _from_logs(z_NN: jax.Array, iters: int, order: HalfSteps) -> jax.Array:
    """Sinkhorn's iterations, the first on logarithms, which exponentials of any logits cannot harm.

    It leaves sums between 1/N and N, and all further sums stay there: a half-step leaves no entry greater than 1, so
    the next divides by at most N. These iterations then need no logarithms, which would cost an exponential for every
    entry in every half-step.
    """
    z = jnp.moveaxis(z_NN, (-2, -1), (COLUMNS, ROWS))
    return jnp.moveaxis(_further(order.logs(z), iters - 1, order), (COLUMNS, ROWS), (-2, -1))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _further(z: jax.Array, iters: int, order: HalfSteps) -> jax.Array:
    """``iters`` iterations on the exponentials of ``z``, whose axes stand as in :func:`_iterate`."""
    return _half_steps(z, iters, order)[0]


@_further.defjvp
def _further_jvp(iters, order, primals, tangents):
    """On logarithms, from which a half-step takes a mean: the transpose of that is one sum, without a division."""
    (z,), (dz,) = primals, tangents
    p, matrices = _half_steps(z, iters, order)

    def iteration(dz, matrices):
        for p, axis in zip(matrices, order, strict=True):
            dz = dz + _sum(p * -dz, axis)  # the transpose of a difference would be a kernel that only negates
        return dz, None

    dz, _ = jax.lax.scan(iteration, dz, matrices)
    return p, p * dz


def _half_steps(z: jax.Array, iters: int, order: HalfSteps) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """:func:`_further` and what the first and the second half-steps have left, (iters, N, N, *L) each."""

    def iteration(carry, _):
        p, total = carry  # sums are handed on, so that one kernel writes a matrix and sums it
        halfway = p / total
        p = halfway / _sum(halfway, order.second)
        return (p, _sum(p, order.first)), (halfway, p)

    p = jnp.exp(z)
    (p, _), matrices = jax.lax.scan(iteration, (p, _sum(p, order.first)), None, length=iters)
    return p, matrices


def _iterate(iteration: Callable[[jax.Array], jax.Array], z_NN: jax.Array, iters: int) -> jax.Array:
    """``iteration`` repeated on matrices whose axes stand first, (N, N, *L): sums then run over long vectors."""
    z = jnp.moveaxis(z_NN, (-2, -1), (COLUMNS, ROWS))
    # Of an iteration only its input is kept for the backward pass.
    step = jax.checkpoint(lambda z, _: (iteration(z), None), prevent_cse=False)
    z = jax.lax.scan(step, z, None, length=iters)[0]
    return jnp.moveaxis(z, (COLUMNS, ROWS), (-2, -1))


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _normalised(p: jax.Array, axis: int, eps: float = 0.0) -> jax.Array:
    return p / (_sum(p, axis) + eps)


@_normalised.defjvp
def _normalised_jvp(axis, eps, primals, tangents):
    """In terms of the result, whose transpose is one sum and one division."""
    (p,), (dp,) = primals, tangents
    total = _sum(p, axis) + eps
    normalised = p / total
    return normalised, (dp - normalised * _sum(dp, axis)) / total


def _sum(p: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(p, axis=axis, keepdims=True)


def _check(iters: int, least: int, temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"Sinkhorn temperature must be positive, got {temperature}")
    if iters < least:
        raise ValueError(f"Sinkhorn needs at least {least} iterations, got {iters}")
