"""Residual streams on TPUs: what a site does to them in Pallas kernels that touch every stream once.

A site reads ``u = sum_i pre_i h_i`` and later makes ``h'_i = m_i + post_i y``, of mixed streams
``m_i = sum_j res_ij h_j``. :func:`read` gives u, and m as a :class:`Mixed` that nothing has computed yet; :func:`write`
computes h' from it in one kernel. The cotangent of m is that of h', so nothing computes it either: the backward pass of
``read`` gets it together with that of u, and one kernel reads h, dm and du and writes the whole of dh.

Traffic in arrays (B, T, D), for N streams: ``read`` N + 1, ``write`` 2 N + 1, their backward passes 3 N + 1 and N + 2;
u and its cotangent are float32.

Sums are in float32 and rounded once. Coefficients are the same for all tokens or differ between them; gradients of the
former are sums over tokens in a fixed order. Sequences shorter than :data:`GROUP` tokens, as in decoding, are left to
XLA. Off a TPU the kernels are interpreted, which is slow.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels.sharding import axes, by_device
from mhc_jax.ops.streams import Streams

# Tokens of a tile, of which the kernel's memory holds two, and of a group, which fills its registers.
TILES, GROUP = (256, 128, 64, 32, 16), 16
MEMORY = 12 * 2**20
LANES, MOST_STREAMS = 128, 8

# Coefficients and float32 arrays (tokens, D) to arrays of that kind, and to inner products (tokens, 1).
Body = Callable[..., tuple[list[jax.Array], list[jax.Array]]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["h", "res_NN"], meta_fields=["batch_sharding"])
@dataclasses.dataclass(frozen=True)
class Mixed:
    """The streams ``m_i = sum_j res[i, j] h_j``, not computed before :func:`write` needs them.

    The cotangent of ``h`` is that of the mixed streams, which only :func:`read` knows how to take: what is inside is
    for this file alone.
    """

    h: Streams
    res_NN: jax.Array | None
    batch_sharding: Sharding | None


def fault(streams: int, width: int, dtype: Any) -> str | None:
    """Why there is no kernel for so many streams of that width and dtype, and what to do; None if there is one."""
    xla = "or take implementation 'xla'"
    if streams > MOST_STREAMS:
        return f"the kernels of streams take at most {MOST_STREAMS} streams, got {streams}; take fewer, {xla}"
    if width % LANES:
        return f"the kernels of streams need a width that {LANES} divides, got {width}; take such a width, {xla}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the kernels of streams carry float32 or bfloat16, not {jnp.dtype(dtype)}; take such a policy, {xla}"
    # The most that a kernel has at once: streams, and a branch's float32 output and its cotangent for each of them.
    if not _tile(width, [dtype] * streams + [jnp.float32] * (2 * streams + 1)):
        return f"{streams} streams of {width} channels are too wide for the kernels of streams; take fewer, {xla}"
    return None


def read(
    h: Streams,
    pre_N: Float[Array, "*B N"],
    res_NN: Float[Array, "*B N N"] | None,
    *,
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T D"], Mixed]:
    """``u = sum_i pre[i] h_i`` in float32, and the mixed streams.

    Args:
        pre_N: static (N,) or per token (B, T, N).
        res_NN: as ``pre_N``; None for streams that are not mixed.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows.

    Raises:
        ConfigError: there is no kernel for these streams, see :func:`fault`.
    """
    if reason := fault(len(h), h.parts[0].shape[-1], h.dtype):
        raise ConfigError(reason)
    found: Any = _read(h, pre_N, res_NN, batch_sharding)
    u_BTD, passed = found
    return u_BTD, Mixed(passed, res_NN, batch_sharding)


def write(mixed: Mixed, y: Float[Array, "B T D"] | Streams, post_N: Float[Array, "*B N"]) -> Streams:
    """``h'_i = m_i + post[i] y_i`` in the dtype of h; y is one array for all streams, or differs by stream."""
    return _write(mixed.h, mixed.res_NN, y, post_N, mixed.batch_sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _read(h, pre_N, res_NN, batch_sharding):
    """u, and h in the place of the mixed streams."""

    def body(pre, *h):
        return [_dot(pre, h)], []

    (u_BTD,), _ = _over_tokens(body, _joined(pre_N), h.parts, [jnp.float32], batch_sharding)
    return u_BTD, h


def _read_forward(h, pre_N, res_NN, batch_sharding):
    return _read(h, pre_N, res_NN, batch_sharding), (h, pre_N, res_NN)


def _read_backward(batch_sharding, saved, cotangents):
    (h, *coefficients), (du_BTD, dm) = saved, cotangents
    weights, split = jax.vjp(_joined, *coefficients)
    N = len(h)

    def body(weights, du, *rows):
        h, dm, pre, res = rows[:N], rows[N:], weights[:N], _square(weights[N:], N)
        through = _mix(zip(*res), dm) if res else dm
        dh = [weight * du + x for weight, x in zip(pre, through, strict=True)]
        dres = [_inner(row, x) for row in dm for x in h] if res else []
        return dh, [_inner(du, x) for x in h] + dres

    dh, dweights = _over_tokens(body, weights, (du_BTD, *h.parts, *dm.parts), [h.dtype] * N, batch_sharding)
    return (Streams(dh), *split(dweights))


_read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _write(h, res_NN, y, post_N, batch_sharding):
    N, ys = len(h), _parts(y)

    def body(weights, *rows):
        h, ys, post, res = rows[:N], rows[N:] * (N // len(rows[N:])), weights[:N], _square(weights[N:], N)
        mixed = _mix(res, h) if res else h
        return [x + weight * y for x, weight, y in zip(mixed, post, ys, strict=True)], []

    after, _ = _over_tokens(body, _joined(post_N, res_NN), (*h.parts, *ys), [h.dtype] * N, batch_sharding)
    return Streams(after)


def _write_forward(h, res_NN, y, post_N, batch_sharding):
    return _write(h, res_NN, y, post_N, batch_sharding), (y, post_N)


def _write_backward(batch_sharding, saved, dm):
    y, post_N = saved
    weights, split = jax.vjp(_joined, post_N)
    N, ys = len(dm), _parts(y)

    def body(post, *rows):
        dm, ys = rows[:N], rows[N:]
        products = [_inner(x, y) for x, y in zip(dm, ys * (N // len(ys)), strict=True)]
        written = [weight * x for weight, x in zip(post, dm, strict=True)]
        return written if len(ys) > 1 else [sum(written)], products

    dtypes = [x.dtype for x in ys]
    dys, dweights = _over_tokens(body, weights, (*dm.parts, *ys), dtypes, batch_sharding)
    dy = Streams(dys) if isinstance(y, Streams) else dys[0]
    # The matrix has its gradient from the read, which sees the same cotangent beside the streams.
    return dm, None, dy, *split(dweights)


_write.defvjp(_write_forward, _write_backward)


def _parts(y: jax.Array | Streams) -> tuple[jax.Array, ...]:
    return y.parts if isinstance(y, Streams) else (y,)


def _dot(weights, rows):
    return sum(weight * x for weight, x in zip(weights, rows, strict=True))


def _mix(matrix, rows):
    return [_dot(weights, rows) for weights in matrix]


def _inner(a, b):
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _square(weights, N):
    return [weights[i : i + N] for i in range(0, len(weights), N)]


def _joined(vector_N: jax.Array, matrix_NN: jax.Array | None = None) -> jax.Array:
    """All coefficients as one float32 array: (K,) if none depends on the token, else (B, T, K)."""
    parts = [vector_N]
    if matrix_NN is not None:
        parts.append(matrix_NN.reshape(*matrix_NN.shape[:-2], -1))
    tokens = max((x.shape[:-1] for x in parts), key=len)
    return jnp.concatenate([jnp.broadcast_to(x, tokens + x.shape[-1:]) for x in parts], -1).astype(jnp.float32)


def _over_tokens(
    body: Body, weights: jax.Array, arrays: Sequence[jax.Array], dtypes: Sequence[Any], batch_sharding: Sharding | None
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """``body`` for all tokens: its arrays in those dtypes, and its inner products, summed if the weights are static.

    Args:
        body: function of the list of weights, each a scalar or (tokens, 1), and of float32 arrays (tokens, D).
        weights: (K,) or (B, T, K).
        arrays: (B, T, D) each.
    """
    rows, _ = axes(batch_sharding)
    by_row, static = PartitionSpec(rows), weights.ndim == 1
    of_weights = PartitionSpec() if static else by_row

    def run(weights, *arrays):
        fits = arrays[0].size and arrays[0].shape[1] >= GROUP
        made, products = (_in_tiles if fits else _plainly)(body, weights, arrays, dtypes)
        if static and rows and products is not None:
            products = jax.lax.psum(products, rows)
        return tuple(made), products

    in_specs = (of_weights, *[by_row for _ in arrays])
    return by_device(run, batch_sharding, in_specs, (by_row, of_weights))(weights, *arrays)


def _plainly(body, weights, arrays, dtypes):
    """What :func:`_in_tiles` does, without a kernel."""
    static = weights.ndim == 1
    columns = list(weights) if static else jnp.split(weights, weights.shape[-1], axis=-1)
    made, products = body(columns, *(x.astype(jnp.float32) for x in arrays))
    laid = jnp.concatenate(products, axis=-1) if products else None
    if products and static:
        laid = jnp.sum(laid, axis=(0, 1))
    return [x.astype(dtype) for x, dtype in zip(made, dtypes, strict=True)], laid


def _in_tiles(body, weights, arrays, dtypes):
    """The same, tile by tile."""
    (B, T, D), K, static = arrays[0].shape, weights.shape[-1], weights.ndim == 1
    one_token = (jax.ShapeDtypeStruct((1, D), jnp.float32) for _ in arrays)
    R = len(jax.eval_shape(body, [jnp.float32(0)] * K, *one_token)[1])
    tile = _tile(D, [*(x.dtype for x in arrays), *dtypes])

    def by_tile(channels):
        return pl.BlockSpec((None, tile, channels), lambda b, t: (b, t, 0))

    results = [(jax.ShapeDtypeStruct((B, T, D), dtype), by_tile(D)) for dtype in dtypes]
    if R:
        # Sums over tokens stay in the kernel's memory, a group of tokens in a row, until all tiles are done.
        sums = jax.ShapeDtypeStruct((GROUP, R), jnp.float32), pl.BlockSpec((GROUP, R), lambda b, t: (0, 0))
        by_token = jax.ShapeDtypeStruct((B, T, R), jnp.float32), by_tile(R)
        results.append(sums if static else by_token)
    shapes, specs = zip(*results, strict=True)

    def kernel(weights, *refs):
        given, made = refs[: len(arrays)], refs[len(arrays) :]
        if R and static:
            first = (pl.program_id(0) == 0) & (pl.program_id(1) == 0)

            @pl.when(first)
            def _():
                made[-1][...] = jnp.zeros((GROUP, R), jnp.float32)

        start = pl.program_id(1) * tile

        def group(g, _):
            at = pl.ds(pl.multiple_of(g * GROUP, GROUP), GROUP)
            columns = [weights[k] if static else weights[at, k : k + 1] for k in range(K)]
            found, products = body(columns, *(x[at, :].astype(jnp.float32) for x in given))
            for ref, x in zip(made, found, strict=False):
                ref[at, :] = x.astype(ref.dtype)
            if R:
                lane = jax.lax.broadcasted_iota(jnp.int32, (GROUP, R), 1)
                laid = sum(jnp.where(lane == k, x, 0.0) for k, x in enumerate(products))
                if static:
                    token = start + g * GROUP + jax.lax.broadcasted_iota(jnp.int32, (GROUP, R), 0)
                    made[-1][...] += jnp.where(token < T, laid, 0.0)  # what lies behind the last token is undefined
                else:
                    made[-1][at, :] = laid

        jax.lax.fori_loop(0, tile // GROUP, group, None)

    out = pl.pallas_call(
        kernel,
        grid=(B, pl.cdiv(T, tile)),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM) if static else by_tile(K), *[by_tile(D) for _ in arrays]],
        out_specs=specs,
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary" if R and static else "parallel",) * 2),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * T * D * (K + R),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (weights, *arrays, *shapes)),
            transcendentals=0,
        ),
        interpret=target_backend() != "tpu",
    )(weights, *arrays)
    made, products = out[: len(dtypes)], out[-1] if R else None
    return made, jnp.sum(products, axis=0) if R and static else products


def _tile(width: int, dtypes: Sequence[Any]) -> int:
    """Tokens of the largest tile that fits; 0 if none does."""
    bytes_of_token = width * sum(jnp.dtype(dtype).itemsize for dtype in dtypes)
    return next((tile for tile in TILES if 2 * tile * bytes_of_token <= MEMORY), 0)
