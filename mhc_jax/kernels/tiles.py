"""Rows of tokens in the memory of a TPU's core: tiles of tokens, which a kernel takes group by group.

An array of a tile lies in it as (tokens, C). One of few channels would leave most lanes empty and takes eight times as
long to move, so that outside it has its tokens in lanes, and a kernel turns it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mhc_jax.backend import target_kind
from mhc_jax.kernels.interpretation import is_interpreted

# Tokens of a tile, which is double-buffered, and of a group, which fills the registers.
# A product with a matrix of parameters wants more tokens at once.
TILES, GROUP, MATRIX_GROUP = (512, 256, 128, 64, 32, 16), 16, 64
SUBLANES, LANES = 8, 128
# Of the core's 16 MiB, which every TPU has, and of the 64 or more of some; the compiler needs the rest.
MEMORY, LARGE_MEMORY, REST = 12 * 2**20, 40 * 2**20, 4 * 2**20
LARGE = "TPU v5", "TPU v6", "TPU7"
# Devices of two cores; "TPU v5" is v5p.
DOUBLE = "TPU v4", "TPU v5", "TPU v5p"


def most_memory(kind: str | None) -> int:
    """Bytes that a kernel may take on devices of that kind, as JAX names it."""
    return LARGE_MEMORY if kind is not None and kind.startswith(LARGE) else MEMORY


def size(
    shapes: Sequence[tuple[int, Any]],
    params: Sequence[tuple[int, ...]] = (),
    *,
    most: int = TILES[1],
    memory: int = MEMORY,
    scratch: int = 0,
    kept: int = 0,
) -> int:
    """Tokens of the largest tile that fits; 0 if none does.

    Args:
        shapes: channels and dtypes of all arrays that a kernel reads or makes.
        params: shapes of its float32 parameters and of their cotangents.
        most: tokens that are enough.
        memory: bytes to fit in.
        scratch: bytes for each token of what there is only once.
        kept: bytes of what does not grow with the tile.
    """
    moved = sum(channels * jnp.dtype(dtype).itemsize for channels, dtype in shapes)
    shared = 2 * 4 * sum(map(math.prod, params)) + kept
    tiles = [tile for tile in TILES if tile <= most and tile * (2 * moved + scratch) + shared <= memory]
    return max(tiles, default=0)


class Group(NamedTuple):
    """Tokens of a tile that a kernel has at once.

    Attributes:
        at: their places in the tile.
        is_token: (tokens, 1) false behind the last token of a row; None if all tiles are full.
    """

    at: Any
    is_token: jax.Array | None

    def rows(self, ref: Any, *, repeat: bool = False) -> jax.Array:
        """(tokens, C) in float32; behind the last token, where all is undefined, the tile's first token, or zeros."""
        x = ref[self.at, :].astype(jnp.float32)
        if self.is_token is None:
            return x
        return jnp.where(self.is_token, x, ref[:1, :].astype(jnp.float32) if repeat else 0.0)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a kernel with the grid (cores, their share of all tiles) goes over arrays of tokens.

    Attributes:
        batch, tokens: B and T.
        tile, group: tokens of a tile and of a group, powers of two.
        memory: bytes that the kernel may take.
    """

    batch: int
    tokens: int
    tile: int
    group: int
    memory: int = MEMORY

    @property
    def of_row(self) -> int:
        """Number of a row's tiles."""
        return pl.cdiv(self.tokens, self.tile)

    @property
    def first_token(self) -> Any:
        """Place of the first token of the kernel's tile; there are one or two cores."""
        step = pl.program_id(0) * (self.batch * self.of_row // 2) + pl.program_id(1)
        return jax.lax.rem(step, self.of_row) * self.tile

    def is_turned(self, channels: int) -> bool:
        """Whether an array has its tokens in lanes outside."""
        return channels < LANES and self.tile % LANES == 0

    def each_group(self, function: Callable[[Group], None]) -> None:
        """Calls ``function`` with all groups of the kernel's tile."""
        start = self.first_token

        def some(g, _):
            first = g * self.group
            is_token = None
            if self.tokens % self.tile:
                is_token = start + first + jax.lax.broadcasted_iota(jnp.int32, (self.group, 1), 0) < self.tokens
            function(Group(pl.ds(pl.multiple_of(first, self.group), self.group), is_token))

        jax.lax.fori_loop(0, self.tile // self.group, some, None)

    def tokens_of(self, ref: Any) -> jax.Array:
        """(tile, C) with zeros behind the last token of a row, where all is undefined."""
        if self.tokens % self.tile == 0:
            return ref[...]
        place = jax.lax.broadcasted_iota(jnp.int32, (self.tile, 1), 0)
        return jnp.where(self.first_token + place < self.tokens, ref[...], 0)

    def are_tokens(self) -> jax.Array:
        """(1, tile) false behind the last token of a row."""
        place = jax.lax.broadcasted_iota(jnp.int32, (1, self.tile), 1)
        return self.first_token + place < self.tokens

    def call(
        self,
        kernel: Callable[..., None],
        shared: Any,
        given: Sequence[jax.Array],
        made: Sequence[tuple[int, Any]],
        sums: Any,
        *,
        flops: int,
        scratch: Sequence[Any] = (),
    ) -> tuple[list[jax.Array], Any]:
        """``kernel(shared, given, made, sums, *scratch)`` for all tiles, on references to what they have of each.

        Args:
            shared: tree of what all tiles read: vectors of numbers, which lie in scalar memory, and matrices.
            given: (B, T, C), each with channels of its own.
            made: channels and dtypes of arrays to make.
            sums: tree of matrices, whose shapes float32 sums over all tiles have; they begin as zeros.
            flops: of all tiles.
            scratch: further memory.

        Returns:
            The arrays that were made, and the sums.
        """
        widths = [x.shape[-1] for x in given] + [channels for channels, _ in made]
        standing = [pltpu.VMEM((self.tile, width), jnp.float32) for width in widths if self.is_turned(width)]
        results = [self._shape(channels, dtype) for channels, dtype in made]
        # Each core has sums of its own.
        steps = self.batch * self.of_row
        cores = 2 if jax.tree.leaves(sums) and target_kind() in DOUBLE and steps % 2 == 0 else 1
        summed = jax.tree.map(lambda x: jax.ShapeDtypeStruct((cores, *x.shape), jnp.float32), sums)

        def run(shared, given, made, sums, standing, scratch):
            if jax.tree.leaves(sums):
                _clear_at_first(jax.tree.leaves(sums))
            # In the place of what has its tokens in lanes.
            memory, refs = iter(standing), [*given, *made]
            views = [next(memory) if self.is_turned(width) else ref for ref, width in zip(refs, widths, strict=True)]
            inputs, outputs = views[: len(given)], views[len(given) :]
            for ref, view in zip(given, inputs, strict=True):
                if view is not ref:
                    view[...] = ref[...].astype(jnp.float32).T
            kernel(shared, inputs, outputs, sums, *scratch)
            for ref, view in zip(made, outputs, strict=True):
                if view is not ref:
                    ref[...] = view[...].T.astype(ref.dtype)

        operands = shared, [self._turned(x, x.shape[-1]) for x in given]
        found, sums = pl.pallas_call(
            run,
            grid=(cores, steps // cores),
            in_specs=(jax.tree.map(_whole, shared), [self._block(x.shape[-1], steps // cores) for x in given]),
            out_specs=([self._block(channels, steps // cores) for channels, _ in made], jax.tree.map(_of_core, summed)),
            out_shape=(results, summed),
            scratch_shapes=(standing, list(scratch)),
            compiler_params=pltpu.CompilerParams(
                vmem_limit_bytes=self.memory + REST,
                dimension_semantics=("parallel", "arbitrary" if jax.tree.leaves(summed) else "parallel"),
            ),
            cost_estimate=pl.CostEstimate(
                flops=flops, bytes_accessed=_bytes((operands, results, summed)), transcendentals=0
            ),
            interpret=is_interpreted(),
        )(*operands)
        found = [self._turned(x, channels) for x, (channels, _) in zip(found, made, strict=True)]
        return found, jax.tree.map(lambda x: jnp.sum(x, axis=0) if cores > 1 else x[0], sums)

    def _turned(self, x, channels):
        """An array (B, T, channels) as it lies outside, and back."""
        return jnp.swapaxes(x, 1, 2) if self.is_turned(channels) else x

    def _block(self, channels, share):
        def place(core, step):
            step += core * share
            return jax.lax.div(step, self.of_row), jax.lax.rem(step, self.of_row)

        if self.is_turned(channels):
            return pl.BlockSpec((None, channels, self.tile), lambda *at: (place(*at)[0], 0, place(*at)[1]))
        return pl.BlockSpec((None, self.tile, channels), lambda *at: (*place(*at), 0))

    def _shape(self, channels, dtype):
        B, T = self.batch, self.tokens
        return jax.ShapeDtypeStruct((B, channels, T) if self.is_turned(channels) else (B, T, channels), dtype)


def side_by_side(columns: Sequence[jax.Array]) -> jax.Array:
    """(tokens, R) of R columns (tokens, 1)."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (columns[0].shape[0], len(columns)), 1)
    return sum(jnp.where(lane == k, x, 0.0) for k, x in enumerate(columns))


def columns(x: jax.Array) -> list[jax.Array]:
    """The reverse of :func:`side_by_side`."""
    return [x[:, k : k + 1] for k in range(x.shape[1])]


def _clear_at_first(refs):
    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in refs:
            ref[...] = jnp.zeros(ref.shape, jnp.float32)


def _whole(x):
    if len(x.shape) == 1:
        return pl.BlockSpec(memory_space=pltpu.SMEM)
    return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))


def _of_core(x):
    return pl.BlockSpec((None, *x.shape[1:]), lambda core, _: (core, *[0] * (len(x.shape) - 1)))


def _bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
