"""A function of the rows of a token as a Pallas kernel of TPUs, which touches every array once.

Off a TPU the kernels are interpreted, which is slow. Sequences shorter than :data:`GROUP` tokens, as in decoding, are
left to XLA.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding

from mhc_jax.backend import target_backend
from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.sharding import axes, by_device

# Tokens of a tile, of which the kernel's memory holds two, and of a group, which fills its registers.
# A product with a matrix of parameters wants more tokens at once.
TILES, GROUP, MATRIX_GROUP = (256, 128, 64, 32, 16), 16, 64
MEMORY = 12 * 2**20

# Weights (tokens, 1), parameters, arrays (tokens, C) and cotangents of such arrays, all float32, to other arrays, to
# cotangents of weights (tokens, 1), and to cotangents of parameters.
Body = Callable[
    [list[jax.Array], list[jax.Array], list[jax.Array], list[jax.Array]],
    tuple[list[jax.Array], list[jax.Array], list[jax.Array]],
]


def over_tokens(
    body: Body,
    weights: jax.Array,
    params: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    cotangents: Sequence[jax.Array],
    made: Sequence[tuple[int, Any]],
    batch_sharding: Sharding | None,
) -> tuple[tuple[jax.Array, ...], jax.Array | None, tuple[jax.Array, ...]]:
    """``body`` for all tokens, and what it has for weights and parameters summed over the tokens that share them.

    Args:
        weights: (K,) or, if they depend on the token, (B, T, K).
        params: float32 matrices.
        arrays, cotangents: (B, T, C), each with channels of its own.
        made: channels and dtype of the arrays that ``body`` makes.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows.

    Returns:
        The arrays; cotangents like ``weights``, or None if ``body`` has none; cotangents like ``params``.
    """
    rows, _ = axes(batch_sharding)
    by_row, shared, static = PartitionSpec(rows), PartitionSpec(), weights.ndim == 1
    of_weights = shared if static else by_row

    @not_differentiable
    def run(weights, params, arrays, cotangents):
        fits = arrays[0].size and arrays[0].shape[1] >= GROUP
        found, dweights, dparams = (_in_tiles if fits else _plainly)(body, weights, params, arrays, cotangents, made)
        if rows:
            dparams = jax.lax.psum(dparams, rows)
            dweights = jax.lax.psum(dweights, rows) if static else dweights
        return tuple(found), dweights, tuple(dparams)

    given = weights, tuple(params), tuple(arrays), tuple(cotangents)
    return by_device(run, batch_sharding, (of_weights, shared, by_row, by_row), (by_row, of_weights, shared))(*given)


def tile_of(shapes: Sequence[tuple[int, Any]], params: int = 0) -> int:
    """Tokens of the largest tile that fits; 0 if none does.

    Args:
        shapes: channels and dtypes of all arrays that a kernel reads or makes.
        params: bytes of its parameters and of their cotangents.
    """
    bytes_of_token = sum(channels * jnp.dtype(dtype).itemsize for channels, dtype in shapes)
    return next((tile for tile in TILES if 2 * (tile * bytes_of_token + params) <= MEMORY), 0)


def _plainly(body, weights, params, arrays, cotangents, made):
    """What :func:`_in_tiles` does, without a kernel."""
    tokens, static = arrays[0].shape[:2], weights.ndim == 1
    columns = [jnp.broadcast_to(x[..., None], (*tokens, 1)) for x in jnp.unstack(weights, axis=-1)]
    rows = [[x.astype(jnp.float32) for x in xs] for xs in (arrays, cotangents)]
    found, dweights, dparams = body(columns, list(params), *rows)
    found = [x.astype(dtype) for x, (_, dtype) in zip(found, made, strict=True)]
    laid = jnp.concatenate(dweights, axis=-1) if dweights else None
    return found, jnp.sum(laid, axis=(0, 1)) if dweights and static else laid, dparams


def _in_tiles(body, weights, params, arrays, cotangents, made):
    """The same, tile by tile."""
    (B, T), K, static = arrays[0].shape[:2], weights.shape[-1], weights.ndim == 1
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    token = ([float32((1, x.shape[-1])) for x in xs] for xs in (arrays, cotangents))
    _, dweights, dparams = jax.eval_shape(body, [float32((1, 1))] * K, list(params), *token)
    R = len(dweights)
    shapes = [(x.shape[-1], x.dtype) for x in (*arrays, *cotangents)] + list(made)
    tile = tile_of(shapes, 4 * sum(math.prod(x.shape) for x in (*params, *dparams)))
    group = min(tile, MATRIX_GROUP if any(len(x) > 1 for x in params) else GROUP)

    def by_tile(channels):
        return pl.BlockSpec((None, tile, channels), lambda b, t: (b, t, 0))

    def whole(shape):
        return pl.BlockSpec(shape, lambda b, t: (0,) * len(shape))

    def kernel(weights, params, arrays, cotangents, made, dweights, dparams):
        # Sums over tokens stay in the kernel's memory until all tiles are done.
        sums = [*(dweights if static else []), *dparams]

        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _():
            for ref in sums:
                ref[...] = jnp.zeros(ref.shape, jnp.float32)

        start = pl.program_id(1) * tile

        def some(g, _):
            at = pl.ds(pl.multiple_of(g * group, group), group)
            place = start + g * group + jax.lax.broadcasted_iota(jnp.int32, (group, 1), 0)

            def rows(ref, *, repeat: bool):
                """What lies behind the last token is undefined: instead the tile's first token, or none."""
                x = ref[at, :].astype(jnp.float32)
                if T % tile == 0:
                    return x
                return jnp.where(place < T, x, ref[:1, :].astype(jnp.float32) if repeat else 0.0)

            if static:
                columns = [jnp.full((group, 1), weights[k]) for k in range(K)]
            else:
                of_tokens = rows(weights, repeat=True)
                columns = [of_tokens[:, k : k + 1] for k in range(K)]
            found, products, summands = body(
                columns,
                [ref[...] for ref in params],
                [rows(ref, repeat=True) for ref in arrays],
                [rows(ref, repeat=False) for ref in cotangents],
            )
            for ref, x in zip(made, found, strict=True):
                ref[at, :] = x.astype(ref.dtype)
            if R:
                lane = jax.lax.broadcasted_iota(jnp.int32, (group, R), 1)
                laid = sum(jnp.where(lane == k, x, 0.0) for k, x in enumerate(products))
                if static:
                    summands = [jnp.sum(laid, axis=0, keepdims=True), *summands]
                else:
                    dweights[0][at, :] = laid
            for ref, x in zip(sums, summands, strict=True):
                ref[...] += x

        jax.lax.fori_loop(0, tile // group, some, None)

    results = (
        [jax.ShapeDtypeStruct((B, T, channels), dtype) for channels, dtype in made],
        [float32((1, R) if static else (B, T, R))] * (R > 0),
        [float32(x.shape) for x in dparams],
    )
    given = weights, list(params), list(arrays), list(cotangents)
    found, dweights, dparams = pl.pallas_call(
        kernel,
        grid=(B, pl.cdiv(T, tile)),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM) if static else by_tile(K),
            [whole(x.shape) for x in params],
            *([by_tile(x.shape[-1]) for x in xs] for xs in (arrays, cotangents)),
        ),
        out_specs=(
            [by_tile(channels) for channels, _ in made],
            [whole((1, R)) if static else by_tile(R)] * (R > 0),
            [whole(x.shape) for x in dparams],
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary" if dparams or (R and static) else "parallel",) * 2
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * T * (K + R) * max(channels for channels, _ in shapes),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((given, results))),
            transcendentals=0,
        ),
        interpret=target_backend() != "tpu",
    )(*given)
    of_weights = [x[0] if static else x for x in dweights]
    return found, of_weights[0] if of_weights else None, dparams
