"""Products of the matrices of a chunk, whose sums have 32 bits, and factors mostly 16."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.backend import target_backend


def wants_exact_factors() -> bool:
    """Whether products are asked for that round no factor, as the policies float32 and float64 do."""
    return jax.config.jax_default_matmul_precision in ("highest", "float32")


def product(a: jax.Array, b: jax.Array, of_a: int, of_b: int, factor: Any) -> jax.Array:
    """The sum of products of two matrices over axis ``of_a`` of one and ``of_b`` of the other, in float32.

    Args:
        factor: dtype to which the matrices are rounded, and the cotangent of their product.
    """
    return _product(of_a, of_b, factor, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(of_a, of_b, factor, a, b):
    return of_factors(of_a, of_b, a.astype(factor), b.astype(factor))


def _forward(of_a, of_b, factor, a, b):
    a, b = a.astype(factor), b.astype(factor)
    return of_factors(of_a, of_b, a, b), (a, b)


def _backward(of_a, of_b, factor, factors, dy):
    """Products again, of which none has to be turned about."""
    (a, b), dy = factors, dy.astype(factor)
    da = of_factors(1, 1 - of_b, dy, b) if of_a == 1 else of_factors(1 - of_b, 1, b, dy)
    db = of_factors(1 - of_a, 0, a, dy) if of_b == 0 else of_factors(0, 1 - of_a, dy, a)
    return da, db


_product.defvjp(_forward, _backward)


def of_factors(of_a: int, of_b: int, a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of matrices that are rounded already."""
    if target_backend() == "cpu":  # has no such products of 16 bits
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = "highest" if a.dtype == jnp.float32 else "default"
    axes = ((of_a,), (of_b,)), ((), ())
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)
