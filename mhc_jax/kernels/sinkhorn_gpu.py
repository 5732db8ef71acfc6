"""Sinkhorn's iterations as Pallas Mosaic kernels of GPUs, for many small matrices: a thread holds one matrix.

Every entry is a vector of its own over the matrices of a warpgroup, so that sums over rows and columns stay within a
thread. Mosaic has no axes for rows and columns then, and the half-steps are stated anew, on the entries. Off a GPU the
kernels are interpreted.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from mhc_jax.kernels.mosaic_gpu import THREADS, over_blocks, run_program
from mhc_jax.ops.sinkhorn import HalfSteps

LARGEST = float(np.finfo(np.float32).max) / 8
# Of matrices (N, N) whose entries are arrays.
_clip = np.frompyfunc(lambda x: jnp.clip(x, -LARGEST, LARGEST), 1, 1)
_maximum = np.frompyfunc(lambda x, y: lax.stop_gradient(jnp.maximum(x, y)), 2, 1)
_exp, _log = np.frompyfunc(jnp.exp, 1, 1), np.frompyfunc(jnp.log, 1, 1)

Entries = Sequence[jax.Array]


def project(logits_BTNN: jax.Array, iters: int, half_steps: HalfSteps) -> jax.Array:
    """Sinkhorn's iterations begun on logarithms, as :func:`mhc_jax.ops.sinkhorn.log_sinkhorn`, in float32."""

    def kernel(load, store, z, p):
        begun = lowered(functools.partial(on_logs, half_steps), load(z))
        store(p, lax.fori_loop(0, iters - 1, lambda _, p: again(half_steps, p), begun))

    return _over_matrices(kernel, [logits_BTNN], 0)


def pull(logits_BTNN: jax.Array, dp_BTNN: jax.Array, iters: int, half_steps: HalfSteps) -> jax.Array:
    """The cotangent of the logits; the iterations are repeated, and their inputs pass through memory once."""
    begin, further = functools.partial(on_logs, half_steps), functools.partial(again, half_steps)

    def kernel(load, store, z, dp, dz, *inputs):
        logits = load(z)

        def forth(k, p):
            store(inputs[0].at[k], p)
            return further(p)

        def back(k, dp):
            return pulled(further, load(inputs[0].at[iters - 2 - k]), dp)

        found = load(dp)
        if iters > 1:
            lax.fori_loop(0, iters - 1, forth, lowered(begin, logits))
            found = lax.fori_loop(0, iters - 1, back, found)
        store(dz, pulled(begin, logits, found))

    return _over_matrices(kernel, [logits_BTNN, dp_BTNN], iters - 1)


def _square(entries: Entries) -> np.ndarray:
    size = round(len(entries) ** 0.5)
    matrix = np.empty((size, size), object)
    for k, x in enumerate(entries):
        matrix[divmod(k, size)] = x
    return matrix


def on_logs(half_steps: HalfSteps, entries: Entries) -> list[jax.Array]:
    """:meth:`mhc_jax.ops.sinkhorn.HalfSteps.on_logs`."""
    z = _clip(_square(entries))
    for axis in half_steps:
        z = z - _maximum.reduce(z, axis=axis, keepdims=True)
        z = z - _log(_exp(z).sum(axis=axis, keepdims=True))
    return list(_exp(z).flat)


def again(half_steps: HalfSteps, entries: Entries) -> list[jax.Array]:
    """:meth:`mhc_jax.ops.sinkhorn.HalfSteps.again`."""
    p = _square(entries)
    for axis in half_steps:
        p = p / p.sum(axis=axis, keepdims=True)
    return list(p.flat)


def lowered(function: Callable[..., Entries], *entries: Entries) -> list[jax.Array]:
    """``function`` by operations that Mosaic has."""
    return run_program(jax.make_jaxpr(function)(*entries), jax.tree.leaves(entries))


def pulled(function: Callable[[Entries], Entries], inputs: Entries, cotangents: Entries) -> list[jax.Array]:
    """Cotangents of the inputs."""
    return lowered(lambda xs, dys: jax.vjp(function, xs)[1](dys)[0], inputs, cotangents)


def _over_matrices(kernel, arrays, kept):
    """``kernel`` on matrices by entries, with memory for ``kept`` more of each."""
    B, T, N, _ = arrays[0].shape
    blocks = pl.cdiv(B * T, THREADS)
    if not blocks:
        return arrays[0]

    def by_entry(x_BTNN):
        return jnp.pad(x_BTNN.reshape(B * T, N * N).T, ((0, 0), (0, blocks * THREADS - B * T)))

    def on_block(block, *refs):
        mine = pl.ds(block * THREADS, THREADS)

        def load(ref):
            return [ref[k, mine] for k in range(N * N)]

        def store(ref, entries):
            for k, x in enumerate(entries):
                ref[k, mine] = x

        kernel(load, store, *refs)

    made = jax.ShapeDtypeStruct((N * N, blocks * THREADS), jnp.float32)
    makes = [made, *[jax.ShapeDtypeStruct((kept, *made.shape), jnp.float32)] * (kept > 0)]
    found = over_blocks(on_block, blocks, makes, "sinkhorn")(*map(by_entry, arrays))[0]
    return found[:, : B * T].T.reshape(B, T, N, N)
