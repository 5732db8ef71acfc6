"""All that lies between two branches as one kernel of GPUs, where coefficients come from the streams of the token.

Forward a block writes and squares row by row, projects, finds coefficients, and reads row by row. Backward it finds the
cotangents of coefficients, then those of the products with phi, and with these, piece by piece of the channels, those
of streams. What a pass takes from an earlier one is in shared memory, or still in the cache of all processors, for
which a block has few tokens: from the device's memory streams come once.

Off a GPU the same functions of a token run on all tokens at once.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mhc_jax.kernels.blocks_gpu import ALIGNED, LEAST_STAGES, MOST_STAGES, PRODUCT, SHARED, TILE, Blocks, ByThread
from mhc_jax.kernels.coefficients_gpu import CHANNELS
from mhc_jax.kernels.gates import Gates, Params, Site
from mhc_jax.kernels.gates_gpu import cotangents_of_all, cotangents_of_token, numbers_of_token
from mhc_jax.kernels.mosaic_gpu import THREADS, has_threads, number, shown_to_copies
from mhc_jax.kernels.rows import dot, matrix, mix, written
from mhc_jax.kernels.sinkhorn_gpu import lowered
from mhc_jax.kernels.tile_gpu import FACTOR
from mhc_jax.kernels.tile_programs import tile
from mhc_jax.kernels.tokens_gpu import fits, laid, load, store

# Tokens of a block, forward and backward, where twice as many streams pass.
TOKENS, TOKENS_BACK = 16, 8
# Channels of a row that are worth a pass.
ENOUGH = 256


class _Given(NamedTuple):
    """Arrays by token (tokens, C), phi, and scale and bias (K,); those behind backward only.

    Attributes:
        weights: if something is written, the weights for it, and forward before them the matrix.
        norm: rows (1, D).
        kept, own: what :func:`forward` has kept, and its coefficients.
        du, dm, down: cotangents of what is read, of the mixed streams, and of the coefficients.
    """

    h: list[Any]
    ys: list[Any]
    weights: list[Any]
    phi: Any
    scale: Any
    bias: Any
    norm: list[Any]
    kept: Any = None
    own: Any = None
    du: Any = None
    dm: Any = None
    down: Any = None

    @classmethod
    def of(cls, h, ys, weights, params, **others):
        numbers, norm = (params.scale[:, 0], params.bias[:, 0]), list(params.norm)
        others = {name: jax.tree.map(_flat, x) for name, x in others.items()}
        return cls(_flat_all(h), _flat_all(ys), _flat_all(weights), params.phi, *numbers, norm, **others)


def tile_of(h: Sequence[Any], ys: Sequence[Any], u: Any, params: Params, gates: Gates) -> int:
    """Channels of a stream whose products with phi the backward kernel has at once; 0 if there is no kernel.

    Tensor cores multiply streams in bfloat16. Registers hold a row of all streams and of their cotangents, and shared
    memory what one pass leaves for the next.
    """
    (B, T, D), norm = h[0].shape, params.norm
    rows = [(D, x.dtype) for x in (*h, *h, *ys, *norm, *norm, u, u)]
    if h[0].dtype != FACTOR or not fits(rows) or any(len(x) > 1 for x in norm):
        return 0
    return _piece(Blocks(B * T, TOKENS_BACK, len(h), D, len(params.phi)), gates)[0]


def forward(
    site: Site, h: Sequence[jax.Array], ys: Sequence[jax.Array], before: Sequence[jax.Array], params: Params
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """As :func:`mhc_jax.kernels.coefficients_tpu.forward`, but for the sums.

    In their place are the weights (B, T, K + 1), see :func:`mhc_jax.ops.hyper.flat_weights`, and behind them the factor
    ``1 / sqrt(mean(x^2) + eps)`` in them.
    """
    (B, T, D), N = h[0].shape, site.gates.streams
    blocks = Blocks(B * T, TOKENS, N, D, len(params.phi))

    def write(before, rows):
        after = written(mix(matrix(before, N) if before else None, rows[:N]), rows[N:], before[N * N :])
        return [*after, sum(jnp.sum(x * x, axis=1, keepdims=True) for x in after)]

    def of_token(scale, bias, sums, squares):
        weights, r, found = numbers_of_token(site.gates, site.channels, site.eps, scale, bias, sums, squares)
        return [*weights, r], found

    def read(pre, rows, norm):
        return [site.norm(dot(pre, rows), *norm)]

    run = _forward_of_blocks if has_threads() else _forward_of_all
    made = [*[(D, x.dtype) for x in h if ys], (D, site.dtype)]
    found = run(blocks, site.gates, (write, of_token, read), made, _Given.of(h, ys, before, params))
    *after, u, kept, coefficients = (x.reshape(B, T, -1) for x in found)
    return after or list(h), u, kept, coefficients


def backward(
    site: Site,
    h: Sequence[jax.Array],
    ys: Sequence[jax.Array],
    post: Sequence[jax.Array],
    params: Params,
    kept: jax.Array,
    coefficients: jax.Array,
    cotangents: tuple[jax.Array, Sequence[jax.Array], jax.Array],
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array], Params]:
    """As :func:`mhc_jax.kernels.coefficients_tpu.backward`, of what :func:`forward` has kept.

    Sums over tokens are XLA's, in a fixed order, and so is phi's cotangent, of which no block could hold its share.
    """
    (B, T, D), N, K = h[0].shape, site.gates.streams, len(params.phi)
    blocks = Blocks(B * T, TOKENS_BACK, N, D, K)
    du, dm, dcoefficients = cotangents

    def read(rows, own):
        return dot(own[:N], rows), mix(matrix(own[2 * N :], N), rows)

    def of_coefficients(own, rows, dm, du, norm):
        """The cotangent of what is read before its norm, those of the norm's parameters, and those of coefficients."""
        _, pull_norm = jax.vjp(site.norm, dot(own[:N], rows), *norm)
        du, *dnorm = pull_norm(du)
        _, pull = jax.vjp(lambda own: read(rows, own), own)
        return [du, *dnorm, *pull((du, dm))[0]]

    def of_all_else(own, post, of_x, rows, dm, du, products, ys):
        """Cotangents of streams, of what was written to them, and of its weights, the last of these channels alone."""
        _, pull = jax.vjp(lambda rows: read(rows, own), rows)
        (drows,) = pull((du, dm))
        drows = [dx + product - of_x * x for dx, product, x in zip(drows, products, rows, strict=True)]
        _, pull = jax.vjp(lambda ys, post: written(rows, ys, post), ys, post)
        return [*drows, *jax.tree.leaves(pull(drows) if ys else ())]

    of_token = functools.partial(cotangents_of_token, site.gates, site.channels)
    run = _backward_of_blocks if has_threads() else _backward_of_all
    given = _Given.of(h, ys, post, params, kept=kept, own=coefficients, du=du, dm=list(dm), down=dcoefficients)
    found, dlogits, dpost, dnorm = run(blocks, site.gates, (of_coefficients, of_token, of_all_else), given)
    weights, r = given.kept[:, :K], given.kept[:, K:]
    factors = (r * given.scale * dlogits).astype(FACTOR)
    dphi = [jnp.einsum("tk,td->kd", factors, x, preferred_element_type=jnp.float32) for x in given.h]
    dscale, dbias = jnp.sum(dlogits * weights, axis=0), jnp.sum(dlogits, axis=0)
    dparams = Params(jnp.concatenate(dphi, axis=1), dscale[:, None], dbias[:, None], tuple(dnorm))
    dh, dys, dpost = ([x.reshape(B, T, -1) for x in xs] for xs in (found[:N], found[N:], dpost))
    return dh, dys, dpost, dparams


def _forward_of_all(blocks, gates, phases, made, given):
    """:func:`_forward_of_blocks` without a kernel."""
    write, of_token, read = phases
    *rows, squares = write(_columns(given.weights), _wide([*given.h, *given.ys]))
    after = [x.astype(dtype) for x, (_, dtype) in zip(rows, made, strict=False)] if given.ys else []
    rows = _wide(after or given.h)
    sums = jnp.concatenate(rows, axis=1) @ given.phi.astype(FACTOR).astype(jnp.float32).T
    kept, found = (jnp.stack(x, axis=1) for x in of_token(given.scale, given.bias, list(sums.T), squares[:, 0]))
    [u] = read(_columns([found])[: blocks.streams], rows, given.norm)
    return [*after, u.astype(made[-1][1]), kept, found]


def _backward_of_all(blocks, gates, phases, given):
    """:func:`_backward_of_blocks`, of whose kernel only the part of a thread is left, interpreted."""
    of_coefficients, of_token, of_all_else = phases
    own, rows, dm, (du,) = _columns([given.own]), _wide(given.h), _wide(given.dm), _wide([given.du])
    du, *found = of_coefficients(own, rows, dm, du, given.norm)
    dnorm, down = found[: len(given.norm)], jnp.concatenate(found[len(given.norm) :], axis=1)
    numbers = given.scale, given.bias, given.kept, given.down + down
    dlogits, factors, of_x = cotangents_of_all(of_token, gates, *numbers)
    products = jnp.matmul(*(x.astype(FACTOR).astype(jnp.float32) for x in (factors, given.phi)))
    products = jnp.split(products, blocks.streams, axis=1)
    found = of_all_else(own, _columns(given.weights), of_x[:, None], rows, dm, du, products, _wide(given.ys))
    made = [x.astype(like.dtype) for x, like in zip(found, [*given.h, *given.ys], strict=False)]
    return made, dlogits, [jnp.concatenate(found[len(made) :], axis=1)] if given.ys else [], dnorm


def _forward_of_blocks(blocks, gates, phases, made, given):
    write, of_token, read = phases
    N, K, rows = blocks.streams, blocks.numbers, blocks.rows

    def kernel(given, *made, places, arrived, sums, squares):
        *after, u, kept, found = made
        streams = after or given.h

        def of_rows(token, t, _):
            before = [_number(ref, token, k) for ref in given.weights for k in range(N * N + N)]
            *rows, square = lowered(write, before, [load(ref, token) for ref in (*given.h, *given.ys)])
            for ref, x in zip(after, rows, strict=False):
                store(ref, token, x)
            squares[t] = number(square)

        blocks.each(of_rows)
        shown_to_copies()
        plgpu.commit_smem()

        def project(products):
            def one(stream, channel, x, phi):
                plgpu.wgmma(products, phi, x.T)
                plgpu.wgmma_wait(0)
                plgpu.commit_smem()

            blocks.over_chunks(blocks.width, streams, given.phi, places, arrived, one)
            return products[...]

        sums[...] = pl.run_scoped(project, plgpu.ACC((rows, blocks.most), jnp.float32))
        plgpu.commit_smem()
        products = [blocks.by_thread(sums, k, blocks.all) for k in range(K)]
        numbers = of_token(given.scale, given.bias, products, blocks.by_thread(squares, blocks.all))
        for ref, entries in zip((kept, found), numbers, strict=True):
            for k, x in enumerate(entries):
                ref[blocks.mine, k] = x
        plgpu.commit_smem()
        norm = [load(ref, 0) for ref in given.norm]

        def of_read(token, t, _):
            pre = [_number(found, token, k) for k in range(N)]
            [x] = lowered(read, pre, [load(ref, token) for ref in streams], norm)
            store(u, token, x)

        blocks.each(of_read)

    of_chunk, of_numbers = 2 * CHANNELS * (blocks.most + rows), _bytes((rows, blocks.most), (blocks.most,))
    stages = min(MOST_STAGES, (SHARED // blocks.at_once(N) - of_numbers) // of_chunk)
    scratch = {
        "places": [tile((stages, count, CHANNELS), FACTOR) for count in (blocks.most, rows)],
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        "sums": plgpu.SMEM((rows, blocks.most), jnp.float32),
        "squares": plgpu.SMEM((blocks.most,), jnp.float32),
    }
    makes = [blocks.made(*x) for x in (*made, (K + 1, jnp.float32), (gates.count, jnp.float32))]
    h = given.h if given.ys else [blocks.whole(x) for x in given.h]
    found = blocks.run(kernel, makes, scratch, "boundary")(given._replace(h=h, phi=blocks.phi(given.phi)))
    return [x[: blocks.tokens] for x in found]


def _backward_of_blocks(blocks, gates, phases, given):
    of_coefficients, of_token, of_all_else = phases
    N, K, rows, float32 = blocks.streams, blocks.numbers, blocks.rows, jnp.float32
    piece, stages = _piece(blocks, gates)
    pieces, sizes = blocks.width // piece, _numbers(blocks, gates, piece)

    def kernel(given, made, dlogits, dpost, dnorm, *, places, arrived, factor, memory):
        norm = [load(ref, 0) for ref in given.norm]
        memory["factors"][...] = jnp.zeros(sizes["factors"], float32)

        def coefficients(token):
            return [_number(given.own, token, k) for k in range(gates.count)]

        def first(token, t, sums):
            h, dm = ([load(ref, token) for ref in refs] for refs in (given.h, given.dm))
            du, *found = lowered(of_coefficients, coefficients(token), h, dm, load(given.du, token), norm)
            store(memory["du"], t, du)
            for k, x in enumerate(found[len(norm) :]):
                memory["down"][t, k] = number(x) + given.down[token, k]
            return [x + y for x, y in zip(sums, found, strict=False)]

        sums = blocks.each(first, [laid(jnp.zeros(x.shape, float32)) for x in norm])
        for ref, x in zip(dnorm, sums, strict=True):
            store(ref, lax.axis_index("block"), x)
        plgpu.commit_smem()
        taken = [
            lambda: [blocks.by_thread(given.kept, blocks.mine, k) for k in range(K + 1)],
            lambda: [blocks.by_thread(memory["down"], blocks.all, k) for k in range(gates.count)],
        ]
        inputs = ByThread(blocks, memory["inputs"])
        of_logits, of_phi, memory["of_x"][...] = of_token(given.scale, given.bias, *taken, inputs)
        for k, x in enumerate(of_logits):
            dlogits[blocks.mine, k] = x
        for k, x in enumerate(of_phi):
            memory["factors"][blocks.all, k] = x
        behind = rows - blocks.given_rows
        for slot in range(stages if behind else 0):  # what zeros are multiplied with must be finite
            zeros = plgpu.layout_cast(jnp.zeros((behind, CHANNELS), FACTOR), TILE)
            places[0][slot, pl.ds(blocks.given_rows, behind), :] = zeros
        plgpu.commit_smem()
        factors = plgpu.load(memory["factors"], (blocks.all, pl.ds(0, rows)), layout=TILE, optimized=False)
        factor[...] = factors.astype(FACTOR)
        plgpu.commit_smem()

        def multiply(phi, product):
            plgpu.wgmma(product, phi.T, factor.T)
            return product[...]

        def one(stream, channel, phi):
            product = pl.run_scoped(functools.partial(multiply, phi), plgpu.ACC((CHANNELS, blocks.most), float32))
            place = memory["products"].at[stream, :, pl.ds(channel, CHANNELS)]
            place.T[...] = plgpu.layout_cast(product, PRODUCT)
            plgpu.commit_smem()

        def then(number_of_piece):
            channels = pl.ds(number_of_piece * piece, piece)

            def second(token, t, _):
                h, dm, ys = ([load(ref, token, channels) for ref in refs] for refs in (given.h, given.dm, given.ys))
                products = [load(memory["products"].at[s], t) for s in range(N)]
                rows = h, dm, load(memory["du"], t, channels), products, ys
                post = [_number(ref, token, k) for ref in given.weights for k in range(N)]
                found = lowered(of_all_else, coefficients(token), post, _number(memory["of_x"], t), *rows)
                for ref, x in zip(made, found, strict=False):
                    store(ref, token, x, channels)
                for k, x in enumerate(found[len(made) :]):
                    dpost[0][token, number_of_piece * N + k] = number(x)

            blocks.each(second)
            plgpu.commit_smem()

        blocks.over_chunks(piece, [], given.phi, places, arrived, one, then)

    makes = (
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*given.h, *given.ys)],
        blocks.made(K, float32),
        [blocks.made(pieces * N, float32)] * bool(given.ys),
        [jax.ShapeDtypeStruct((blocks.count, x.size), float32) for x in given.norm],
    )
    scratch = {
        "places": [tile((stages, rows, CHANNELS), FACTOR)],
        "arrived": plgpu.Barrier(num_arrivals=1, num_barriers=stages),
        "factor": tile((blocks.most, rows), FACTOR),
        "memory": {name: plgpu.SMEM(size, float32) for name, size in sizes.items()},
    }
    run = blocks.run(kernel, makes, scratch, "boundary_backward")
    given = given._replace(phi=blocks.phi(given.phi), kept=blocks.whole(given.kept))
    made, dlogits, dpost, dnorm = run(given)
    dpost = [jnp.sum(x[: blocks.tokens].reshape(blocks.tokens, pieces, N), axis=1) for x in dpost]
    return made, dlogits[: blocks.tokens], dpost, [jnp.sum(x, axis=0, keepdims=True) for x in dnorm]


def _numbers(blocks, gates, piece):
    """Shapes of float32 numbers in shared memory."""
    most = blocks.most
    return {
        "du": (most, blocks.width),
        "products": (blocks.streams, most, piece),
        "down": (most, gates.count),
        "factors": (most, blocks.rows),
        "of_x": (most,),
        "inputs": (max(1, gates.iters - 1), gates.streams**2, most),
    }


def _piece(blocks, gates):
    """Channels of each stream for whose products with phi there is shared memory, and chunks on their way.

    The most of them, and fewer blocks at once before there are few. Without channels there is too little memory.
    """
    of_factors, of_chunk = 2 * blocks.rows * blocks.most, 2 * blocks.rows * CHANNELS
    for at_once in range(blocks.at_once(2 * blocks.streams + 2), 0, -1):
        for piece in range(blocks.width, 0, -THREADS):
            numbers = of_factors + _bytes(*_numbers(blocks, gates, piece).values())
            stages = (SHARED // at_once - numbers) // of_chunk
            is_enough = at_once == 1 or piece >= min(ENOUGH, blocks.width)
            if blocks.width % piece == 0 and stages >= LEAST_STAGES and is_enough:
                return piece, min(MOST_STAGES, stages)
    return 0, 0


def _bytes(*shapes):
    """Of float32 numbers in shared memory."""
    return sum(ALIGNED * pl.cdiv(4 * math.prod(shape), ALIGNED) for shape in shapes)


def _number(ref, *where):
    return jnp.full((1, 1), ref[where])


def _columns(arrays):
    """(tokens, 1) of each of a token's numbers, of an array of them if there is one."""
    return [x[:, None] for x in jnp.concatenate(arrays, axis=1).T] if arrays else []


def _wide(arrays):
    return [x.astype(jnp.float32) for x in arrays]


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _flat_all(arrays):
    return list(map(_flat, arrays))
