"""Recurrences with a matrix state, chunk after chunk in one kernel that touches every array once.

What a chunk computes is a function of the state before it and of its tokens, ``inside``. On a TPU the kernel keeps the
states of all heads of a sequence in its memory; under differentiation it also writes those between chunks, and the
backward kernel walks over the chunks in reverse with the derivative of ``inside`` from them. GPUs have
:mod:`mhc_jax.kernels.chunks_gpu`.

Several heads share the lanes of a tile: heads of 64 lie two by two beside each other, see
:class:`mhc_jax.kernels.heads.Heads`. A state is kept transposed, (V, K) for each head, so that decays of keys are by
lane.

Sums are in float32 whatever the inputs. Factors of products are rounded to 16 bits, as a TPU does by default, unless
products of the highest precision are asked for. On a CPU the kernels are interpreted, which is slow, and round nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels import chunks_gpu
from mhc_jax.kernels.derivatives import from_chunk_to_chunk, not_differentiable
from mhc_jax.kernels.heads import Heads, iota
from mhc_jax.kernels.interpretation import is_interpreted
from mhc_jax.kernels.products import wants_exact_factors
from mhc_jax.kernels.sharding import axes, by_device

LANES, LEAST_CHUNK = 128, 16
MEMORY = 12 * 2**20


# Of the heads of a tile, with their operations, the states (V, K) before a chunk, its wide arrays (C, M) and the
# columns of its narrow ones.
Inside = Callable[..., tuple[jax.Array, jax.Array]]


def fault(heads: int, K: int, V: int, chunk: int, dtype: Any, wide: int, target: str | None) -> str | None:
    """Why that platform has no kernel for so many heads of these sizes and dtype, and what to do; None if it has one.

    Args:
        wide: number of inputs with channels, see :func:`scan`.
        target: as :func:`mhc_jax.backend.stated_backend` returns it; if it is not known, one of them has to have it.
    """
    if dtype not in (jnp.float32, jnp.bfloat16):
        what = f"the kernel of chunks takes float32 or bfloat16, not {jnp.dtype(dtype)}"
        return f"{what}; take such a policy, or implementation 'xla'"
    of_gpu = chunks_gpu.fault(K, wide)
    if target == "gpu" or (target is None and of_gpu is None):
        return of_gpu
    plan, what = _Plan.of(None, None, chunk, heads, K, V), f"{heads} heads of {K} by {V} in chunks of {chunk}"
    C, G, U, K, V = plan.chunk, plan.heads, plan.together, _width(K), _width(V)
    # Arrays of a chunk twice, as they are read and written, and those that the derivative of a chunk holds.
    tokens = 4 * C * U * G * (4 * (2 * K + V) + C.bit_length() * (4 * K + 2 * C))
    states = 4 * plan.groups * G * K * V * 4
    if tokens + states <= MEMORY:
        return None
    return f"{what} are too large for the kernel of chunks; take smaller heads or chunks, or implementation 'xla'"


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
        inside: function of :class:`Heads`, or a GPU's :class:`mhc_jax.kernels.tile_gpu.Tile`, float32 states (V, K),
            arrays (C, M) in float32 and lists of columns, (C, 1) or a GPU's (C,), to the states after the chunk and its
            output (C, V).
        s0_BHKV: states before the first token, float32.
        wide: inputs with channels: queries, which ``inside`` gets divided by the root of K, keys, values and others.
        narrow: inputs with one number for each head.
        chunk: tokens of a chunk, rounded up to a power of two of at least :data:`LEAST_CHUNK`; on a GPU 64 in any case.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows. The mesh's
            other axes slice the heads where they divide them.

    Returns:
        Output in the dtype of the values, on a GPU of no more than 16 digits, and the states after the last token.

    Raises:
        ConfigError: there is no kernel for these heads, see :func:`fault`.
    """
    (_, T, H, K), V = wide[0].shape, wide[2].shape[-1]
    for x in (s0_BHKV, *wide, *narrow):
        if reason := fault(H, K, V, chunk, x.dtype, len(wide), target_backend()):
            raise ConfigError(reason)

    rows, others = axes(batch_sharding)
    by_head = tuple(others) if H % math.prod(others.values()) == 0 else None
    tokens, states = PartitionSpec(rows, None, by_head), PartitionSpec(rows, by_head)
    if target_backend() == "gpu":
        if wants_exact_factors():
            raise ConfigError(chunks_gpu.ROUNDS)
        run = functools.partial(chunks_gpu.run, inside)
    else:
        factor = jnp.float32 if is_interpreted() or wants_exact_factors() else jnp.bfloat16
        run = functools.partial(_on_one_device, inside, factor, min(chunk, T))
    sliced = by_device(run, batch_sharding, (states, tokens, tokens), (tokens, states))
    return sliced(s0_BHKV, tuple(wide), tuple(narrow))


def _on_one_device(inside, factor, chunk, s0_BHKV, wide, narrow):
    """Tokens, heads and channels are filled up with zeros, which change no state."""
    B, T = wide[0].shape[:2]
    _, H, K, V = s0_BHKV.shape
    plan = _Plan.of(inside, factor, chunk, H, K, V)
    P, G, whole_K, whole_V = plan.groups, plan.heads, _width(K), _width(V)
    tokens = -(-T // plan.chunk) * plan.chunk

    def filled(x, *shape):
        return jnp.pad(x, [(0, size - found) for found, size in zip(x.shape, shape, strict=True)])

    def laid(x):
        return filled(x, B, tokens, P * G, *map(_width, x.shape[3:])).reshape(B, tokens, -1)

    s0 = filled(s0_BHKV, B, P * G, whole_K, whole_V).reshape(B, P, G, whole_K, whole_V)
    s0 = jnp.moveaxis(s0, -1, 2).reshape(B, P, whole_V, G * whole_K)
    found: Any = from_chunk_to_chunk(_forth, _back, plan, s0, tuple(map(laid, wide)), tuple(map(laid, narrow)))
    y, s = found
    s_BHKV = jnp.moveaxis(s.reshape(B, P, whole_V, G, whole_K), 2, -1).reshape(B, P * G, whole_K, whole_V)
    return y.reshape(B, tokens, P * G, whole_V)[:, :T, :H, :V], s_BHKV[:, :H, :K, :V]


def _width(channels: int) -> int:
    """Of a head that fills whole lanes, alone or with others."""
    return -(-channels // LANES) * LANES if channels > LANES else 1 << (channels - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a chunk computes, how many tokens make one and heads a group, all groups, and those of a step of the grid.

    Two groups in a step are independent work for units that otherwise wait for each other.
    """

    inside: Any
    factor: Any
    scale: float
    chunk: int
    heads: int
    groups: int
    together: int

    @classmethod
    def of(cls, inside, factor, chunk, heads, K, V):
        G = min(heads, max(1, LANES // _width(K), LANES // _width(V)))
        groups = -(-heads // G)
        size = max(LEAST_CHUNK, 1 << (chunk - 1).bit_length())
        return cls(inside, factor, K**-0.5, size, G, groups, 1 if groups % 2 else 2)

    def groups_of_step(self):
        """Their numbers."""
        return [pl.program_id(2) * self.together + u for u in range(self.together)]

    def parts(self, refs):
        """For each group of a step its lanes of wide arrays."""
        widths = [ref.shape[-1] // self.together for ref in refs]
        return [[ref.at[:, pl.ds(u * M, M)] for ref, M in zip(refs, widths, strict=True)] for u in range(self.together)]

    def run(self, p, s_VK, wide, narrow):
        """``inside`` for the heads of group ``p``; narrow arrays (C, H) have all heads."""
        heads = [p * self.heads + h for h in range(self.heads)]
        columns = [
            [jnp.sum(jnp.where(iota(x_CH.shape, 1) == h, x_CH, 0), axis=1, keepdims=True) for h in heads]
            for x_CH in (x_CH.astype(jnp.float32) for x_CH in narrow)
        ]
        q_CK, *others = (x_CM.astype(jnp.float32) for x_CM in wide)
        return self.inside(Heads(self.heads, self.factor), s_VK, self.scale * q_CK, *others, *columns)

    def call(self, kernel, step, given, made, name, reverse=False):
        """``kernel`` on blocks of arrays, read and written, each with its kind, see :meth:`_block`.

        It does ``step(group, *pieces)`` for every group of heads.
        """
        B, T, _ = made[0][1].shape
        N, P = T // self.chunk, self.groups
        grid = B, N, P // self.together
        in_specs, out_specs = ([self._block(kind, x, grid, reverse) for kind, x in pairs] for pairs in (given, made))
        arrays, results = ([x for _, x in pairs] for pairs in (given, made))
        cost = pl.estimate_cost(functools.partial(step, 0), *(self._piece(*pair) for pair in given))
        run = pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
            cost_estimate=pl.CostEstimate(
                flops=B * N * P * cost.flops,
                transcendentals=B * N * P * cost.transcendentals,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results)),
            ),
            interpret=is_interpreted(),
            name=name,
        )
        return not_differentiable(run)(*arrays)

    def _piece(self, kind, x):
        """What a group gets of an array."""
        tokens = self.chunk, x.shape[-1] // (1 if kind == "narrow" else self.groups)
        return jax.ShapeDtypeStruct(tokens if kind in ("wide", "narrow") else x.shape[-2:], x.dtype)

    def _block(self, kind, x, grid, reverse):
        """Of wide arrays a chunk of the step's groups, of narrow ones that of all, which these share.

        The states of all groups stay in the kernel's memory over a sequence; of those before each chunk there are
        those of the step.
        """
        _, chunks, steps = grid
        C, M = self.chunk, x.shape[-1]
        states = None, self.together, *x.shape[-2:]
        shape = {"wide": (C, M // steps), "narrow": (C, M), "states": x.shape[1:], "before": states}[kind]

        def index(b, n, p):
            n = chunks - 1 - n if reverse else n
            return b, *{"wide": (n, p), "narrow": (n, 0), "states": (0, 0, 0), "before": (n, p, 0, 0)}[kind]

        return pl.BlockSpec((None, *shape), index)


def _forth(plan, s0, wide, narrow, keep):
    """Outputs (B, T, H V), and the last states (B, H / G, V, G K)."""
    W = len(wide)

    def step(p, s_VK, *pieces):
        return plan.run(p, s_VK, pieces[:W], pieces[W:])

    def kernel(s0, *refs):
        given, (y, *before, s) = refs[: W + len(narrow)], refs[W + len(narrow) :]
        groups, shared = plan.groups_of_step(), [ref[...] for ref in given[W:]]
        _first(s, s0, groups)
        for ref in before:
            for u, p in enumerate(groups):
                ref[u] = s[p]
        found = [
            step(p, s[p], *(ref[...] for ref in parts), *shared)
            for p, parts in zip(groups, plan.parts(given[:W]), strict=True)
        ]
        for p, (ref,), (s_VK, y_CV) in zip(groups, plan.parts([y]), found, strict=True):
            s[p], ref[...] = s_VK, y_CV.astype(y.dtype)

    made = [("wide", wide[2]), ("states", s0)]
    if keep:
        B, T, _ = wide[0].shape
        made.insert(1, ("before", jax.ShapeDtypeStruct((B, T // plan.chunk, *s0.shape[1:]), s0.dtype)))
    return plan.call(kernel, step, [("states", s0), *_inputs(wide, narrow)], made, "chunks")


def _back(plan, before, wide, narrow, dy, ds_last):
    W = len(wide)

    def step(p, ds_VK, s_VK, dy_CV, *pieces):
        _, pull = jax.vjp(functools.partial(plan.run, p), s_VK, pieces[:W], pieces[W:])
        return pull((ds_VK, dy_CV.astype(jnp.float32)))

    def kernel(ds_last, before, *refs):
        given, made, ds = refs[: 1 + W + len(narrow)], refs[1 + W + len(narrow) : -1], refs[-1]
        groups, shared = plan.groups_of_step(), [ref[...] for ref in given[1 + W :]]
        _first(ds, ds_last, groups)
        found = [
            step(p, ds[p], before[u], *(ref[...] for ref in parts), *shared)
            for u, (p, parts) in enumerate(zip(groups, plan.parts(given[: 1 + W]), strict=True))
        ]
        for p, parts, (ds_VK, dwide, _) in zip(groups, plan.parts(made[:W]), found, strict=True):
            ds[p] = ds_VK
            for ref, x in zip(parts, dwide, strict=True):
                ref[...] = x
        for ref, *shares in zip(made[W:], *(dnarrow for *_, dnarrow in found), strict=True):
            ref[...] = sum(shares) + jnp.where(pl.program_id(2) == 0, 0, ref[...])

    inputs = _inputs(wide, narrow)
    given, made = [("states", ds_last), ("before", before), ("wide", dy), *inputs], [*inputs, ("states", ds_last)]
    *dinputs, ds0 = plan.call(kernel, step, given, made, "chunks_backward", reverse=True)
    return ds0, tuple(dinputs[:W]), tuple(dinputs[W:])


def _inputs(wide, narrow):
    return [*(("wide", x) for x in wide), *(("narrow", x) for x in narrow)]


def _first(states, start, groups):
    """Before the first chunk of a sequence."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        for p in groups:
            states[p] = start[p]
