"""Residual streams on TPUs: what a site does to them in Pallas kernels that touch every stream once.

A site reads ``u = sum_i pre_i h_i`` and later makes ``h'_i = m_i + post_i y``, of mixed streams
``m_i = sum_j res_ij h_j``. :func:`read` gives u, normalised if a norm is given, and m as a :class:`Mixed` that nothing
has computed yet. With y, that is a :class:`Pending` h', which :meth:`Pending.computed` computes, or the ``read`` of the
next site in the same kernel: the whole boundary of two sites takes one.

The derivative of m is not computed either. The cotangent of m is that of h', and the backward pass of the ``read`` that
gave m gets it together with that of u: one kernel makes all that lies between the two kernels of the branches.

Traffic in arrays (B, T, D), for N streams: a boundary 2 N + 2 and 3 N + 3 backward, a read alone N + 1 and 3 N + 1, a
write alone 2 N + 1 and N + 2.

Sums are in float32 and rounded once. Coefficients are the same for all tokens or differ between them; gradients of the
former are sums over tokens in a fixed order. Sequences shorter than :data:`GROUP` tokens, as in decoding, are left to
XLA. Off a TPU the kernels are interpreted, which is slow.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels.sharding import axes, by_device
from mhc_jax.ops.streams import Deferred, Streams

# Tokens of a tile, of which the kernel's memory holds two, and of a group, which fills its registers.
TILES, GROUP = (256, 128, 64, 32, 16), 16
MEMORY = 12 * 2**20
LANES, MOST_STREAMS = 128, 8


@functools.partial(jax.tree_util.register_dataclass, data_fields=["h", "res_NN"], meta_fields=["batch_sharding"])
@dataclasses.dataclass(frozen=True)
class Mixed:
    """The streams ``m_i = sum_j res[i, j] h_j``, not computed before something is written to them.

    The cotangent of ``h`` is that of the mixed streams, which only :func:`read` knows how to take: what is inside is
    for this file alone.
    """

    h: Streams
    res_NN: jax.Array | None
    batch_sharding: Sharding | None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mixed", "y", "post_N"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Pending(Deferred):
    """The streams ``h'_i = m_i + post[i] y_i`` after a site, not computed before the next one reads them.

    Attributes:
        y: output of the branch (B, T, D), one array for all streams, or streams.
        post_N: static (N,) or per token (B, T, N).
    """

    mixed: Mixed
    y: jax.Array | Streams
    post_N: jax.Array

    def computed(self) -> Streams:
        """The streams after the site, in the dtype of those before it."""
        mixed, ys = self.mixed, _parts(self.y)
        found: Any = _write(mixed.batch_sharding, mixed.h, ys, Coefficients(mixed.res_NN, self.post_N))
        return found


class Normalised(NamedTuple):
    """A norm behind a read: ``of(u, *params)`` in the given dtype.

    Attributes:
        of: maps (tokens, D) to (tokens, D), each vector alone.
        params: its parameters, (D,) each.
    """

    of: Callable[..., jax.Array]
    params: tuple[jax.Array, ...]
    dtype: Any


class Coefficients(NamedTuple):
    """What a kernel weighs streams with, each absent or an array (..., N) or (..., N, N), or a list of its columns.

    Attributes:
        before: the matrix of the site before.
        post: the writing weights of that site.
        pre, res: the reading weights of this site, and its matrix.
    """

    before: Any = None
    post: Any = None
    pre: Any = None
    res: Any = None

    def joined(self) -> jax.Array:
        """All of them as one float32 array: (K,) if none depends on the token, else (B, T, K)."""
        parts = [None if x is None else x.reshape(*x.shape[:-2], -1) for x in (self.before, self.res)]
        parts = [x for x in (parts[0], self.post, self.pre, parts[1]) if x is not None]
        tokens = max((x.shape[:-1] for x in parts), key=len)
        return jnp.concatenate([jnp.broadcast_to(x, tokens + x.shape[-1:]) for x in parts], -1).astype(jnp.float32)

    def columns(self, columns: Sequence[jax.Array], streams: int) -> "Coefficients":
        """The columns of :meth:`joined` in the places of these coefficients, those of a matrix row by row."""
        left = iter(columns)

        def vector():
            return [next(left) for _ in range(streams)]

        def matrix():
            return [vector() for _ in range(streams)]

        return Coefficients(
            *(x if x is None else take() for x, take in zip(self, (matrix, vector, vector, matrix), strict=True))
        )


# Columns of weights, parameters and rows, all float32, to arrays (tokens, D), and to cotangents of both former.
Body = Callable[..., tuple[list[jax.Array], list[jax.Array], list[jax.Array]]]


def fault(streams: int, width: int, dtype: Any) -> str | None:
    """Why there is no kernel for so many streams of that width and dtype, and what to do; None if there is one."""
    xla = "or take implementation 'xla'"
    if streams > MOST_STREAMS:
        return f"the kernels of streams take at most {MOST_STREAMS} streams, got {streams}; take fewer, {xla}"
    if width % LANES:
        return f"the kernels of streams need a width that {LANES} divides, got {width}; take such a width, {xla}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the kernels of streams carry float32 or bfloat16, not {jnp.dtype(dtype)}; take such a policy, {xla}"
    # The most that a kernel has at once: at a boundary, or at a write of another array to every stream.
    boundary, write = [dtype] * (3 * streams) + [jnp.float32] * 3, [dtype] * streams + [jnp.float32] * (2 * streams)
    if not (_tile(width, boundary) and _tile(width, write)):
        return f"{streams} streams of {width} channels are too wide for the kernels of streams; take fewer, {xla}"
    return None


def read(
    state: Streams | Pending,
    pre_N: Float[Array, "*B N"],
    res_NN: Float[Array, "*B N N"] | None,
    *,
    norm: Normalised | None = None,
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T D"], Mixed]:
    """``u = sum_i pre[i] h_i``, in float32 or normalised, and the mixed streams.

    Args:
        state: the streams h, or what the site before has left to do.
        pre_N: static (N,) or per token (B, T, N).
        res_NN: as ``pre_N``; None for streams that are not mixed.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows.

    Raises:
        ConfigError: there is no kernel for these streams, see :func:`fault`.
    """
    if isinstance(state, Pending):
        h, ys, before, post = state.mixed.h, _parts(state.y), state.mixed.res_NN, state.post_N
    else:
        h, ys, before, post = state, (), None, None
    if reason := fault(len(h), h.parts[0].shape[-1], h.dtype):
        raise ConfigError(reason)
    norm = norm or Normalised(lambda u: u, (), jnp.float32)
    coefficients = Coefficients(before, post, pre_N, res_NN)
    found: Any = _read(norm.of, norm.dtype, batch_sharding, h, ys, coefficients, norm.params)
    u_BTD, h = found
    return u_BTD, Mixed(h, res_NN, batch_sharding)


def _after(mixed, ys, post):
    """One site's streams, of those mixed; all of them lists of rows."""
    if not ys:
        return mixed
    return [x + weight * y for x, weight, y in zip(mixed, post, ys * (len(mixed) // len(ys)), strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _read(norm, dtype, batch_sharding, h, ys, coefficients, params):
    """u, and the streams after the write of ``ys``, in the place of those that the read's matrix mixes."""
    N = len(h)

    needed = coefficients._replace(res=None)

    def body(columns, params, *rows):
        weights = needed.columns(columns, N)
        after = _after(_mix(weights.before, rows[:N]), rows[N:], weights.post)
        return [norm(_dot(weights.pre, after), *params), *(after if ys else [])], [], []

    dtypes = [dtype, *[h.dtype] * (N if ys else 0)]
    (u_BTD, *after), *_ = _over_tokens(body, needed.joined(), params, (*h.parts, *ys), dtypes, batch_sharding)
    return u_BTD, Streams(tuple(after)) if ys else h


def _read_forward(norm, dtype, batch_sharding, *arguments):
    return _read(norm, dtype, batch_sharding, *arguments), arguments


def _read_backward(norm, dtype, batch_sharding, saved, cotangents):
    (h, ys, coefficients, params), (du_BTD, dm) = saved, cotangents
    N = len(h)

    def site(mixed, ys, weights, params):
        after = _after(mixed, ys, weights.post)
        return norm(_dot(weights.pre, after), *params), _mix(weights.res, after)

    def body(columns, params, du, *rows):
        weights = coefficients.columns(columns, N)
        mixed, ys, dm = _mix(weights.before, rows[:N]), rows[N:-N], list(rows[-N:])
        _, pull = jax.vjp(site, mixed, ys, weights._replace(before=None), params)
        dmixed, dys, dweights, dparams = pull((du, dm))
        return [*dmixed, *dys], jax.tree.leaves(dweights), dparams

    dtypes = [h.dtype] * N + [y.dtype for y in ys]
    rows = du_BTD, *h.parts, *ys, *dm.parts
    made, dweights, dparams = _over_tokens(body, coefficients.joined(), params, rows, dtypes, batch_sharding)
    # The matrix of the site before has its gradient from that site's read, which sees the same cotangent.
    _, split = jax.vjp(Coefficients.joined, coefficients)
    others = 0 if coefficients.before is None else N * N
    of_all = jnp.pad(dweights, [(0, 0)] * (dweights.ndim - 1) + [(others, 0)])
    return Streams(tuple(made[:N])), tuple(made[N:]), *split(of_all), tuple(dparams)


_read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _write(batch_sharding, h, ys, coefficients):
    N = len(h)

    def body(columns, params, *rows):
        weights = coefficients.columns(columns, N)
        return _after(_mix(weights.before, rows[:N]), rows[N:], weights.post), [], []

    after, *_ = _over_tokens(body, coefficients.joined(), (), (*h.parts, *ys), [h.dtype] * N, batch_sharding)
    return Streams(after)


def _write_forward(batch_sharding, h, ys, coefficients):
    return _write(batch_sharding, h, ys, coefficients), (ys, coefficients)


def _write_backward(batch_sharding, saved, dm):
    ys, coefficients = saved
    N, coefficients = len(dm), coefficients._replace(before=None)

    def body(columns, params, *rows):
        nothing = [jnp.zeros_like(x) for x in rows[-N:]]
        _, pull = jax.vjp(functools.partial(_after, nothing), rows[:-N], coefficients.columns(columns, N).post)
        dys, dpost = pull(list(rows[-N:]))
        return [*dys], dpost, []

    dtypes = [y.dtype for y in ys]
    dys, dpost, _ = _over_tokens(body, coefficients.joined(), (), (*ys, *dm.parts), dtypes, batch_sharding)
    _, split = jax.vjp(Coefficients.joined, coefficients)
    return dm, tuple(dys), *split(dpost)


_write.defvjp(_write_forward, _write_backward)


def _parts(y: jax.Array | Streams) -> tuple[jax.Array, ...]:
    return y.parts if isinstance(y, Streams) else (y,)


def _dot(weights, rows):
    return sum(weight * x for weight, x in zip(weights, rows, strict=True))


def _mix(matrix, rows):
    return [_dot(weights, rows) for weights in matrix] if matrix else list(rows)


def _over_tokens(
    body: Body,
    weights: jax.Array,
    params: Sequence[jax.Array],
    arrays: Sequence[jax.Array],
    dtypes: Sequence[Any],
    batch_sharding: Sharding | None,
) -> tuple[tuple[jax.Array, ...], jax.Array | None, list[jax.Array]]:
    """``body`` for all tokens: its arrays in those dtypes, and its cotangents, summed for what all tokens share.

    Args:
        body: function of the list of weights, (tokens, 1) each, and of parameters and arrays (tokens, D).
        weights: (K,) or (B, T, K).
        params: (D,) each.
        arrays: (B, T, D) each.
    """
    rows, _ = axes(batch_sharding)
    by_row, static = PartitionSpec(rows), weights.ndim == 1
    of_weights, shared = PartitionSpec() if static else by_row, PartitionSpec()

    def run(weights, params, *arrays):
        fits = arrays[0].size and arrays[0].shape[1] >= GROUP
        made, dweights, dparams = (_in_tiles if fits else _plainly)(body, weights, params, arrays, dtypes)
        if rows and static and dweights is not None:
            dweights = jax.lax.psum(dweights, rows)
        return tuple(made), dweights, jax.lax.psum(dparams, rows) if rows else dparams

    in_specs = of_weights, shared, *[by_row for _ in arrays]
    return by_device(run, batch_sharding, in_specs, (by_row, of_weights, shared))(weights, params, *arrays)


def _plainly(body, weights, params, arrays, dtypes):
    """What :func:`_in_tiles` does, without a kernel."""
    shape, static = arrays[0].shape, weights.ndim == 1
    columns = [jnp.broadcast_to(x[..., None], (*shape[:2], 1)) for x in jnp.unstack(weights, axis=-1)]
    params = [jnp.broadcast_to(x.astype(jnp.float32), shape) for x in params]
    made, dweights, dparams = body(columns, params, *(x.astype(jnp.float32) for x in arrays))
    laid = jnp.concatenate(dweights, axis=-1) if dweights else None
    if dweights and static:
        laid = jnp.sum(laid, axis=(0, 1))
    made = [x.astype(dtype) for x, dtype in zip(made, dtypes, strict=True)]
    return made, laid, [jnp.sum(x, axis=(0, 1)) for x in dparams]


def _in_tiles(body, weights, params, arrays, dtypes):
    """The same, tile by tile."""
    (B, T, D), K, static = arrays[0].shape, weights.shape[-1], weights.ndim == 1
    column, row = (jax.ShapeDtypeStruct((1, size), jnp.float32) for size in (1, D))
    _, dweights, dparams = jax.eval_shape(body, [column] * K, [row] * len(params), *[row] * len(arrays))
    R, S = len(dweights), len(dparams)
    tile = _tile(D, [*(x.dtype for x in arrays), *dtypes])
    by_tile = [pl.BlockSpec((None, tile, channels), lambda b, t: (b, t, 0)) for channels in (D, K, R)]

    def of_all(*shape):
        return pl.BlockSpec(shape, lambda b, t: (0,) * len(shape))

    def kernel(weights, params, arrays, made, dweights, dparams):
        # Sums over tokens stay in the kernel's memory, a group of tokens in a row, until all tiles are done.
        sums = [*(dweights if static else []), *dparams]

        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _():
            for ref in sums:
                ref[...] = jnp.zeros(ref.shape, jnp.float32)

        start = pl.program_id(1) * tile

        def group(g, _):
            at = pl.ds(pl.multiple_of(g * GROUP, GROUP), GROUP)
            columns = [jnp.broadcast_to(weights[k] if static else weights[at, k : k + 1], (GROUP, 1)) for k in range(K)]
            spread = [jnp.broadcast_to(ref[...], (GROUP, D)) for ref in params]
            found, products, summands = body(columns, spread, *(ref[at, :].astype(jnp.float32) for ref in arrays))
            for ref, x in zip(made, found, strict=True):
                ref[at, :] = x.astype(ref.dtype)
            lane = jax.lax.broadcasted_iota(jnp.int32, (GROUP, R), 1) if R else None
            laid = [sum(jnp.where(lane == k, x, 0.0) for k, x in enumerate(products))] if R else []
            if R and not static:
                dweights[0][at, :] = laid[0]
            # What lies behind the last token is undefined.
            token = start + g * GROUP + jax.lax.broadcasted_iota(jnp.int32, (GROUP, 1), 0)
            for ref, x in zip(sums, [*(laid if static else []), *summands], strict=True):
                ref[...] += jnp.where(token < T, x, 0.0)

        jax.lax.fori_loop(0, tile // GROUP, group, None)

    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = (
        [jax.ShapeDtypeStruct((B, T, D), dtype) for dtype in dtypes],
        [float32((GROUP, R) if static else (B, T, R))] * (R > 0),
        [float32((GROUP, D))] * S,
    )
    given = weights, [x.astype(jnp.float32)[None] for x in params], list(arrays)
    made, dweights, dparams = pl.pallas_call(
        kernel,
        grid=(B, pl.cdiv(T, tile)),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM) if static else by_tile[1],
            [of_all(1, D) for _ in params],
            [by_tile[0] for _ in arrays],
        ),
        out_specs=(
            [by_tile[0] for _ in dtypes],
            [of_all(GROUP, R) if static else by_tile[2]] * (R > 0),
            [of_all(GROUP, D)] * S,
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary" if S or (R and static) else "parallel",) * 2
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * B * T * D * (K + R),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((given, shapes))),
            transcendentals=0,
        ),
        interpret=target_backend() != "tpu",
    )(*given)
    laid = dweights[0] if R else None
    return made, jnp.sum(laid, axis=0) if R and static else laid, [jnp.sum(x, axis=0) for x in dparams]


def _tile(width: int, dtypes: Sequence[Any]) -> int:
    """Tokens of the largest tile that fits; 0 if none does."""
    bytes_of_token = width * sum(jnp.dtype(dtype).itemsize for dtype in dtypes)
    return next((tile for tile in TILES if 2 * tile * bytes_of_token <= MEMORY), 0)
