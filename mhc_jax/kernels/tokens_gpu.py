"""A function of the rows of a token as a Pallas Mosaic kernel of GPUs, which touches every array once.

A block is one warpgroup, which takes its tokens one after another. Each thread holds its channels of every row in
registers; numbers that belong to a whole row are the same in all threads.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mhc_jax.config import ConfigError
from mhc_jax.kernels.mosaic_gpu import THREADS, has_threads, number, over_blocks, run_program

# Registers of a thread, and the tokens of a block.
REGISTERS, TOKENS = 255, 16


def fits(shapes: Sequence[tuple[int, Any]]) -> bool:
    """Whether the registers hold a row of every array; what they do not hold would cross the caches again and again.

    Args:
        shapes: channels and dtypes of all arrays that a kernel reads or makes.
    """
    return sum(channels for channels, _ in shapes) <= THREADS * REGISTERS


def laid(x: jax.Array) -> jax.Array:
    """A row (1, C) with the same channels in the same threads whatever its dtype; an interpreter has no threads."""
    if x.size == 1 or not has_threads():
        return x
    return plgpu.layout_cast(x, plgpu.Layout.WG_STRIDED(x.shape, vec_size=math.gcd(x.size // THREADS, 4)))


def load(ref: Any, t: Any, channels: Any = slice(None)) -> jax.Array:
    """The token's row in float32."""
    if ref.shape[1] == 1:
        return jnp.full((1, 1), ref[t, 0])
    return laid(ref[pl.ds(t, 1), channels]).astype(jnp.float32)


def store(ref: Any, t: Any, x: jax.Array, channels: Any = slice(None)) -> None:
    """Puts a row where the token's is, in the dtype of the reference."""
    if ref.shape[1] == 1:
        ref[t, 0] = number(x)
    else:
        ref[pl.ds(t, 1), channels] = x.astype(ref.dtype)


def by_token(body, weights, params, arrays, cotangents, made):
    """:func:`mhc_jax.kernels.tokens.over_tokens` on one device.

    The channels of arrays are multiples of :data:`THREADS`. Sums over tokens are XLA's, in a fixed order: of what every
    token has for shared weights, since to add that up would take most registers, and every block for parameters.

    Raises:
        ConfigError: a parameter is not a single row.
    """
    if any(len(x) > 1 for x in params):
        raise ConfigError(
            "the kernels of streams on GPUs take norms whose parameters are vectors; take implementation 'xla'"
        )
    (B, T), static = arrays[0].shape[:2], weights.ndim == 1
    tokens, blocks = B * T, pl.cdiv(B * T, TOKENS)

    def float32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    token = ([float32(1, x.shape[-1]) for x in xs] for xs in (arrays, cotangents))
    program, results = jax.make_jaxpr(body, return_shape=True)([float32(1, 1)] * weights.shape[-1], params, *token)
    _, dweights, dparams = results
    R = len(dweights)

    def kernel(block, weights, params, arrays, cotangents, made, dweights, dparams):
        params = [load(ref, 0) for ref in params]

        def one(t, sums):
            columns = [jnp.full((1, 1), weights[0 if static else t, k]) for k in range(weights.shape[1])]
            rows = ([load(ref, t) for ref in refs] for refs in (arrays, cotangents))
            values = run_program(program, jax.tree.leaves((columns, params, *rows)))
            found, products, summands = jax.tree.unflatten(jax.tree.structure(results), values)
            for ref, x in zip(made, found, strict=True):
                store(ref, t, x)
            for k, x in enumerate(products):
                dweights[0][t, k] = number(x)
            return jax.tree.map(jnp.add, sums, summands)

        first, last = block * TOKENS, jnp.minimum((block + 1) * TOKENS, tokens)
        sums = lax.fori_loop(first, last, one, jax.tree.map(lambda x: laid(jnp.zeros(x.shape)), results[2]))
        for ref, x in zip(dparams, sums, strict=True):
            store(ref, block, x)

    def flat(x):
        return x.reshape(-1, x.shape[-1])

    given = flat(weights), list(params), [flat(x) for x in arrays], [flat(x) for x in cotangents]
    makes = (
        [jax.ShapeDtypeStruct((tokens, channels), dtype) for channels, dtype in made],
        [float32(tokens, R)] * (R > 0),
        [float32(blocks, x.size) for x in dparams],
    )
    found, dweights, dparams = over_blocks(kernel, blocks, makes, "rows_of_tokens")(*given)
    of_weights = [jnp.sum(x, axis=0) if static else x.reshape(B, T, R) for x in dweights]
    return (
        [x.reshape(B, T, -1) for x in found],
        of_weights[0] if of_weights else None,
        [jnp.sum(x, axis=0, keepdims=True) for x in dparams],
    )
