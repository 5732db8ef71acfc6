"""Coefficients of tokens from all their streams, as a Pallas Mosaic kernel of GPUs, forward and backward.

A block is one warpgroup with :data:`TOKENS` tokens. It streams their channels and phi's through shared memory to the
tensor cores, several chunks ahead, and so reads the streams once. In gates and Sinkhorn's iterations a thread holds the
numbers of one token, and half of the threads hold none: larger blocks would leave processors idle.

Tensor cores multiply numbers of 16 bits: phi, and the cotangents that it multiplies, are two of them each. Off a GPU
the same functions of a token run on all tokens at once.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mhc_jax.kernels.gates import Gates
from mhc_jax.kernels.gates_gpu import cotangents_of_all, cotangents_of_token, numbers_of_token
from mhc_jax.kernels.mosaic_gpu import THREADS, by_lanes, has_threads
from mhc_jax.kernels.tile_gpu import FACTOR
from mhc_jax.kernels.tile_programs import tile

# Tokens of a block, and channels of a chunk: a row of the pieces in which tiles lie in shared memory.
TOKENS, CHANNELS = 64, 64
# Bytes of shared memory with which two blocks share a processor, and that one may have, less what alignment takes.
SHARED, MOST_SHARED = 110 * 2**10, 223 * 2**10
# How a number for each row of a tile lies in registers.
ROW = plgpu.Layout.WGMMA.reduce(1)


class _Plan(NamedTuple):
    """Gates and sizes.

    Attributes:
        numbers, kept: K, and numbers of a token that go from the forward to the backward kernel.
        rows: number of rows of phi's two parts, one after another, and of zeros up to what tensor cores multiply.
        width: channels of a stream.
    """

    gates: Gates
    tokens: int
    blocks: int
    numbers: int
    kept: int
    rows: int
    width: int

    @classmethod
    def of(cls, h: Sequence[jax.Array], phi_KM: jax.Array, gates: Gates) -> "_Plan":
        (B, T, D), K = h[0].shape, len(phi_KM)
        return cls(gates, B * T, pl.cdiv(B * T, TOKENS), K, _even(K + 1), CHANNELS * pl.cdiv(2 * K, CHANNELS), D)

    def parts(self, phi_KM: jax.Array) -> jax.Array:
        return jnp.pad(jnp.concatenate(_parts(phi_KM)), ((0, self.rows - 2 * self.numbers), (0, 0)))


def forward(
    h: Sequence[jax.Array], phi_KM: jax.Array, scale_K: jax.Array, bias_K: jax.Array, gates: Gates, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Coefficients (B, T, C) of streams (B, T, D) in bfloat16: gates of ``scale * weights + bias``, in float32.

    Returns:
        What :func:`backward` takes, (B, T, R) with R even and greater than K: the weights, see
        :func:`mhc_jax.ops.hyper.flat_weights`, and behind them once or twice the factor ``1 / sqrt(mean(x^2) + eps)``
        in them; and the coefficients, those of the matrix row by row.
    """
    (B, T, _), (K, M), plan = h[0].shape, phi_KM.shape, _Plan.of(h, phi_KM, gates)

    def of_token(scale, bias, sums, squares):
        weights, r, found = numbers_of_token(gates, M, eps, scale, bias, sums, squares)
        return [*weights, *[r] * (plan.kept - K)], found

    if not plan.tokens:
        return jnp.zeros((B, T, plan.kept), jnp.float32), jnp.zeros((B, T, gates.count), jnp.float32)
    run = _forward_of_blocks if has_threads() else _forward_of_all
    kept, found = run(plan, of_token, _flat(h), plan.parts(phi_KM), scale_K, bias_K)
    return kept.reshape(B, T, -1), found.reshape(B, T, -1)


def backward(
    h: Sequence[jax.Array],
    phi_KM: jax.Array,
    scale_K: jax.Array,
    bias_K: jax.Array,
    kept_BTR: jax.Array,
    dh: Sequence[jax.Array],
    dcoefficients_BTC: jax.Array,
    gates: Gates,
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """Cotangents of :func:`forward`'s arrays: of the streams with ``dh`` added, rounded once.

    Sums over tokens are XLA's, in a fixed order.

    Args:
        kept_BTR: as :func:`forward` returns it.
        dh: cotangents of the streams from elsewhere.
    """
    (K, M), plan = phi_KM.shape, _Plan.of(h, phi_KM, gates)
    if not plan.tokens:
        return list(dh), jnp.zeros_like(phi_KM), jnp.zeros_like(scale_K), jnp.zeros_like(bias_K)

    of_token = functools.partial(cotangents_of_token, gates, M)
    kept, cotangents = _flat([kept_BTR, dcoefficients_BTC])
    run = _backward_of_blocks if has_threads() else _backward_of_all
    found, dlogits = run(plan, of_token, _flat(h), _flat(dh), plan.parts(phi_KM), scale_K, bias_K, kept, cotangents)
    factors = jnp.concatenate(_parts(kept[:, K : K + 1] * scale_K * dlogits), axis=1)
    dphi = [lax.dot_general(factors, x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32) for x in _flat(h)]
    high, low = jnp.split(jnp.concatenate(dphi, axis=1), 2)
    dscale, dbias = jnp.sum(dlogits * kept[:, :K], axis=0), jnp.sum(dlogits, axis=0)
    return [dx.reshape(x.shape) for dx, x in zip(found, h, strict=True)], high + low, dscale, dbias


def _even(count):
    """Numbers of a token for which those of a block are equally many for all threads."""
    return count + count % 2


def _flat(arrays):
    return [x.reshape(-1, x.shape[-1]) for x in arrays]


def _parts(x):
    """Two arrays of 16 bits, whose sum has 16 digits; a compiler would undo a mere conversion there and back."""
    high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(FACTOR), (x - high).astype(FACTOR)


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _forward_of_all(plan, of_token, h, phi, scale, bias):
    """:func:`_forward_of_blocks` without a kernel."""
    x, K = jnp.concatenate(h, axis=1).astype(jnp.float32), plan.numbers
    high, low, _ = jnp.split(phi.astype(jnp.float32) @ x.T, [K, 2 * K])
    return [jnp.stack(found, axis=1) for found in of_token(scale, bias, list(high + low), jnp.sum(x * x, axis=1))]


def _backward_of_all(plan, of_token, h, dh, phi, scale, bias, kept, cotangents):
    """:func:`_backward_of_blocks`, of whose kernel only ``of_token`` is left, interpreted."""
    K = plan.numbers

    dlogits, factors, of_x = cotangents_of_all(of_token, plan.gates, scale, bias, kept, cotangents)
    pairs = _parts(factors), (phi[:K], phi[K : 2 * K])
    own = jnp.matmul(*(a.astype(jnp.float32) + b.astype(jnp.float32) for a, b in pairs))
    x, dx = (jnp.concatenate(xs, axis=1).astype(jnp.float32) for xs in (h, dh))
    return jnp.split((dx + own - of_x[:, None] * x).astype(FACTOR), len(h), axis=1), dlogits


class _Staged(NamedTuple):
    """Shared memory, flat, between threads that hold numbers of a token and others."""

    ref: Any
    block: Any

    def by_token(self, count):
        """The numbers of a token one after another."""
        return self.ref.at[pl.ds(0, THREADS * count)].reshape(THREADS, count, 1)

    def by_number(self, *row):
        """The tokens' one after another for each number."""
        return self.ref.reshape(self.ref.shape[0] // THREADS, THREADS, *row)

    def take(self, ref, count):
        """Of each token, from flat memory of the device."""
        plgpu.commit_smem()  # all have read what was there
        self.ref[pl.ds(0, TOKENS * count)] = ref[pl.ds(self.block * TOKENS * count, TOKENS * count)]
        plgpu.commit_smem()
        staged = self.by_token(count)
        return [staged[:, k] for k in range(count)]

    def give(self, ref, entries):
        plgpu.commit_smem()
        count = _even(len(entries))
        staged = self.by_token(count)
        for k, x in enumerate(entries):
            staged[:, k] = x
        plgpu.commit_smem()
        ref[pl.ds(self.block * TOKENS * count, TOKENS * count)] = self.ref[pl.ds(0, TOKENS * count)]


class _Chunks(NamedTuple):
    """Chunks of channels of a block's tokens, on their way through places in shared memory.

    Attributes:
        given: arrays of streams in the device's memory, for each of the ``places`` but the last, which is phi's.
        places: (stages, tokens, channels).
    """

    plan: _Plan
    block: Any
    given: list[Any]
    phi: Any
    places: list[Any]
    arrived: Any

    def each(self, n, arrays, run):
        """``run(parts)`` with that chunk's part of each array of its stream."""
        of_stream = self.plan.width // CHANNELS
        tokens, channels = pl.ds(self.block * TOKENS, TOKENS), pl.ds(lax.rem(n, of_stream) * CHANNELS, CHANNELS)
        for s in range(self.plan.gates.streams):

            @pl.when(lax.div(n, of_stream) == s)
            def _(s=s):
                run([streams[s].at[tokens, channels] for streams in arrays])

    def fetch(self, n):
        slot = lax.rem(n, self.places[0].shape[0])

        def copy(parts, places):
            for part, place in zip(parts, places, strict=True):
                plgpu.copy_gmem_to_smem(part, place.at[slot], self.arrived.at[slot])

        @pl.when(n < self.phi.shape[1] // CHANNELS)
        def _():
            self.each(n, self.given, lambda parts: copy(parts, self.places[:-1]))
            copy([self.phi.at[:, pl.ds(n * CHANNELS, CHANNELS)]], self.places[-1:])

    def begin(self):
        for n in range(self.places[0].shape[0] - 1):
            self.fetch(jnp.int32(n))

    def over(self, use, carry):
        """``use(n, carry, *places)`` from chunk to chunk; all threads must be done with one when it returns."""
        stages = self.places[0].shape[0]

        def one(n, carry):
            slot = lax.rem(n, stages)
            plgpu.barrier_wait(self.arrived.at[slot])
            found = use(n, carry, *(place.at[slot] for place in self.places))
            self.fetch(n + stages - 1)
            return found

        return lax.fori_loop(0, self.phi.shape[1] // CHANNELS, one, carry)


def _on_blocks(plan, kernel, given, makes, name, later=()):
    """``kernel`` with places for chunks of so many given streams, and for numbers of tokens, then for ``later``."""
    shapes = [(TOKENS, CHANNELS)] * given + [(plan.rows, CHANNELS)]
    a_stage = 2 * CHANNELS * sum(rows for rows, _ in shapes)
    two, one = ((room - 4 * THREADS * (plan.rows + 1)) // a_stage for room in (SHARED, MOST_SHARED))
    stages = two if two > 2 else one
    scratch = {
        "places": [tile((stages, *shape), FACTOR) for shape in shapes],
        "arrived": plgpu.Barrier(num_arrivals=len(shapes), num_barriers=stages),
        "shared": plgpu.RefUnion(plgpu.SMEM((THREADS * (plan.rows + 1),), jnp.float32), list(later)),
    }
    run = functools.partial(plgpu.kernel, kernel, grid=(plan.blocks,), grid_names=("block",), kernel_name=name)
    return run(out_type=makes, compiler_params=by_lanes(unsafe_no_auto_barriers=True), scratch_types=scratch)


def _whole(plan, x):
    """With zeros for tokens that a block lacks: copies to shared memory are of whole tiles."""
    return jnp.pad(x, ((0, plan.blocks * TOKENS - plan.tokens), (0, 0)))


def _forward_of_blocks(plan, of_token, h, phi, scale, bias):
    K, rows = plan.numbers, plan.rows

    def kernel(h, phi, scale, bias, kept, found, *, places, arrived, shared):
        block = lax.axis_index("block")
        chunks, staged = _Chunks(plan, block, [h], phi, places, arrived), _Staged(shared[0], block)
        chunks.begin()

        def project(sums):
            def one(n, squares, x, phi):
                plgpu.wgmma(sums, phi, x.T)
                squares += jnp.sum(jnp.square(_tile(x)), axis=1)
                plgpu.wgmma_wait(0)
                plgpu.commit_smem()
                return squares

            squares = chunks.over(one, plgpu.layout_cast(jnp.zeros(TOKENS, jnp.float32), ROW))
            return sums[...], squares

        sums, squares = pl.run_scoped(project, plgpu.ACC((rows, TOKENS), jnp.float32))
        staged.by_number()[pl.ds(0, rows), pl.ds(0, TOKENS)] = sums
        staged.by_number()[rows, pl.ds(0, TOKENS)] = squares
        plgpu.commit_smem()
        entries = staged.by_number(1)
        of_kept, of_found = of_token(scale, bias, [entries[k] + entries[K + k] for k in range(K)], entries[rows])
        staged.give(kept, of_kept)
        staged.give(found, of_found)

    makes = [_float32(plan.blocks * TOKENS * count) for count in (plan.kept, _even(plan.gates.count))]
    made = _on_blocks(plan, kernel, 1, makes, "coefficients")([_whole(plan, x) for x in h], phi, scale, bias)
    kept, found = (x.reshape(plan.blocks * TOKENS, -1)[: plan.tokens] for x in made)
    return kept, found[:, : plan.gates.count]


def _backward_of_blocks(plan, of_token, h, dh, phi, scale, bias, kept, cotangents):
    K, rows = plan.numbers, plan.rows

    def kernel(h, dh, phi, scale, bias, kept, cotangents, found, dlogits, inputs, *, places, arrived, shared):
        block, (memory, factors) = lax.axis_index("block"), shared
        chunks, staged = _Chunks(plan, block, [h, dh], phi, places, arrived), _Staged(memory, block)
        chunks.begin()
        taken = [functools.partial(staged.take, *x) for x in ((kept, plan.kept), (cotangents, _even(plan.gates.count)))]
        of_logits, of_phi, of_x = of_token(scale, bias, *taken, inputs.at[block])
        staged.give(dlogits, of_logits)
        plgpu.commit_smem()
        entries = staged.by_number(1)
        for k, x in enumerate([*of_phi, *of_phi, *[jnp.zeros_like(of_x)] * (rows - 2 * K), of_x]):
            entries[k] = x
        plgpu.commit_smem()
        load = functools.partial(plgpu.load, staged.by_number(), optimized=False)
        of_x = load((rows, pl.ds(0, TOKENS)), layout=ROW)
        left = load((pl.ds(0, rows), pl.ds(0, TOKENS)), layout=plgpu.Layout.WGMMA)
        plgpu.commit_smem()  # the factors lie where this was
        for ref in factors:
            ref[...] = left.astype(FACTOR)
            left -= left.astype(FACTOR).astype(jnp.float32)
        plgpu.commit_smem()

        def multiply(phi, sums):
            for ref in factors:
                plgpu.wgmma(sums, ref.T, phi)
            return sums[...]

        def one(n, _, x, dx, phi):
            product = pl.run_scoped(functools.partial(multiply, phi), plgpu.ACC((TOKENS, CHANNELS), jnp.float32))
            own = product - lax.broadcast_in_dim(of_x, (TOKENS, CHANNELS), (0,)) * _tile(x)
            dx[...] = (_tile(dx) + own).astype(FACTOR)
            plgpu.commit_smem()
            chunks.each(n, [found], lambda parts: plgpu.copy_smem_to_gmem(dx, parts[0]))
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)  # the next chunk comes where the one before is leaving from

        chunks.over(one, None)
        plgpu.wait_smem_to_gmem(0)

    factor, numbers = tile((rows, TOKENS), FACTOR), _float32(plan.blocks * TOKENS * _even(K))
    streams = [[_whole(plan, x) for x in xs] for xs in (h, dh)]
    inputs = _float32(plan.blocks, max(1, plan.gates.iters - 1), plan.gates.streams**2, THREADS, 1)
    makes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in streams[0]], numbers, inputs
    run = _on_blocks(plan, kernel, 2, makes, "coefficients_backward", [factor, factor])
    flat = [jnp.pad(_whole(plan, x), ((0, 0), (0, x.shape[1] % 2))).reshape(-1) for x in (kept, cotangents)]
    found, dlogits, _ = run(*streams, phi, scale, bias, *flat)
    return [x[: plan.tokens] for x in found], dlogits.reshape(plan.blocks * TOKENS, -1)[: plan.tokens, :K]


def _tile(ref):
    return plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA).astype(jnp.float32)
