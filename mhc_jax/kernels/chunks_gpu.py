"""Recurrences with a matrix state as a Pallas Mosaic kernel of GPUs: a warpgroup walks over the chunks of one head.

It has a head's states of 64 value channels, and keeps them in shared memory. What a chunk computes, and its derivative,
is a program of products of tiles, on the tensor cores, and of operations on each of their elements, in registers, see
:mod:`mhc_jax.kernels.tile_programs`. Off a GPU the same program runs without a kernel.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mhc_jax.kernels.derivatives import from_chunk_to_chunk, not_differentiable
from mhc_jax.kernels.mosaic_gpu import by_lanes, has_threads
from mhc_jax.kernels.tile_gpu import FACTOR, Tile
from mhc_jax.kernels.tile_programs import Program, tile

# Tokens of a chunk and value channels of a block: the rows of a product on tensor cores.
ROWS = 64
# Most channels of keys, by the number of inputs with channels: the shared memory of a processor holds no more.
MOST_KEYS = {3: 128, 4: 64}


ROUNDS = "the kernel of chunks multiplies in bfloat16 on a GPU; take --model.execution.policy bfloat16, or 'xla'"


def fault(K: int, wide: int) -> str | None:
    """Why there is no kernel for heads with so many channels of keys, and what to do; None if there is one."""
    if MOST_KEYS[wide] >= K:
        return None
    what = f"the kernel of chunks holds at most {MOST_KEYS[wide]} channels of keys of a head on a GPU, not {K}"
    return f"{what}; take narrower ones, or implementation 'xla'"


class Piece(NamedTuple):
    """An array of all chunks, and which part of it one of them has.

    ``"keys"``: (B, T, heads * K), of which all blocks of values of a head read the same; ``"values"``: (B, T, blocks *
    64); ``"numbers"``: (B, heads, T), the same for all blocks of a head; ``"states"``: (B, N, blocks, 64, K). What is
    made is for each block, and in place of heads.
    """

    kind: str
    array: Any


def run(inside, s0_BHKV, wide, narrow):
    """:func:`mhc_jax.kernels.chunks.scan` on one device, in chunks of :data:`ROWS`.

    Tokens and channels are filled up with zeros. Queries, keys, values and output are rounded to bfloat16.
    """
    (B, T, H, K), V = wide[0].shape, wide[2].shape[3]
    tokens, whole_K, whole_V = (_whole(size) for size in (T, K, V))
    plan = _Plan(inside, K**-0.5, H, whole_V // ROWS)

    def filled(x, *shape):
        return jnp.pad(x, [(0, size - found) for found, size in zip(x.shape, shape, strict=True)])

    def laid(x, dtype):
        return filled(x.astype(dtype), B, tokens, H, _whole(x.shape[3])).reshape(B, tokens, -1)

    s0 = jnp.swapaxes(filled(s0_BHKV, B, H, whole_K, whole_V), 2, 3).reshape(B, -1, ROWS, whole_K)
    laid_wide = tuple(laid(x, FACTOR if n < 3 else jnp.float32) for n, x in enumerate(wide))
    numbers = tuple(jnp.swapaxes(filled(x.astype(jnp.float32), B, tokens, H), 1, 2) for x in narrow)
    found: Any = from_chunk_to_chunk(_forth, _back, plan, s0, laid_wide, numbers)
    y, s = found
    y_BTHV = y.reshape(B, tokens, H, whole_V)[:, :T, :, :V].astype(wide[2].dtype)
    s_BHKV = jnp.swapaxes(s.reshape(B, H, whole_V, whole_K), 2, 3)
    return y_BTHV, s_BHKV[:, :, :K, :V]


def _whole(size):
    return -(-size // ROWS) * ROWS


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a chunk computes, and the number of heads and of the blocks of values of each."""

    inside: Any
    scale: float
    heads: int
    blocks: int

    def run(self, s_VK, wide, narrow):
        """``inside``, with the scale at its output: queries stay as they are in shared memory."""
        s_VK, y_CV = self.inside(Tile(), s_VK, *wide, *([x_C] for x_C in narrow))
        return s_VK, self.scale * y_CV

    def inputs(self, wide, narrow):
        kinds = ("keys", "keys", "values", "keys")
        return [*map(Piece, kinds, wide), *(Piece("numbers", x) for x in narrow)]

    def made(self, pieces):
        """Cotangents of ``pieces``: of what several blocks of values share, one for each of them, in float32."""

        def shape(kind, x):
            if kind == "keys" and self.blocks > 1:
                return jax.ShapeDtypeStruct((*x.shape[:2], x.shape[2] * self.blocks), jnp.float32)
            if kind == "numbers":
                return jax.ShapeDtypeStruct((len(x), self.heads * self.blocks, x.shape[2]), x.dtype)
            return jax.ShapeDtypeStruct(x.shape, x.dtype)

        return [Piece(kind, shape(kind, x)) for kind, x in pieces]

    def summed(self, kind, x, like):
        """Over the blocks of a head what :meth:`made` has for each."""
        if kind == "keys" and self.blocks > 1:
            B, T, M = like.shape
            return jnp.sum(x.reshape(B, T, self.heads, self.blocks, -1), axis=3).reshape(B, T, M).astype(like.dtype)
        if kind == "numbers":
            B, H, T = like.shape
            return jnp.sum(x.reshape(B, H, self.blocks, T), axis=2)
        return x

    def part(self, kind, ref, b, n, block, made):
        """Of an array in the device's memory what a block has of a chunk."""
        tokens = pl.ds(n * ROWS, ROWS)
        count = self.heads * self.blocks
        if kind == "states":
            return ref.at[b, n, block]
        if kind == "numbers":
            return ref.at[b, block if made else block // self.blocks, tokens]
        shared = kind == "keys" and not made
        width = ref.shape[2] // (self.heads if shared else count)
        return ref.at[b, tokens, pl.ds((block // self.blocks if shared else block) * width, width)]

    def piece(self, kind, x, made=False):
        """The shape of such a part."""
        count = self.heads * (1 if kind == "keys" and not made else self.blocks)
        shape = {"states": x.shape[3:], "numbers": (ROWS,)}.get(kind) or (ROWS, x.shape[2] // count)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    def call(self, step, s0, given, made, name, reverse=False):
        """``step(state, *parts given) -> (state, *parts made)`` from chunk to chunk; also returns the last states."""
        B, blocks, *state = s0.shape
        [chunks] = {x.shape[1] // ROWS for kind, x in given if kind == "values"}
        makes = [*(x for _, x in made), jax.ShapeDtypeStruct(s0.shape, s0.dtype)]

        def parts(b, block, k, refs):
            n = chunks - 1 - k if reverse else k
            of_given, of_made = refs[: len(given)], refs[len(given) :]
            return (
                [self.part(kind, ref, b, n, block, False) for (kind, _), ref in zip(given, of_given, strict=True)],
                [self.part(kind, ref, b, n, block, True) for (kind, _), ref in zip(made, of_made, strict=True)],
            )

        def rounded(s_VK, *given):
            s_VK, *found = step(s_VK, *given)
            return s_VK, *(x.astype(like.dtype) for x, (_, like) in zip(found, made, strict=True))

        def interpreted(s0, *refs):
            b, block, (*refs, last) = pl.program_id(0), pl.program_id(1), refs

            def one(k, s_VK):
                given, made = parts(b, block, k, refs)
                s_VK, *found = rounded(s_VK, *(ref[...] for ref in given))
                for ref, x in zip(made, found, strict=True):
                    ref[...] = x
                return s_VK

            last[b, block] = lax.fori_loop(0, chunks, one, s0[b, block])

        arrays = s0, *(x for _, x in given)
        if not has_threads():
            run = pl.pallas_call(interpreted, grid=(B, blocks), out_shape=makes, interpret=True)
            return not_differentiable(run)(*arrays)
        shapes = [self.piece(*x) for x in given]
        program = Program.of(rounded, jax.ShapeDtypeStruct(state, s0.dtype), *shapes)

        def kernel(s0, *refs, state, tiles, places, arrived):
            b, block, (*refs, last) = lax.axis_index("sequence"), lax.axis_index("block"), refs
            program.begin(places)
            plgpu.copy_gmem_to_smem(s0.at[b, block], state, arrived[1])
            plgpu.barrier_wait(arrived[1])

            def one(k, _):
                given, made = parts(b, block, k, refs)
                values = [state, *(tiles.get(n) or _row(ref) for n, ref in enumerate(given))]
                for n, place in tiles.items():
                    plgpu.copy_gmem_to_smem(given[n], place, arrived[0])
                plgpu.barrier_wait(arrived[0])

                def give(n, x):
                    if n in program.homes:
                        if n == 0 or n in program.late:  # what is there may still be on its way
                            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        home = values[program.homes[n]]
                        home[...] = x
                        x = home
                    if n > 0 and isinstance(x, jax.Array):
                        made[n - 1][...] = x
                    elif n > 0:
                        plgpu.commit_smem()
                        plgpu.copy_smem_to_gmem(x, made[n - 1])

                program(values, places, give)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)

            lax.fori_loop(0, chunks, one, None)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(state, last.at[b, block])
            plgpu.wait_smem_to_gmem(0)

        loaded = {n: tile(x.shape, x.dtype) for n, x in enumerate(shapes) if len(x.shape) > 1}
        run = plgpu.kernel(
            kernel,
            grid=(B, blocks),
            grid_names=("sequence", "block"),
            kernel_name=name,
            out_type=makes,
            compiler_params=by_lanes(),
            scratch_types={
                "state": tile(state, s0.dtype),
                "tiles": loaded,
                "places": [tile(shape, FACTOR) for shape in program.shapes],
                "arrived": [plgpu.Barrier(num_arrivals=len(loaded)), plgpu.Barrier()],
            },
        )
        return not_differentiable(run)(*arrays)


def _row(ref):
    return plgpu.load(ref, (), layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)


def _forth(plan, s0, wide, narrow, keep):
    """Outputs (B, T, blocks * 64), and the last states (B, blocks, 64, K)."""

    def step(s_VK, *parts):
        s, y_CV = plan.run(s_VK, *_float32(parts, len(wide)))
        return s, y_CV, *[s_VK] * keep

    B, T, _ = wide[2].shape
    made = [Piece("values", wide[2])]
    if keep:
        before = jax.ShapeDtypeStruct((B, T // ROWS, *s0.shape[1:]), s0.dtype)
        made.append(Piece("states", before))
    return plan.call(step, s0, plan.inputs(wide, narrow), made, "chunks")


def _back(plan, before, wide, narrow, dy, ds_last):
    W = len(wide)

    def step(ds_VK, s_VK, dy_CV, *parts):
        _, pull = jax.vjp(plan.run, s_VK, *_float32(parts, W))
        ds_VK, dwide, dnarrow = pull((ds_VK, dy_CV.astype(jnp.float32)))
        return ds_VK, *dwide, *dnarrow

    inputs = plan.inputs(wide, narrow)
    given, made = [Piece("states", before), Piece("values", dy), *inputs], plan.made(inputs)
    *found, ds0 = plan.call(step, ds_last, given, made, "chunks_backward", reverse=True)
    found = [plan.summed(kind, x, like) for x, (kind, like) in zip(found, inputs, strict=True)]
    return ds0, tuple(found[:W]), tuple(found[W:])


def _float32(parts, W):
    """The first W, and the others, so that sums over blocks of their cotangents are not of rounded ones."""
    found = [x.astype(jnp.float32) for x in parts]
    return found[:W], found[W:]
