"""Residual streams on TPUs and GPUs: what a site does to them in Pallas kernels that touch every stream once.

A site reads ``u = sum_i pre_i h_i`` and later makes ``h'_i = m_i + post_i y``, of mixed streams
``m_i = sum_j res_ij h_j``. :func:`read` gives u, normalised if a norm is given, and m as a :class:`Mixed` that nothing
has computed yet. With y, that is a :class:`Pending` h'. If the next site has static coefficients, its ``read`` computes
h' in the same kernel, so that the boundary of two sites takes one, and so does :mod:`mhc_jax.kernels.coefficients` for
those coefficients that it computes itself. Else, if it projects h' to its coefficients, the kernel that computes h'
does so too, except on GPUs, and another one reads.

The derivative of m is not computed either. The cotangent of m is that of h', and the backward pass of the ``read`` that
gave m gets it together with that of u. Backward kernels are the derivatives of the same functions of rows, and begin at
h', which the next site keeps anyway.

Traffic in arrays (B, T, D), for N streams: a boundary 2 N + 2 and 3 N + 3 backward, a read alone N + 1 and 3 N + 1, a
write alone 2 N + 1 and N + 2, one that projects 2 N + 1 and 3 N + 2.

Sums are in float32 and rounded once. Coefficients are the same for all tokens or differ between them; gradients of the
former are sums over tokens in a fixed order.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels.rows import dot, mix, written
from mhc_jax.kernels.tokens import over_tokens, tile_of
from mhc_jax.nn.deferred import Deferred
from mhc_jax.ops.streams import Streams

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
        return self._written(lambda rows: [], ())[0]

    def projected(self, project, param):
        stream, row = ((self.mixed.h.parts[0].shape[-1], dtype) for dtype in (self.mixed.h.dtype, jnp.float32))
        arrays = [stream] * (3 * len(self.mixed.h)) + [row] * 2 + [(len(param), jnp.float32)]
        if not tile_of(arrays, [param.shape] * 2, target_backend()):
            return (h := self.computed()), project(h, param)  # such a matrix does not fit beside them
        h, (found,) = self._written(lambda rows, param: [project(Streams(tuple(rows)), param)], (param,))
        return h, found

    def _written(self, project, params):
        mixed, ys = self.mixed, parts(self.y)
        params = tuple(x.astype(jnp.float32) for x in params)
        found: Any = _write(project, mixed.batch_sharding, mixed.h, ys, Coefficients(mixed.res_NN, self.post_N), params)
        return found


class Normalised(NamedTuple):
    """A norm behind a read: ``of(u, *params)`` in the given dtype.

    Attributes:
        of: maps (tokens, D) to (tokens, D), each vector alone.
        params: its parameters, which broadcast against (tokens, D).
    """

    of: Callable[..., jax.Array]
    params: tuple[jax.Array, ...]
    dtype: Any


AS_IT_IS = Normalised(lambda u: u, (), jnp.float32)


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
        before, res = (None if x is None else x.reshape(*x.shape[:-2], -1) for x in (self.before, self.res))
        parts = [x for x in (before, self.post, self.pre, res) if x is not None]
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

    def cotangents(self, columns: jax.Array) -> "Coefficients":
        """Those of all arrays, from those of the columns of all but the matrix of the site before.

        That matrix has its gradient from that site's read, which sees the same cotangent of streams.
        """
        _, split = jax.vjp(Coefficients.joined, self._replace(before=None))
        (found,) = split(columns)
        return found._replace(before=None if self.before is None else jnp.zeros_like(self.before))


def fault(streams: int, width: int, dtype: Any, target: str | None) -> str | None:
    """Why there is no kernel for so many streams of that width and dtype, and what to do; None if there is one.

    Args:
        target: the platform, or None while it is not known, for what no platform takes.
    """
    xla = "or take implementation 'xla'"
    if streams > MOST_STREAMS:
        return f"the kernels of streams take at most {MOST_STREAMS} streams, got {streams}; take fewer, {xla}"
    if width % LANES:
        return f"the kernels of streams need a width that {LANES} divides, got {width}; take such a width, {xla}"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the kernels of streams carry float32 or bfloat16, not {jnp.dtype(dtype)}; take such a policy, {xla}"
    # The most that a kernel has at once: at a boundary, or at a write of another array to every stream.
    stream, row = (width, dtype), (width, jnp.float32)
    gain_and_bias = [(1, width)] * 4  # and their cotangents
    if not (
        tile_of([stream] * (3 * streams) + [row] * 3, gain_and_bias, target)
        and tile_of([stream] * streams + [row] * (2 * streams), target=target)
    ):
        return f"{streams} streams of {width} channels are too wide for the kernels of streams; take fewer, {xla}"
    return None


def read(
    state: Streams | Pending,
    pre_N: Float[Array, "*B N"],
    res_NN: Float[Array, "*B N N"] | None,
    *,
    norm: Normalised = AS_IT_IS,
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
        h, ys, before, post = state.mixed.h, parts(state.y), state.mixed.res_NN, state.post_N
    else:
        h, ys, before, post = state, (), None, None
    if reason := fault(len(h), h.parts[0].shape[-1], h.dtype, target_backend()):
        raise ConfigError(reason)
    coefficients = Coefficients(before, post, pre_N, res_NN)
    params = matrices(norm.params)
    found: Any = _read(norm.of, norm.dtype, batch_sharding, h, ys, coefficients, params)
    u_BTD, h = found
    return u_BTD, Mixed(h, res_NN, batch_sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _read(norm, dtype, batch_sharding, h, ys, coefficients, params):
    """u, and the streams after the write of ``ys``, in the place of those that the read's matrix mixes."""
    N, D = len(h), h.parts[0].shape[-1]
    needed = coefficients._replace(res=None)

    def body(columns, params, rows, _):
        weights = needed.columns(columns, N)
        after = written(mix(weights.before, rows[:N]), rows[N:], weights.post)
        return [norm(dot(weights.pre, after), *params), *(after if ys else [])], [], []

    made = [(D, dtype), *[(D, h.dtype)] * (N if ys else 0)]
    (u_BTD, *after), *_ = over_tokens(body, needed.joined(), params, (*h.parts, *ys), (), made, batch_sharding)
    return u_BTD, Streams(tuple(after)) if ys else h


def _read_forward(norm, dtype, batch_sharding, h, ys, coefficients, params):
    found: Any = _read(norm, dtype, batch_sharding, h, ys, coefficients, params)
    return found, (found[1], ys, coefficients, params)


def _read_backward(norm, dtype, batch_sharding, saved, cotangents):
    (after, ys, coefficients, params), (du_BTD, dm) = saved, cotangents
    N, D, needed = len(after), du_BTD.shape[-1], coefficients._replace(before=None)

    def site(after, weights, params):
        return norm(dot(weights.pre, after), *params), mix(weights.res, after)

    def body(columns, params, rows, cotangents):
        weights, after = needed.columns(columns, N), rows[:N]
        _, pull = jax.vjp(site, after, weights._replace(post=None), params)
        dafter, dweights, dparams = pull((cotangents[0], cotangents[1:]))
        dys, dpost = _of_write(rows[N:], weights.post, dafter)
        return [*dafter, *dys], jax.tree.leaves(dweights._replace(post=dpost)), dparams

    arrays, cotangents = (*after.parts, *ys), (du_BTD, *dm.parts)
    made = [(D, x.dtype) for x in arrays]
    made, dweights, dparams = over_tokens(body, needed.joined(), params, arrays, cotangents, made, batch_sharding)
    return Streams(made[:N]), made[N:], coefficients.cotangents(dweights), dparams


_read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _write(project, batch_sharding, h, ys, coefficients, params):
    """The streams after the write, and what ``project`` makes of them."""
    N, D = len(h), h.parts[0].shape[-1]

    def body(columns, params, rows, _):
        weights = coefficients.columns(columns, N)
        after = written(mix(weights.before, rows[:N]), rows[N:], weights.post)
        return [*after, *project(after, *params)], [], []

    arrays, one_token = (*h.parts, *ys), [jax.ShapeDtypeStruct((1, D), jnp.float32)] * N
    made = [(D, h.dtype)] * N + [(x.shape[-1], x.dtype) for x in jax.eval_shape(project, one_token, *params)]
    made, *_ = over_tokens(body, coefficients.joined(), params, arrays, (), made, batch_sharding)
    return Streams(made[:N]), made[N:]


def _write_forward(project, batch_sharding, h, ys, coefficients, params):
    found: Any = _write(project, batch_sharding, h, ys, coefficients, params)
    # Without a projection the derivative needs no streams.
    return found, (found[0].parts if params else (), ys, coefficients, params)


def _write_backward(project, batch_sharding, saved, cotangents):
    (after, ys, coefficients, params), (dafter, dprojected) = saved, cotangents
    N, D, needed = len(dafter), ys[0].shape[-1], coefficients._replace(before=None)

    def body(columns, params, rows, cotangents):
        dafter, dparams = cotangents[:N], []
        if after:
            _, pull = jax.vjp(lambda rows, params: project(rows, *params), rows[:N], params)
            more, dparams = pull(cotangents[N:])
            dafter = [x + dx for x, dx in zip(dafter, more, strict=True)]
        dys, dpost = _of_write(rows[len(after) :], needed.columns(columns, N).post, dafter)
        return [*(dafter if after else []), *dys], dpost, dparams

    arrays, cotangents = (*after, *ys), (*dafter.parts, *dprojected)
    made = [(D, x.dtype) for x in arrays]
    made, dpost, dparams = over_tokens(body, needed.joined(), params, arrays, cotangents, made, batch_sharding)
    dmixed, dys = (Streams(made[:N]), made[N:]) if after else (dafter, made)
    return dmixed, dys, coefficients.cotangents(dpost), dparams


_write.defvjp(_write_forward, _write_backward)


def _of_write(ys, post, dafter):
    """Cotangents of what was written and of its weights."""
    if not ys:
        return [], post
    _, pull = jax.vjp(lambda ys, post: written(dafter, ys, post), ys, post)  # whatever the streams were
    return pull(dafter)


def parts(y: jax.Array | Streams) -> tuple[jax.Array, ...]:
    """What a site writes: one array for all streams, or one for each."""
    return y.parts if isinstance(y, Streams) else (y,)


def matrices(params: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Parameters of a norm as kernels take them."""
    return tuple(jnp.atleast_2d(x.astype(jnp.float32)) for x in params)
