"""Recurrences with a matrix state on TPUs, chunk after chunk in one kernel that touches every array once.

What a chunk computes is a function of the state before it and of its tokens, ``inside``. The kernel keeps the states of
all heads of a sequence in its memory; under differentiation it also writes those between chunks, and the backward
kernel walks over the chunks in reverse with the derivative of ``inside`` from them.

Several heads share the lanes of a tile: heads of 64 lie two by two, beside each other, and products of them are whole
matrices, see :class:`Heads`. A state is kept transposed, (V, K) for each head, so that decays of keys are by lane.

Sums are in float32 whatever the inputs. Off a TPU the kernels are interpreted, which is slow.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels.sharding import axes, by_device

LANES, LEAST_CHUNK = 128, 16
MEMORY = 12 * 2**20


@dataclasses.dataclass(frozen=True)
class Heads:
    """``count`` heads side by side in the last axis, and products of each with its own.

    The second factor is set apart, every head in its own rows with zeros beside it, so that a product of whole matrices
    is that of every head.
    """

    count: int

    def apart(self, x_CM: jax.Array) -> jax.Array:
        """(count * C, M): the block-diagonal matrix of the heads."""
        return jnp.concatenate([jnp.where(own, x_CM, 0) for own in self._lanes(x_CM.shape)])

    def times(self, a_RC: jax.Array, b_CM: jax.Array) -> jax.Array:
        """``a b`` of every head, (R, M)."""
        return _dot(a_RC, self.apart(b_CM), 1, 0)

    def times_transposed(self, a_RM: jax.Array, b_CM: jax.Array) -> jax.Array:
        """``a b'`` of every head, (R, count * C)."""
        return _dot(a_RM, self.apart(b_CM), 1, 1)

    def transposed_times(self, a_CV: jax.Array, b_CK: jax.Array) -> jax.Array:
        """``a' b`` of every head, (V / count, K)."""
        rows = jnp.split(_dot(a_CV, b_CK, 0, 0), self.count)
        return sum(jnp.where(own, x, 0) for own, x in zip(self._lanes(rows[0].shape), rows, strict=True))

    def spread(self, columns: Sequence[jax.Array], width: int) -> jax.Array:
        """A column (C, 1) of every head over its lanes, (C, count * width)."""
        lanes = self._lanes((columns[0].shape[0], self.count * width))
        return sum(jnp.where(own, x, 0) for own, x in zip(lanes, columns, strict=True))

    def pairs(self, tokens: int) -> tuple[jax.Array, jax.Array]:
        """Numbers of the tokens ``i`` and ``j`` at ``[i, j]`` of every head, (C, count * C); C is a power of two."""
        shape = tokens, self.count * tokens
        return _iota(shape, 0), _iota(shape, 1) & (tokens - 1)

    def _lanes(self, shape: tuple[int, int]) -> list[jax.Array]:
        lane, width = _iota(shape, 1), shape[1] // self.count
        return [(lane >= h * width) & (lane < (h + 1) * width) for h in range(self.count)]


# Of the heads of a tile, the states (V, K) before a chunk, its wide arrays (C, M) and the columns of its narrow ones.
Inside = Callable[..., tuple[jax.Array, jax.Array]]


def sizes_of_halves(tokens: int) -> Iterator[int]:
    """1, 2, 4 ... up to half of the tokens, a power of two."""
    return (1 << level for level in range(tokens.bit_length() - 1))


def second_half(shape: tuple[int, ...], s: int) -> jax.Array:
    """True at the tokens, the first axis, that are in the second of two halves of ``s``."""
    return _iota(shape, 0) & s != 0


def halves(x_CM: Float[Array, "C M"]) -> Iterator[tuple[Float[Array, "C M"], Float[Array, "C M"]]]:
    """Sums over the tokens of a chunk cut into pieces of 1, 2, 4 ... C tokens, a power of two.

    Nothing is subtracted: beside sums of -1000 small ones keep all their digits.

    Yields:
        The sums from the start of a token's piece up to and with it, and those after it to the piece's end.
    """
    from_start_CM, to_end_CM = x_CM, jnp.zeros_like(x_CM)
    yield from_start_CM, to_end_CM
    for s in sizes_of_halves(len(x_CM)):
        second, other_CM = second_half(x_CM.shape, s), _other_half(from_start_CM + to_end_CM, s)
        from_start_CM += jnp.where(second, other_CM, 0)
        to_end_CM += jnp.where(second, 0, other_CM)
        yield from_start_CM, to_end_CM


def sums(x_CM: Float[Array, "C M"]) -> tuple[Float[Array, "C M"], Float[Array, "C M"]]:
    """Sums up to every token and with it, and after it."""
    *_, found = halves(x_CM)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _other_half(x_CM, s):
    """The row ``i + s`` in the first of two halves, ``i - s`` in the second; its own transpose."""
    return jnp.where(second_half(x_CM.shape, s), pltpu.roll(x_CM, s, 0), pltpu.roll(x_CM, len(x_CM) - s, 0))


_other_half.defvjp(lambda x_CM, s: (_other_half(x_CM, s), None), lambda s, _, dy_CM: (_other_half(dy_CM, s),))


def fault(heads: int, K: int, V: int, chunk: int) -> str | None:
    """Why there is no kernel for so many heads of these sizes, and what to do; None if there is one."""
    G, C = _together(heads, K, V), _size(chunk)
    # Arrays of a chunk twice, as they are read and written, and those that the derivative of a chunk holds.
    tokens = 4 * C * (G * (2 * K + V) * 4 + C.bit_length() * G * (4 * K + 2 * C))
    states = 4 * heads * K * V * 4
    if tokens + states <= MEMORY:
        return None
    what = f"{heads} heads of {K} by {V} in chunks of {chunk}"
    return f"{what} are too large for the kernel of chunks; take smaller ones, or implementation 'xla'"


def scan(
    inside: Inside,
    s0_BHKV: Float[Array, "B H K V"],
    wide: Sequence[Float[Array, "B T H M"]],
    narrow: Sequence[Float[Array, "B T H"]],
    *,
    chunk: int,
    batch_sharding: Sharding | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """``inside`` from chunk to chunk.

    Args:
        inside: function of :class:`Heads`, float32 states (V, K), arrays (C, M) in float32 and columns (C, 1), to the
            states after the chunk and its output (C, V).
        s0_BHKV: states before the first token, float32.
        wide: inputs with channels; values are the third.
        narrow: inputs with one number for each head.
        chunk: tokens of a chunk, rounded up to a power of two of at least :data:`LEAST_CHUNK`.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows. The mesh's
            other axes slice the heads where they divide them.

    Returns:
        Output in the dtype of the values, and the states after the last token.

    Raises:
        ConfigError: there is no kernel for these heads, see :func:`fault`, or for their dtype.
    """
    (_, T, H, K), V = wide[0].shape, wide[2].shape[-1]
    if reason := fault(H, K, V, chunk):
        raise ConfigError(reason)
    for x in (s0_BHKV, *wide, *narrow):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise ConfigError(f"the kernel of chunks takes float32 or bfloat16, not {x.dtype}; take such a policy")
    rows, others = axes(batch_sharding)
    by_head = tuple(others) if H % math.prod(others.values()) == 0 else None
    tokens, states = PartitionSpec(rows, None, by_head), PartitionSpec(rows, by_head)
    run = functools.partial(_on_one_device, inside, _size(min(chunk, T)))
    return by_device(run, batch_sharding, (states, tokens, tokens), (tokens, states))(s0_BHKV, tuple(wide), tuple(narrow))


def _size(chunk: int) -> int:
    return max(LEAST_CHUNK, 1 << (chunk - 1).bit_length())


def _together(heads: int, K: int, V: int) -> int:
    """Heads that fill whole lanes side by side; all of them if no fewer do."""
    fills = (G for G in range(1, heads) if heads % G == G * K % LANES == G * V % LANES == 0)
    return next(fills, heads)


def _on_one_device(inside, C, s0_BHKV, wide, narrow):
    (B, T, H, K), V = wide[0].shape, wide[2].shape[-1]
    G = _together(H, K, V)

    def laid(x):
        return jnp.pad(x.reshape(B, T, -1), ((0, 0), (0, -T % C), (0, 0)))

    s0 = jnp.moveaxis(s0_BHKV.reshape(B, H // G, G, K, V), -1, 2).reshape(B, H // G, V, G * K)
    y, s = _over_chunks(inside, G, C, s0, tuple(map(laid, wide)), tuple(map(laid, narrow)))
    s_BHKV = jnp.moveaxis(s.reshape(B, H // G, V, G, K), 2, -1).reshape(B, H, K, V)
    return y[:, :T].reshape(B, T, H, V), s_BHKV


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _over_chunks(inside, G, C, s0, wide, narrow):
    """Outputs (B, T, H V), and the last states (B, H / G, V, G K)."""
    y, s, *_ = _forth(inside, G, C, s0, wide, narrow, keep=False)
    return y, s


def _forward(inside, G, C, s0, wide, narrow):
    y, s, before = _forth(inside, G, C, s0, wide, narrow, keep=True)
    return (y, s), (before, wide, narrow)


def _forth(inside, G, C, s0, wide, narrow, keep):
    step, W = functools.partial(_of_group, inside, G), len(wide)

    def kernel(s0, *refs):
        given, (y, s, *before) = refs[: W + len(narrow)], refs[W + len(narrow) :]
        n, p = pl.program_id(1), pl.program_id(2)

        @pl.when(n == 0)
        def _():
            s[p] = s0[p]

        for ref in before:
            ref[...] = s[p]
        pieces = [ref[...] for ref in given]
        s[p], y_CV = step(p, s[p], pieces[:W], pieces[W:])
        y[...] = y_CV.astype(y.dtype)

    grid = _Grid.of(s0, wide[2], C, reverse=False)
    made = [(grid.wide(wide[2]), wide[2]), (grid.states(s0), s0)]
    if keep:
        before = jax.ShapeDtypeStruct((s0.shape[0], grid.chunks, *s0.shape[1:]), s0.dtype)
        made.append((grid.before(before), before))
    given = [(grid.states(s0), s0), *((grid.wide(x), x) for x in wide), *((grid.narrow(x), x) for x in narrow)]
    return grid.call(kernel, given, made)


def _backward(inside, G, C, saved, cotangents):
    (before, wide, narrow), (dy, ds_last) = saved, cotangents
    W = len(wide)

    def step(p, ds_VK, dy_CV, s_VK, wide, narrow):
        _, pull = jax.vjp(functools.partial(_of_group, inside, G, p), s_VK, wide, narrow)
        return pull((ds_VK, dy_CV.astype(jnp.float32)))

    def kernel(ds_last, dy, before, *refs):
        inputs = W + len(narrow)
        given, made, ds = refs[:inputs], refs[inputs:-1], refs[-1]
        n, p = pl.program_id(1), pl.program_id(2)

        @pl.when(n == 0)
        def _():
            ds[p] = ds_last[p]

        pieces = [ref[...] for ref in given]
        ds[p], dwide, dnarrow = step(p, ds[p], dy[...], before[...], pieces[:W], pieces[W:])
        for ref, x in zip(made[:W], dwide, strict=True):
            ref[...] = x
        for ref, x in zip(made[W:], dnarrow, strict=True):
            ref[...] = jnp.where(p == 0, x, ref[...] + x)

    grid = _Grid.of(ds_last, dy, C, reverse=True)
    inputs = [*((grid.wide(x), x) for x in wide), *((grid.narrow(x), x) for x in narrow)]
    states = grid.states(ds_last), ds_last
    given = [states, (grid.wide(dy), dy), (grid.before(before), before), *inputs]
    *dinputs, ds0 = grid.call(kernel, given, [*inputs, states])
    return ds0, tuple(dinputs[:W]), tuple(dinputs[W:])


_over_chunks.defvjp(_forward, _backward)


def _of_group(inside, G, p, s_VK, wide, narrow):
    """``inside`` for the heads of group ``p``, of which narrow arrays (C, H) have all."""
    columns = [
        [
            jnp.sum(jnp.where(_iota(x_CH.shape, 1) == p * G + h, x_CH.astype(jnp.float32), 0), axis=1, keepdims=True)
            for h in range(G)
        ]
        for x_CH in narrow
    ]
    return inside(Heads(G), s_VK, *(x_CM.astype(jnp.float32) for x_CM in wide), *columns)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Sequences, the chunks of each, and the groups of heads of each chunk, which share its narrow arrays."""

    sequences: int
    chunks: int
    groups: int
    chunk: int
    reverse: bool

    @classmethod
    def of(cls, states, tokens, C, reverse):
        return cls(states.shape[0], tokens.shape[1] // C, states.shape[1], C, reverse)

    def wide(self, x):
        return self._block((self.chunk, x.shape[-1] // self.groups), lambda b, n, p: (b, n, p))

    def narrow(self, x):
        return self._block((self.chunk, x.shape[-1]), lambda b, n, p: (b, n, 0))

    def states(self, x):
        """All heads' at once: they stay in the kernel's memory over a whole sequence."""
        return self._block(x.shape[1:], lambda b, n, p: (b, 0, 0, 0))

    def before(self, x):
        return self._block((None, None, *x.shape[3:]), lambda b, n, p: (b, n, p, 0, 0))

    def _block(self, shape, index):
        at = (lambda b, n, p: index(b, self.chunks - 1 - n, p)) if self.reverse else index
        return pl.BlockSpec((None, *shape), at)

    def call(self, kernel, given, made):
        """``kernel`` at every step on blocks of arrays, read and written, each with its specification."""
        (in_specs, arrays), (out_specs, results) = (zip(*pairs, strict=True) for pairs in (given, made))
        return pl.pallas_call(
            kernel,
            grid=(self.sequences, self.chunks, self.groups),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
            interpret=target_backend() != "tpu",
        )(*arrays)


def _dot(a, b, of_a, of_b):
    """The product of two matrices over those axes, in float32."""
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)


def _iota(shape, axis):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
