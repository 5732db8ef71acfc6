"""Blocks of a few tokens on GPUs, each of one warpgroup, which passes over its tokens several times.

Row by row all threads share the channels of a token; chunk by chunk tensor cores multiply the block's streams with a
matrix phi, of which every block takes all; and where numbers of tokens are concerned a thread has those of one token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mhc_jax.kernels.coefficients_gpu import CHANNELS
from mhc_jax.kernels.mosaic_gpu import by_lanes
from mhc_jax.kernels.tile_gpu import FACTOR

# Processors of an H100, and bytes of the cache that they share, less what others need of it.
PROCESSORS, CACHE = 132, 40 * 2**20
# Bytes of shared memory of a processor, less what sums over threads and barriers take, and those an array begins at.
SHARED, ALIGNED = 224 * 2**10, 2**10
# Rows of phi that tensor cores multiply at once, and those that they sum over at once.
ROWS, SUMMED = 64, 16
# Least and most chunks on their way.
LEAST_STAGES, MOST_STAGES = 4, 12
# As products of tensor cores lie in registers, with all numbers of a thread apart.
PRODUCT = plgpu.Layout.TILED(
    plgpu.Tiling(((64, 8), (16, 8), (8, 8), (2,), (1,))), warp_dims=(-8,), lane_dims=(-4, -3), vector_dim=-1
)
# A tile of whose rows each thread has four numbers.
TILE = plgpu.Layout.TILED(
    plgpu.Tiling(((8, CHANNELS), (2, CHANNELS), (4,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)


class Blocks(NamedTuple):
    """Sizes of all blocks, and what a block does with them.

    Attributes:
        tokens, most: of all blocks, and of one: 8 or 16.
        streams, width: N, and channels of a stream.
        numbers: K, rows of phi.
    """

    tokens: int
    most: int
    streams: int
    width: int
    numbers: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return pl.cdiv(self.tokens, self.most)

    @property
    def given_rows(self) -> int:
        """Of phi with as many zeros behind as tensor cores sum over."""
        return SUMMED * pl.cdiv(self.numbers, SUMMED)

    @property
    def rows(self) -> int:
        """Of phi's place in shared memory. What lies behind those that are given has to be made zero, or not used."""
        return ROWS * pl.cdiv(self.numbers, ROWS)

    @property
    def mine(self) -> pl.Slice:
        """The block's tokens among all."""
        return pl.ds(lax.axis_index("block") * self.most, self.most)

    @property
    def all(self) -> pl.Slice:
        """The block's tokens."""
        return pl.ds(0, self.most)

    def at_once(self, streams: int) -> int:
        """Blocks on a processor, one to three, for which the cache should hold so many streams of each."""
        held = 2 * self.most * self.width * streams
        return min(3, max(1, CACHE // (PROCESSORS * held)))

    def phi(self, phi_KM: jax.Array) -> jax.Array:
        """The matrix as blocks take it."""
        return jnp.pad(phi_KM.astype(FACTOR), ((0, self.given_rows - self.numbers), (0, 0)))

    def whole(self, x: jax.Array) -> jax.Array:
        """(tokens, C) with zeros for those that the last block lacks, of which copies and threads know nothing."""
        return jnp.pad(x, ((0, self.count * self.most - self.tokens), (0, 0)))

    def made(self, channels: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """(tokens, C) with room for those that the last block lacks."""
        return jax.ShapeDtypeStruct((self.count * self.most, channels), dtype)

    def run(self, kernel: Callable[..., None], makes: Any, scratch: dict[str, Any], name: str) -> Callable[..., Any]:
        """A function of arrays that calls ``kernel`` with references to them, to ``makes`` and to ``scratch``."""
        return plgpu.kernel(
            kernel,
            grid=(self.count,),
            grid_names=("block",),
            kernel_name=name,
            out_type=makes,
            scratch_types=scratch,
            compiler_params=by_lanes(unsafe_no_auto_barriers=True),
        )

    def each(self, run: Callable[[Any, Any, Any], Any], carry: Any = None) -> Any:
        """``run(token, its number in the block, carry)`` for all tokens of the block."""
        first = lax.axis_index("block") * self.most
        count = jnp.minimum(self.most, self.tokens - first)
        return lax.fori_loop(0, count, lambda t, carry: run(first + t, t, carry), carry)

    def by_thread(self, ref: Any, *where: Any) -> jax.Array:
        """A number of each token of the block; threads beyond the last token do as others do."""
        warps, lanes = plgpu.Replicated(4), plgpu.Replicated(32 // self.most)
        tokens = plgpu.Tiling(((self.most,), (1,)))
        layout = plgpu.Layout.TILED(tokens, warp_dims=(warps,), lane_dims=(lanes, -2), vector_dim=-1)
        return plgpu.load(ref, where, layout=layout, optimized=False)

    def over_chunks(
        self,
        piece: int,
        streams: Sequence[Any],
        phi: Any,
        places: Sequence[Any],
        arrived: Any,
        use: Callable[..., None],
        then: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """``use(stream, channel, *places)`` for chunks of :data:`CHANNELS` channels, with the first of them in a piece.

        The first piece of all streams comes first, and after each ``then(piece)``. Threads must be done with a chunk
        when ``use`` returns.

        Args:
            piece: channels of a stream in a piece.
            streams: those that are taken beside phi, or none.
            places: in shared memory, (stages, rows, channels), for streams if there are any, and for phi.
        """
        parts, N, stages = piece // CHANNELS, self.streams, places[0].shape[0]
        pieces, a_piece = self.width // piece, N * parts

        def stream_of(n):
            return lax.rem(lax.div(n, parts), N)

        def fetch(n):
            slot = lax.rem(n, stages)

            @pl.when(n < pieces * a_piece)
            def _():
                *x, rows = (ref.at[slot] for ref in places)
                stream, first = stream_of(n), lax.div(n, a_piece) * piece + lax.rem(n, parts) * CHANNELS
                given = phi.at[:, pl.ds(stream * self.width + first, CHANNELS)]
                plgpu.copy_gmem_to_smem(given, rows.at[pl.ds(0, self.given_rows)], arrived.at[slot])
                for s, ref in enumerate(streams):

                    @pl.when(stream == s)
                    def _(given=ref.at[self.mine, pl.ds(first, CHANNELS)]):
                        plgpu.copy_gmem_to_smem(given, x[0], arrived.at[slot])

        def one(n, _):
            slot = lax.rem(n, stages)
            plgpu.barrier_wait(arrived.at[slot])
            use(stream_of(n), lax.rem(n, parts) * CHANNELS, *(ref.at[slot] for ref in places))
            fetch(n + stages - 1)

        def over_piece(k, _):
            lax.fori_loop(k * a_piece, (k + 1) * a_piece, one, None)
            then(k)

        for n in range(stages - 1):
            fetch(jnp.int32(n))
        lax.fori_loop(0, pieces, over_piece, None)


class ByThread(NamedTuple):
    """A reference to numbers (..., tokens) of a block, by all but the last axis."""

    blocks: Blocks
    ref: Any

    def __getitem__(self, where: Any) -> jax.Array:
        return self.blocks.by_thread(self.ref, *where, self.blocks.all)

    def __setitem__(self, where: Any, x: jax.Array) -> None:
        self.ref[(*where, self.blocks.all)] = x
