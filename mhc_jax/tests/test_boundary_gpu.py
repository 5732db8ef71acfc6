"""The one kernel of GPUs between two branches, walked through block by block in numpy: equal to the same without it.

What a GPU does with threads and time is left out. Places, copies, products and the order of passes are the kernel's
own; memory that nothing has been stored in is NaN, and nothing outside of an array is touched.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mhc_jax.kernels import blocks_gpu, boundary_gpu, gates_gpu
from mhc_jax.kernels.gates import Gates, Params, Site
from mhc_jax.ops.norm import layer_norm
from mhc_jax.ops.sinkhorn import ORDERS
from mhc_jax.tests.own import slow_after_one
from mhc_jax.tests.test_coefficients_kernel import of


class Memory:
    """A reference to a numpy array."""

    def __init__(self, array):
        self.array = array

    shape, dtype = property(lambda self: self.array.shape), property(lambda self: self.array.dtype)
    at = property(lambda self: Part(self))
    T = property(lambda self: Memory(self.array.T))

    def part(self, where):
        places = []
        for place, size in zip(where if isinstance(where, tuple) else (where,), self.array.shape, strict=False):
            if isinstance(place, pl.Slice):
                assert 0 <= place.start <= size - place.size
                place = slice(int(place.start), int(place.start) + place.size)
            elif not isinstance(place, slice | type(...)):
                assert 0 <= place < size
                place = int(place)
            places.append(place)
        return tuple(places)

    def __getitem__(self, where):
        return jnp.asarray(self.array[self.part(where)])

    def __setitem__(self, where, x):
        where = self.part(where)
        assert self.array[where].shape == x.shape
        assert self.array.dtype == x.dtype
        self.array[where] = x


class Part:
    """A reference to what is at some places of another's array."""

    def __init__(self, memory):
        self.memory = memory

    def __getitem__(self, where):
        return Memory(self.memory.array[self.memory.part(where)])


class Instead:
    """A module with some of its members replaced."""

    def __init__(self, module, **members):
        self._module = module
        self.__dict__.update(members)

    def __getattr__(self, name):
        return getattr(self._module, name)


@contextlib.contextmanager
def walked():
    """Lets kernels of :mod:`mhc_jax.kernels.boundary_gpu` run in Python."""
    block = [0]

    def loop(first, last, run, carry):
        for i in range(int(first), int(last)):
            carry = run(i, carry)
        return carry

    def copy(source, target, arrived):
        assert source.shape == target.shape
        target.array[...] = source.array
        arrived.array[0, 0] += 1

    def multiply(sums, a, b):
        with np.errstate(invalid="ignore", over="ignore"):  # rows that nothing looks at
            sums.array += a.array.astype(np.float32) @ b.array.astype(np.float32)

    def wait(arrived):
        arrivals, copies = arrived.array[0]
        assert arrivals == copies
        arrived.array[0, 0] = 0

    def allocated(scratch):
        if isinstance(scratch, plgpu.Barrier):
            [barriers] = np.atleast_1d(scratch.num_barriers)
            counts = np.zeros((barriers, 1, 2), np.int64)
            counts[..., 1] = scratch.num_arrivals
            return Memory(counts)
        return Memory(np.full(scratch.shape, np.nan, scratch.dtype))

    def kernel(body, *, grid, out_type, scratch_types, **_):
        def run(*arguments):
            given, made = jax.tree.map(lambda x: Memory(np.array(x)), arguments), jax.tree.map(allocated, out_type)
            for block[0] in range(grid[0]):
                scratch = jax.tree.map(allocated, scratch_types, is_leaf=lambda x: not isinstance(x, dict | list))
                body(*given, *made, **scratch)
            return jax.tree.map(lambda memory: jnp.asarray(memory.array), made)

        return run

    integers = {"rem": lambda a, b: int(a) % int(b), "div": lambda a, b: int(a) // int(b)}
    lax_ = Instead(lax, axis_index=lambda _: block[0], fori_loop=loop, **integers)
    pallas = Instead(
        pl,
        when=lambda condition: lambda run: run() if condition else None,
        run_scoped=lambda run, sums: run(Memory(np.zeros(sums.shape, np.float32))),
    )
    mosaic = Instead(
        plgpu,
        kernel=kernel,
        copy_gmem_to_smem=copy,
        barrier_wait=wait,
        wgmma=multiply,
        wgmma_wait=lambda _: None,
        commit_smem=lambda: None,
        layout_cast=lambda x, _: x,
        load=lambda ref, where, **_: ref[where],
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (boundary_gpu, blocks_gpu):
            for name, instead in (("lax", lax_), ("pl", pallas), ("plgpu", mosaic)):
                patch.setattr(module, name, instead)
        patch.setattr(gates_gpu, "lax", lax_)
        patch.setattr(boundary_gpu, "has_threads", lambda: True)
        patch.setattr(boundary_gpu, "shown_to_copies", lambda: None)
        yield


@pytest.mark.parametrize(
    ("N", "D", "T", "iters", "written"),
    slow_after_one(
        (2, 128, 37, 2, 1),  # a block that is not full
        (4, 768, 9, 3, 0),  # three pieces of channels backward
        (4, 128, 16, 20, 4),
        (8, 128, 5, 2, 1),  # more numbers than tensor cores multiply at once
        (1, 256, 33, 0, 1),
        (3, 384, 19, 1, 3),
    ),
)
def test_a_walk_equals_what_it_stands_for(N, D, T, iters, written):
    rng, K = np.random.default_rng(N * D), 2 * N + N * N
    gates = Gates(functools.partial(of, streams=N), N, iters, ORDERS["columns_then_rows"])
    site = Site(N * D, 1e-6, layer_norm, jnp.bfloat16, gates)

    def drawn(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    def rows(count):
        return [drawn(1, T, D, dtype=jnp.bfloat16) for _ in range(count)]

    norm = 1 + drawn(1, D) / 4, drawn(1, D)
    params = Params(drawn(K, N * D).astype(jnp.bfloat16), drawn(K, 1) / D**0.5, drawn(K, 1), norm)
    h, ys, before = rows(N), rows(written), [drawn(1, T, N * N + N)] * (written > 0)
    after, *_, kept, coefficients = found = boundary_gpu.forward(site, h, ys, before, params)
    post, cotangents = [x[..., N * N :] for x in before], (*rows(1), rows(N), drawn(1, T, gates.count))
    backward = after, ys, post, params, kept, coefficients, cotangents
    want = found, boundary_gpu.backward(site, *backward)
    with walked():
        walk = boundary_gpu.forward(site, h, ys, before, params), boundary_gpu.backward(site, *backward)
    for x, goal in zip(*map(jax.tree.leaves, (walk, want)), strict=True):
        x, goal = (np.asarray(x, np.float64) for x in (x, goal))
        # Sums in another order are now and then rounded the other way.
        np.testing.assert_allclose(x, goal, rtol=2**-8, atol=2**-9 * np.abs(goal).max())


def test_streams_without_a_kernel():
    """In float32, too wide for the registers or for shared memory, or with a matrix of a norm."""
    gates = Gates(list, 4, 20, ORDERS["columns_then_rows"])

    def tile(N, width, *, dtype=jnp.bfloat16, rows=1, iters=20):
        row, K = jax.ShapeDtypeStruct((8, 1024, width), dtype), 2 * N + N * N
        sizes = (K, N * width), (K, 1), (K, 1)
        params = Params(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in sizes), (jnp.ones((rows, width)),))
        return boundary_gpu.tile_of([row] * N, [row], row, params, gates._replace(streams=N, iters=iters))

    assert tile(4, 768) == 256
    assert tile(4, 2048) == 512
    assert tile(1, 1024) == 1024
    assert tile(4, 768, dtype=jnp.float32) == 0
    assert tile(4, 768, rows=2) == 0
    assert tile(4, 4096) == 0
    assert tile(8, 128, iters=400) == 0
