"""Sinkhorn projections onto (nearly) doubly stochastic matrices. Row = last axis.

Public code bases stop at different half-steps, add epsilons at different places and work in
different domains, so every published order has a function of its own here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SINKHORN_EPS = 1e-8


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
    p = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))

    def iteration(p, _):
        p = p / (jnp.sum(p, axis=-1, keepdims=True) + eps)
        p = p / (jnp.sum(p, axis=-2, keepdims=True) + eps)
        return p, None

    return jax.lax.scan(iteration, p, None, length=iters)[0]


def log_sinkhorn(logits_NN: Float[Array, "*L N N"], *, iters: int, temperature: float = 1.0) -> Float[Array, "*L N N"]:
    """The same order in the log domain, without epsilons: no entry under- or overflows.

    Raises:
        ValueError: ``temperature <= 0`` or ``iters < 1``.
    """
    _check(iters, 1, temperature)

    def iteration(z, _):
        z = z - jax.nn.logsumexp(z, axis=-1, keepdims=True)
        z = z - jax.nn.logsumexp(z, axis=-2, keepdims=True)
        return z, None

    return jnp.exp(jax.lax.scan(iteration, logits_NN / temperature, None, length=iters)[0])


def _check(iters: int, least: int, temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"Sinkhorn temperature must be positive, got {temperature}")
    if iters < least:
        raise ValueError(f"Sinkhorn needs at least {least} iterations, got {iters}")
