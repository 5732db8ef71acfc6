"""Sums over the logits of M tokens that exist only in the memory of a TPU's core, tile by tile."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mhc_jax.backend import target_kind
from mhc_jax.config import ConfigError
from mhc_jax.kernels.interpretation import is_interpreted
from mhc_jax.kernels.products import of_factors
from mhc_jax.kernels.tiles import LANES, REST, most_memory

# Rows of the tile that stays in memory while others pass, and of those; the larger, the faster.
STAYING, PASSING = (512, 256, 128), (2048, 1024, 512, 256, 128)
# Multiplications of a step by factors of 16 bits; more take the compiler long.
MOST_WORK = 2**30
LEAST = float(jnp.finfo(jnp.float32).min)  # below all logits, and its difference from them is a number
NONE = -1  # in the place of a target that is no row of the head


class Tile(NamedTuple):
    """Rows of the tile that stays, and of those that pass."""

    staying: int
    passing: int

    @staticmethod
    def of(width: int, dtype: Any, memory: int) -> "Tile | None":
        """The largest in so many bytes; None if none fits."""
        size = jnp.dtype(dtype).itemsize
        # Factors of 32 bits are multiplied in three parts of 16.
        passes, parts = (1, 0) if dtype == jnp.bfloat16 else (4, 6)
        for staying in STAYING:
            for passing in PASSING:
                # What comes and goes twice, a copy of what passes, and float32 sums with what is added to them.
                rows = staying * (2 * size + 12 + parts) + passing * (3 * size + parts)
                fits = width * rows + staying * passing * (8 + size + parts) <= memory
                if fits and passes * staying * passing * width <= MOST_WORK:
                    return Tile(staying, passing)
        return None

    def within(self, staying: int, passing: int) -> "Tile":
        """No larger than so many rows take."""
        return Tile(*(min(tile, _up(rows, LANES)) for tile, rows in zip(self, (staying, passing), strict=True)))


def sums(
    hidden_MD: jax.Array, head_VD: jax.Array, targets_M: jax.Array, *, means: bool
) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
    """Of each token the greatest logit but the target's, and the sum of all others' exponentials relative to it.

    If ``means`` are asked for, also the sum (M, D) of the head's rows, each times that exponential.
    """
    (M, D), V = hidden_MD.shape, len(head_VD)
    tile = _tile(head_VD).within(M, V)
    T, passing = tile
    hidden_MD, targets_M = _whole(T, hidden_MD, 0), _whole(T, targets_M, NONE)
    steps = pl.cdiv(V, passing)
    full = (V % passing or passing) // LANES  # columns of logits that the last tile fills, too

    def kernel(hidden, head, targets, greatest, sum_, *more):
        *mean, target, most, total = more
        first = pl.program_id(1) * passing

        @pl.when(first == 0)
        def _():
            target[...] = _to_rows(targets[...])
            most[...] = jnp.full(most.shape, LEAST, jnp.float32)
            for ref in (total, *mean):
                ref[...] = jnp.zeros(ref.shape, jnp.float32)

        rows = head[...]
        logits = of_factors(1, 1, hidden[...], rows)
        lane, columns = jax.lax.broadcasted_iota(jnp.int32, (T, LANES), 1), []
        # By columns as wide as the lanes, in all of which a number of a token stands.
        for n in range(passing // LANES):
            place, x = lane + (first + n * LANES), logits[:, n * LANES : (n + 1) * LANES]
            is_other = place != target[...]
            columns.append(jnp.where(is_other if n < full else is_other & (place < V), x, -jnp.inf))
        before = most[...]
        now = jnp.maximum(before, jnp.max(functools.reduce(jnp.maximum, columns), axis=1, keepdims=True))
        scale = jnp.exp(before - now)
        powers = [jnp.exp(x - now) for x in columns]
        most[...] = now
        total[...] = total[...] * scale + sum(powers)
        for ref in mean:
            if V % passing:  # behind the last row there may be anything
                start = full * LANES
                place = first + start + jax.lax.broadcasted_iota(jnp.int32, (passing - start, 1), 0)
                ends = jnp.where(place < V, rows[start:], 0)
                rows = jnp.concatenate([rows[:start], ends]) if start else ends
            factors = jnp.concatenate([x.astype(rows.dtype) for x in powers], axis=1)
            ref[...] = ref[...] * scale[:, :1] + of_factors(1, 0, factors, rows)

        @pl.when(pl.program_id(1) == steps - 1)
        def _():
            greatest[...] = _to_lanes(most[...])
            sum_[...] = _to_lanes(jnp.sum(total[...], axis=1, keepdims=True))

    stays, passes = _rows(T, D, 0), _rows(passing, D, 1)
    number = pl.BlockSpec((1, T), lambda i, _: (0, i))
    most, total, *mean = _call(
        kernel,
        tile,
        2 + 2 * means,
        [(hidden_MD, stays), (head_VD, passes), (targets_M[None], number)],
        [((1, len(hidden_MD)), jnp.float32, number)] * 2 + [(hidden_MD.shape, jnp.float32, stays)] * means,
        [pltpu.VMEM((T, LANES), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32)],
    )
    return most[0, :M], total[0, :M], [x[:M] for x in mean]


def gradient(hidden_MD: jax.Array, head_VD: jax.Array, numbers: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """That of the head, in the given dtype, if that of a token's logits is b for the target and else ``a softmax``.

    Args:
        numbers: of every token (M,) its target, a row of the head or :data:`NONE`; the logarithm of the softmax's
            denominator; a; b.
    """
    (M, D), V = hidden_MD.shape, len(head_VD)
    tile = _tile(head_VD).within(V, M)
    R, passing = tile
    hidden_MD, *numbers = (_whole(passing, x, 0) for x in (hidden_MD, *numbers))

    def kernel(head, hidden, targets, lse, a, b, made, total):
        @pl.when(pl.program_id(1) == 0)
        def _():
            total[...] = jnp.zeros(total.shape, jnp.float32)

        tokens = hidden[...]
        logits = of_factors(1, 1, head[...], tokens)  # with tokens in lanes
        place = pl.program_id(0) * R + jax.lax.broadcasted_iota(jnp.int32, (R, passing), 0)
        found = jnp.where(place == targets[...], b[...], a[...] * jnp.exp(logits - lse[...]))
        total[...] += of_factors(1, 0, found.astype(tokens.dtype), tokens)

        @pl.when(pl.program_id(1) == len(hidden_MD) // passing - 1)
        def _():
            made[...] = total[...].astype(made.dtype)

    stays, passes = _rows(R, D, 0), _rows(passing, D, 1)
    number = pl.BlockSpec((1, passing), lambda _, j: (0, j))
    (made,) = _call(
        kernel,
        tile,
        4,
        [(head_VD, stays), (hidden_MD, passes), *[(x[None], number) for x in numbers]],
        [(head_VD.shape, dtype, stays)],
        [pltpu.VMEM((R, D), jnp.float32)],
    )
    return made


def _call(
    kernel: Callable[..., None],
    tile: Tile,
    flops: int,
    given: Sequence[tuple[jax.Array, pl.BlockSpec]],
    made: Sequence[tuple[tuple[int, ...], Any, pl.BlockSpec]],
    scratch: Sequence[Any],
) -> Sequence[jax.Array]:
    """The kernel over all tiles, of which the first of ``given`` stays and the second passes.

    Args:
        flops: operations for each number of one and row of the other.
    """
    (stays, _), (passes, _) = given[:2]
    turns = pl.cdiv(len(stays), tile.staying)
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in made]
    moved = sum(x.size * x.dtype.itemsize for x in (stays, *results)) + turns * passes.size * passes.dtype.itemsize
    return pl.pallas_call(
        kernel,
        grid=(turns, pl.cdiv(len(passes), tile.passing)),
        in_specs=[spec for _, spec in given],
        out_specs=[spec for *_, spec in made],
        out_shape=results,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=most_memory(target_kind()) + REST, dimension_semantics=("parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops * stays.size * len(passes),
            bytes_accessed=moved,
            transcendentals=len(stays) * len(passes),
        ),
        interpret=is_interpreted(),
    )(*(x for x, _ in given))


def _tile(head_VD):
    tile = Tile.of(head_VD.shape[1], head_VD.dtype, most_memory(target_kind()))
    if tile is None:
        raise ConfigError(f"a head of width {head_VD.shape[1]} is too wide for its kernels; take implementation 'xla'")
    return tile


def _rows(count, width, axis):
    """Of a matrix, so many rows at a time, the next at each step along that axis of the grid."""
    return pl.BlockSpec((count, width), lambda *at: (at[axis], 0))


def _up(rows, to):
    return pl.cdiv(rows, to) * to


def _whole(tile, x, fill):
    """With further tokens, to whole tiles."""
    return jnp.pad(x, ((0, -len(x) % tile), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)


def _to_rows(x_1M):
    """(M, lanes) with the numbers of tokens, which were one beside the other, in all lanes."""
    return jnp.broadcast_to(x_1M, (LANES, x_1M.shape[1])).T


def _to_lanes(x):
    """The reverse, of (M, lanes) or (M, 1)."""
    return jnp.broadcast_to(x, (len(x), LANES)).T[:1]
