"""A function of the rows of a token as a Pallas kernel, which touches every array once.

That of TPUs is here, and is interpreted where there is neither a TPU nor a GPU, which is slow; that of GPUs is in
:mod:`mhc_jax.kernels.tokens_gpu`. Sequences shorter than :data:`tiles.GROUP` tokens, as in decoding, are left to XLA.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, Sharding

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels import tiles
from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.sharding import axes, by_device
from mhc_jax.kernels.tiles import Group, Tiles
from mhc_jax.kernels.tokens_gpu import by_token, fits

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

    Raises:
        ConfigError: no tile fits, see :func:`tile_of`.
    """
    rows, _ = axes(batch_sharding)
    by_row, shared, static = PartitionSpec(rows), PartitionSpec(), weights.ndim == 1
    of_weights = shared if static else by_row

    @not_differentiable
    def run(weights, params, arrays, cotangents):
        enough = arrays[0].size and arrays[0].shape[1] >= tiles.GROUP
        computed = kernel_of(target_backend()) if enough else _plainly
        found, dweights, dparams = computed(body, weights, params, arrays, cotangents, made)
        if rows:
            dparams = jax.lax.psum(dparams, rows)
            dweights = jax.lax.psum(dweights, rows) if static else dweights
        return tuple(found), dweights, tuple(dparams)

    given = weights, tuple(params), tuple(arrays), tuple(cotangents)
    return by_device(run, batch_sharding, (of_weights, shared, by_row, by_row), (by_row, of_weights, shared))(*given)


def tile_of(
    shapes: Sequence[tuple[int, Any]], params: Sequence[tuple[int, ...]] = (), target: str | None = None
) -> int:
    """Tokens of the largest tile that fits; 0 if none does.

    Args:
        shapes: channels and dtypes of all arrays that a kernel reads or makes.
        params: shapes of its parameters and of their cotangents.
        target: platform of the kernel; None if it is not known, for what fits a TPU, which holds most.
    """
    if kernel_of(target) is by_token:
        return int(fits(shapes) and all(rows == 1 for rows, _ in params))
    return tiles.size(shapes, params)


def kernel_of(target: str | None) -> Callable[..., Any]:
    """The form of a platform: that of GPUs, or that of TPUs."""
    return by_token if target == "gpu" else _in_tiles


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
    tile = tile_of(shapes, [x.shape for x in (*params, *dparams)])
    if not tile:
        raise ConfigError(
            f"no tile of {tiles.TILES[-1]} tokens fits the kernel's memory; take fewer channels, or implementation "
            "'xla'"
        )
    over = Tiles(B, T, tile, min(tile, tiles.MATRIX_GROUP if any(len(x) > 1 for x in params) else tiles.GROUP))

    shared = ([weights] if static else []), list(params)
    given = [*([] if static else [weights]), *arrays, *cotangents]
    results = [*made, *[(R, jnp.float32)] * (not static and R > 0)]
    summed = [float32(x.shape) for x in ([float32((1, R))] * (static and R > 0) + list(dparams))]

    def kernel(shared, inputs, outputs, sums):
        of_all, params = shared

        def some(group: Group):
            first_cotangent = len(inputs) - len(cotangents)
            known = [group.rows(ref, repeat=i < first_cotangent) for i, ref in enumerate(inputs)]
            if static:
                columns = [jnp.full((over.group, 1), of_all[0][k]) for k in range(K)]
            else:
                weights, *known = known
                columns = tiles.columns(weights)
            found, products, summands = body(
                columns, [ref[...] for ref in params], known[: len(arrays)], known[len(arrays) :]
            )
            if R:
                laid = tiles.side_by_side(products)
                if static:
                    summands = [jnp.sum(laid, axis=0, keepdims=True), *summands]
                else:
                    found = [*found, laid]
            for ref, x in zip(outputs, found, strict=True):
                ref[group.at, :] = x.astype(ref.dtype)
            for ref, x in zip(sums, summands, strict=True):
                ref[...] += x

        over.each_group(some)

    flops = 2 * B * T * (K + R) * max(channels for channels, _ in shapes)
    found, sums = over.call(kernel, shared, given, results, summed, flops=flops)
    if not R:
        return found, None, sums
    if static:
        return found, sums[0][0], sums[1:]
    return found[:-1], found[-1], sums
