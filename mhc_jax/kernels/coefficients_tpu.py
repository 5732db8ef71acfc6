"""All that lies between two branches as one kernel of TPUs, where coefficients come from the streams of the token.

A tile is passed over twice. The first time its streams are written and projected; then, with tokens in lanes, gates and
Sinkhorn's iterations make the coefficients of all its tokens; the second time the streams, still in the core's memory,
are read. Backward the first pass finds the cotangents of the coefficients, and the second those of all else.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mhc_jax.backend import target_kind
from mhc_jax.kernels import tiles
from mhc_jax.kernels.gates import Gates, Params, Site
from mhc_jax.kernels.rows import dot, matrix, mix, written
from mhc_jax.kernels.sinkhorn import iterated, pulled
from mhc_jax.kernels.tiles import LANES, SUBLANES, Group, Tiles


def tile_of(h: Sequence[Any], ys: Sequence[Any], u: Any, params: Params, gates: Gates) -> int:
    """Tokens of a tile of the backward kernel, which has most; 0 if none fits."""
    N, K = gates.streams, len(params.phi)
    shapes = [(x.shape[-1], x.dtype) for x in (*h, *h, *h, *ys, *ys, u)]
    shapes += [(numbers, jnp.float32) for numbers in (N, K + 1, gates.count, gates.count, N)]
    return tiles.size(
        shapes,
        [x.shape for x in jax.tree.leaves((params, params))],
        most=tiles.TILES[0],
        memory=tiles.most_memory(target_kind()),
        scratch=4
        * (h[0].shape[-1] + 7 * LANES),  # the scratch of `backward`, and copies of numbers whose tokens lie in lanes
        # The inputs of all iterations but the first; a register holds one entry of a matrix.
        kept=4 * SUBLANES * LANES * N**2 * max(1, gates.iters - 1),
    )


def forward(
    site: Site, h: Sequence[jax.Array], ys: Sequence[jax.Array], before: Sequence[jax.Array], params: Params
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """The streams after the write of ``ys``, what is read of them, their sums and the coefficients (B, T, C).

    Sums (B, T, K + 1) are the products with phi and the sum of all squares.

    Args:
        h: streams before their mixing, or, if nothing is written, those to read.
        ys: what is written, one array for all streams, or one for each.
        before: if something is written, the matrix and the writing weights for it, side by side (B, T, N * N + N).
    """
    D, N, K = h[0].shape[2], site.gates.streams, len(params.phi)
    over = _tiles(site, h, ys, params)
    made = [*[(D, x.dtype) for x in h if ys], (D, site.dtype), (K + 1, jnp.float32), (site.gates.count, jnp.float32)]

    def kernel(params, inputs, outputs, _):
        *after, u, sums, coefficients = outputs

        def write(group: Group):
            rows = _after(N, [group.rows(ref, repeat=True) for ref in inputs])
            if ys:
                for ref, x in zip(after, rows, strict=True):
                    ref[group.at, :] = x.astype(ref.dtype)
            sums[group.at, K:] = jnp.sum(sum(x * x for x in rows), axis=1, keepdims=True)

        def read(group: Group):
            rows = [group.rows(ref, repeat=True) for ref in after or inputs]
            own = tiles.columns(group.rows(coefficients, repeat=True))
            norm = [ref[...] for ref in params.norm]
            u[group.at, :] = site.norm(dot(own[:N], rows), *norm).astype(u.dtype)

        over.each_group(write)
        sums[:, :K] = sum(_product(phi_KD, x[...], 1, 1) for x, phi_KD in _by_stream(params.phi, after or inputs)).T
        gated = site.gates.of(_by_number(site.logits(sums[...].T, params.scale[...], params.bias[...])))
        matrix = _square(gated, N)
        if site.gates.iters:
            matrix = iterated(matrix, site.gates.iters, site.gates.half_steps)
        coefficients[...] = _in_lanes([*gated[: -N * N], *_entries(matrix)]).T
        over.each_group(read)

    flops = 2 * over.batch * over.tokens * params.phi.size
    (*after, u, sums, coefficients), _ = over.call(kernel, params, [*before, *h, *ys], made, (), flops=flops)
    return after or list(h), u, sums, coefficients


def backward(
    site: Site,
    h: Sequence[jax.Array],
    ys: Sequence[jax.Array],
    post: Sequence[jax.Array],
    params: Params,
    sums: jax.Array,
    coefficients: jax.Array,
    cotangents: tuple[jax.Array, Sequence[jax.Array], jax.Array],
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array], Params]:
    """Cotangents of the streams before the write of ``ys``, once mixed, of ``ys``, of ``post`` and of the parameters.

    Args:
        h: the streams that are read.
        post: if something is written, its weights (B, T, N).
        cotangents: of what is read, of the mixed streams, and of the coefficients (B, T, C).
    """
    D, N, K, C = h[0].shape[2], site.gates.streams, len(params.phi), site.gates.count
    over = _tiles(site, h, ys, params)
    du, dm, dcoefficients = cotangents
    given, others = [*h, *post, *ys, sums, coefficients, dcoefficients, du, *dm], N + len(post) + len(ys)
    made = [*[(D, x.dtype) for x in (*h, *ys)], *[(N, jnp.float32)] * bool(ys)]

    def kernel(params, inputs, outputs, dparams, found, dunnormed, iterations):
        streams, written_ = inputs[:N], inputs[N:others]
        sums, coefficients, dcoefficients, dread, *dmixed = inputs[others:]

        def read(rows, own):
            return dot(own[:N], rows), mix(matrix(own[-N * N :], N), rows)

        def known(group: Group):
            rows = [group.rows(ref, repeat=True) for ref in streams]
            return rows, tiles.columns(group.rows(coefficients, repeat=True)), [group.rows(ref) for ref in dmixed]

        def of_coefficients(group: Group):
            rows, own, dm = known(group)
            norm = [ref[...] for ref in params.norm]
            _, pull_norm = jax.vjp(site.norm, dot(own[:N], rows), *norm)
            du, *dnorm = pull_norm(group.rows(dread))
            dunnormed[group.at, :] = du
            for ref, x in zip(dparams.norm, dnorm, strict=True):
                ref[...] += x
            _, pull = jax.vjp(lambda own: read(rows, own), own)
            found[group.at, :C] = group.rows(dcoefficients) + tiles.side_by_side(pull((du, dm))[0])

        def of_all_else(group: Group):
            rows, own, dm = known(group)
            _, pull = jax.vjp(lambda rows: read(rows, own), rows)
            (drows,) = pull((dunnormed[group.at, :], dm))
            dsums = group.rows(found)[:, : K + 1]
            for i, (_, phi_KD) in enumerate(_by_stream(params.phi, streams)):
                drows[i] += 2 * dsums[:, K:] * rows[i] + _product(dsums[:, :K].astype(phi_KD.dtype), phi_KD, 1, 0)
            found_of_write = []
            if ys:
                post, *given = (group.rows(ref, repeat=True) for ref in written_)
                _, pull = jax.vjp(lambda ys, post: written(rows, ys, post), given, tiles.columns(post))
                dys, dpost = pull(drows)
                found_of_write = [*dys, tiles.side_by_side(dpost)]
            for ref, x in zip(outputs, [*drows, *found_of_write], strict=True):
                ref[group.at, :] = x.astype(ref.dtype)

        over.each_group(of_coefficients)
        # Behind the last token cotangents are zero, and sums may be anything that is finite.
        known_sums = jnp.where(over.are_tokens(), sums[...].T, 1.0)
        logits, pull_logits = jax.vjp(site.logits, known_sums, params.scale[...], params.bias[...])
        gated, pull_gates = jax.vjp(site.gates.of, _by_number(logits))
        dgated = _by_number(found[:, :C].T)
        dmatrix = _square(dgated, N)
        if site.gates.iters:
            dmatrix = pulled(_square(gated, N), dmatrix, site.gates.iters, site.gates.half_steps, iterations)
        (dlogits,) = pull_gates([*dgated[: -N * N], *_entries(dmatrix)])
        dsums, dscale, dbias = pull_logits(_in_lanes(dlogits))
        dparams.scale[...] += dscale
        dparams.bias[...] += dbias
        found[:, : K + 1] = dsums.T
        for (x, _), dphi in zip(_by_stream(params.phi, streams), _columns_of(dparams.phi, N), strict=True):
            dphi[...] += _product(dsums[:K].astype(x.dtype), over.tokens_of(x), 1, 0)
        over.each_group(of_all_else)

    iterations = max(1, site.gates.iters - 1), N, N, *_rows_and_lanes(over.tile)
    scratch = [pltpu.VMEM(shape, jnp.float32) for shape in ((over.tile, max(C, K + 1)), (over.tile, D), iterations)]
    flops = 6 * over.batch * over.tokens * params.phi.size
    found, dparams = over.call(kernel, params, given, made, params, flops=flops, scratch=scratch)
    dpost = [found.pop()] if ys else []
    return found[:N], found[N:], dpost, dparams


def _tiles(site, h, ys, params):
    B, T, _ = h[0].shape
    tile = tile_of(h, ys, jax.ShapeDtypeStruct(h[0].shape, site.dtype), params, site.gates)
    return Tiles(B, T, tile, min(tile, tiles.MATRIX_GROUP), tiles.most_memory(target_kind()))


def _parts(streams, rows):
    """Mixed streams, what is written to them, and with which weights, of streams alone or all that makes them."""
    if len(rows) == streams:
        return rows, [], []
    before, h, ys = tiles.columns(rows[0]), rows[1 : streams + 1], rows[streams + 1 :]
    return mix(matrix(before[: streams**2], streams), h), ys, before[streams**2 :]


def _after(streams, rows):
    return written(*_parts(streams, rows))


def _rows_and_lanes(tile):
    return max(1, tile // LANES), min(tile, LANES)


def _by_number(x_KC):
    """An array of all tokens of a tile for each number, which fills a register better than one of its rows."""
    K, tile = x_KC.shape
    return list(x_KC.reshape(K, *_rows_and_lanes(tile)))


def _in_lanes(numbers):
    return jnp.stack(numbers).reshape(len(numbers), -1)


def _by_stream(phi, refs):
    """Every stream's reference with its columns of phi."""
    return [(ref, columns[...]) for ref, columns in zip(refs, _columns_of(phi, len(refs)), strict=True)]


def _columns_of(phi, streams):
    D = phi.shape[1] // streams
    return [phi.at[:, i * D : (i + 1) * D] for i in range(streams)]


def _product(x, y, of_x, of_y):
    """The product that sums over these axes, in float32."""
    return jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())), preferred_element_type=jnp.float32)


def _square(numbers, streams):
    """(N, N, ...) of the entries behind all other numbers."""
    entries = jnp.stack(numbers[-(streams**2) :])
    return entries.reshape(streams, streams, *entries.shape[1:])


def _entries(matrix):
    return list(matrix.reshape(-1, *matrix.shape[2:]))
