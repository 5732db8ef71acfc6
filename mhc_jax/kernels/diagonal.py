"""The diagonal state-space layer on TPUs in one kernel forward and one backward, which touch every array once.

A register holds eight tokens of 128 channels, over which the recurrence is three doubling steps; the state behind them
goes to the next eight. Forward the state before every chunk is kept, from which the backward kernel computes the states
of the chunk again while it walks over chunks in reverse.

Sums are in float32 whatever the input. The kernels of GPUs are in :mod:`mhc_jax.kernels.diagonal_gpu`; elsewhere
kernels are interpreted, which is slow.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Bool, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels import diagonal_gpu
from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.interpretation import is_interpreted
from mhc_jax.kernels.sharding import axes, by_device

LANES, ROWS = 128, 8
# Tokens of a chunk, and of a step within it: a register of bfloat16 has sixteen rows.
CHUNK, LEAST_CHUNK, STEP = 256, 16, 16
# Tokens over which the steps of a register reach.
DOUBLING = 1, 2, 4
# Of a chunk in the kernel's memory. Independent work for units that otherwise wait for each other.
MOST_CHANNELS = 1024


def fault(channels: int, dtype: Any) -> str | None:
    """Why there is no kernel for so many channels of this dtype, and what to do; None if there is one."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        what = f"the diagonal recurrence's kernel takes float32 or bfloat16, not {jnp.dtype(dtype)}"
        return f"{what}; take such a policy, or implementation 'xla'"
    if channels % LANES:
        what = f"the diagonal recurrence's kernel takes multiples of {LANES} channels, not {channels}"
        return f"{what}; take such a width, or implementation 'xla'"
    return None


def whole(tokens: int) -> int:
    """How many of them the kernels take, in chunks of one size; the last ones, an eighth at most or 15, are XLA's."""
    sizes = (size for size in (CHUNK, 128, 64, 32, LEAST_CHUNK) if tokens % size <= max(tokens // 8, LEAST_CHUNK - 1))
    return tokens - tokens % next(sizes)


def _chunk_of(tokens):
    """The largest that divides them."""
    return min(CHUNK, tokens & -tokens)


def scan(
    u_BTD: Float[Array, "B T D"],
    gains_4D: Float[Array, "4 D"],
    s0_BD: Float[Array, "B D"],
    reset_BT: Bool[Array, "B T"] | None,
    batch_sharding: Sharding | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """:func:`mhc_jax.ops.diag_ssm.diag_ssm` for :func:`whole` chunks of tokens.

    Args:
        gains_4D: a, b, c and d of every channel, float32.
        s0_BD: states before the first token, float32.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows. The mesh's
            other axes slice the channels where these stay multiples of :data:`LANES`.

    Returns:
        Output in the dtype of the input, and the states after the last token.

    Raises:
        ConfigError: there is no kernel for these channels or this dtype, see :func:`fault`.
    """
    if reason := fault(u_BTD.shape[-1], u_BTD.dtype):
        raise ConfigError(reason)
    rows, others = axes(batch_sharding)
    split = u_BTD.shape[-1] % (LANES * math.prod(others.values())) == 0
    channels = tuple(others) if split else None
    tokens, states = PartitionSpec(rows, None, channels), PartitionSpec(rows, channels)
    keep_B2T = None if reset_BT is None else _keep(reset_BT)
    specs = tokens, PartitionSpec(None, channels), states, PartitionSpec(rows)
    return by_device(_recur, batch_sharding, specs, (tokens, states))(u_BTD, gains_4D, s0_BD, keep_B2T)


def _keep(reset_BT):
    """First a row that is 0 at resets, then one that is 0 at the tokens before them."""
    keep_BT = 1 - reset_BT.astype(jnp.float32)
    return jnp.stack([keep_BT, jnp.pad(keep_BT[:, 1:], ((0, 0), (0, 1)), constant_values=1)], axis=1)


@jax.custom_vjp
def _recur(u_BTD, gains_4D, s0_BD, keep_B2T):
    return _forward(u_BTD, gains_4D, s0_BD, keep_B2T)[0]


def _forward(u_BTD, gains_4D, s0_BD, keep_B2T):
    forth = diagonal_gpu.forth if target_backend() == "gpu" else _forth
    y_BTD, before_BND, s_BD = forth(u_BTD, gains_4D, s0_BD, keep_B2T)
    return (y_BTD, s_BD), (u_BTD, gains_4D, before_BND, keep_B2T)


def _backward(saved, cotangents):
    back = diagonal_gpu.back if target_backend() == "gpu" else _back
    du_BTD, dgains_B4D, dh_BD = back(*saved, *cotangents)
    dgains_4D, keep_B2T = jnp.sum(dgains_B4D, axis=0), saved[-1]
    if keep_B2T is None:
        return du_BTD, dgains_4D, dh_BD, None
    return du_BTD, dgains_4D, keep_B2T[:, 0, :1] * dh_BD, jnp.zeros_like(keep_B2T)


_recur.defvjp(_forward, _backward)


def _forth(u_BTD, gains_4D, s0_BD, keep_B2T):
    """Output, states before each chunk, and those after the last token."""

    def kernel(u, gains, s0, keep, y, before, s, upright):
        a, b, c, d = _rows(gains)
        _turn(keep, upright)
        powers = _powers(a, upright, 0)
        _first(s, s0)
        before[...] = s[...]

        def step(i, s_1D):
            at, u_SD, found = _step(i), *_read(i, u), []
            for k in range(0, STEP, ROWS):
                u_RD = u_SD[k : k + ROWS]
                after = _walk(powers(at + k), b * u_RD, s_1D)
                s_1D = after[-1:]
                found.append(c * after + d * u_RD)
            y[pl.ds(at, STEP), :] = jnp.concatenate(found).astype(y.dtype)
            return s_1D

        s[...] = jax.lax.fori_loop(0, len(u) // STEP, step, s[...], unroll=True)

    (B, T, D), s0_B1D = u_BTD.shape, s0_BD[:, None]
    before = jax.ShapeDtypeStruct((B, T // _chunk_of(T), 1, D), jnp.float32)
    y, before_BND, s_B1D = _call(
        kernel,
        [("tokens", u_BTD), ("gains", gains_4D), ("states", s0_B1D), ("keep", keep_B2T)],
        [("tokens", u_BTD), ("before", before), ("states", s0_B1D)],
        "diagonal",
    )
    return y, before_BND, s_B1D[:, 0]


def _back(u_BTD, gains_4D, before_BND, keep_B2T, dy_BTD, ds_BD):
    """Cotangents of the input, of the gains for each sequence, and of the first states, unless reset at once."""

    def kernel(u, dy, gains, before, ds_last, keep, du, dgains, dh, upright, states):
        a, b, c, d = _rows(gains)
        _turn(keep, upright)
        forward, backward = _powers(a, upright, 0), _powers(a, upright, 1, reverse=True)
        _first(dh, ds_last)
        row, steps = _row(a.shape), len(u) // STEP
        a_c, b_over_a = a * c, b / a

        def forth(i, s_1D):
            at, u_SD = _step(i), *_read(i, u)
            for k in range(0, STEP, ROWS):
                powers = forward(at + k)
                after = _walk(powers, b * u_SD[k : k + ROWS], s_1D)
                s_RD = jnp.where(row == 0, s_1D, pltpu.roll(after, 1, 0))
                states[pl.ds(at + k, ROWS), :] = s_RD if keep is None else jnp.where(powers.decay == 0, 0, s_RD)
                s_1D = after[-1:]
            return s_1D

        jax.lax.fori_loop(0, steps, forth, before[...], unroll=True)

        # h is a times the cotangent of the state after a token: h_t = a (c dy_t + keep_{t+1} h_{t+1}).
        def back(i, carry):
            (h_1D, sums), i, found = carry, steps - 1 - i, []
            at, (u_SD, dy_SD) = _step(i), _read(i, u, dy)
            for k in reversed(range(0, STEP, ROWS)):
                u_RD, dy_RD, s_RD = u_SD[k : k + ROWS], dy_SD[k : k + ROWS], states[pl.ds(at + k, ROWS), :]
                h = _walk(backward(at + k), a_c * dy_RD, h_1D, reverse=True)
                h_1D = h[:1]
                found.insert(0, b_over_a * h + d * dy_RD)
                shares = h * s_RD, h * u_RD, dy_RD * s_RD, dy_RD * u_RD
                sums = [x + y for x, y in zip(sums, shares, strict=True)]
            du[pl.ds(at, STEP), :] = jnp.concatenate(found).astype(du.dtype)
            return h_1D, sums

        zeros = [jnp.zeros(a.shape, a.dtype)] * 4
        dh[...], sums = jax.lax.fori_loop(0, steps, back, (dh[...], zeros), unroll=True)
        h_s, h_u, dy_s, dy_u = (jnp.sum(x, axis=0, keepdims=True) for x in sums)
        a, b = a[:1], b[:1]
        total = jnp.concatenate([h_s / a, h_u / a, a * dy_s + b * dy_u, dy_u])
        dgains[...] = total + jnp.where(pl.program_id(2) == 0, 0, dgains[...])

    ds_B1D = ds_BD[:, None]
    dgains = jax.ShapeDtypeStruct((len(u_BTD), *gains_4D.shape), jnp.float32)
    du, dgains_B4D, dh_B1D = _call(
        kernel,
        [
            ("tokens", u_BTD),
            ("tokens", dy_BTD),
            ("gains", gains_4D),
            ("before", before_BND),
            ("states", ds_B1D),
            ("keep", keep_B2T),
        ],
        [("tokens", u_BTD), ("states", dgains), ("states", ds_B1D)],
        "diagonal_backward",
        reverse=True,
    )
    return du, dgains_B4D, dh_B1D[:, 0]


class _Powers(NamedTuple):
    """Of eight tokens: their decays, those over 1, 2 and 4 of them, and those from each to the border before it."""

    decay: jax.Array
    doubling: list[jax.Array]
    to_border: jax.Array

    @classmethod
    def of(cls, decay, reverse):
        power, doubling = decay, []
        for size in DOUBLING:
            doubling.append(power)
            power = power * _from_before(power, size, reverse, 1)
        return cls(decay, doubling, power)


def _turn(keep, upright):
    """Its rows as columns, if there are resets."""
    if keep is not None:
        upright[...] = keep[...].T


def _powers(a, upright, column, reverse=False):
    """The :class:`_Powers` of the eight tokens from a place on, with resets where a column of ``upright`` is 0."""
    if upright is None:
        powers = _Powers.of(a, reverse)
        return lambda at: powers
    return lambda at: _Powers.of(a * upright[pl.ds(at, ROWS), column : column + 1], reverse)


def _walk(powers, x_RD, s_1D, reverse=False):
    """The states after eight tokens, or, if ``reverse``, from the last to the first."""
    for size, decay in zip(DOUBLING, powers.doubling, strict=True):
        x_RD = x_RD + decay * _from_before(x_RD, size, reverse, 0)
    return x_RD + powers.to_border * s_1D


def _from_before(x_RD, size, reverse, outside):
    """What the token ``size`` places before each has, or, if ``reverse``, behind it; ``outside`` beyond the border.

    Not zero times what lies there: it may be no number.
    """
    row = _row(x_RD.shape)
    inside = row < ROWS - size if reverse else row >= size
    return jnp.where(inside, pltpu.roll(x_RD, ROWS - size if reverse else size, 0), outside)


def _row(shape):
    return jax.lax.broadcasted_iota(jnp.int32, shape, 0)


def _rows(gains):
    """Each gain in all rows of a register."""
    return [jnp.broadcast_to(gains[k : k + 1, :], (ROWS, gains.shape[1])) for k in range(4)]


def _step(i):
    return pl.multiple_of(i * STEP, STEP)


def _read(i, *refs):
    return [ref[pl.ds(_step(i), STEP), :].astype(jnp.float32) for ref in refs]


def _first(states, start):
    """Before the first chunk of a sequence."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        states[...] = start[...]


def _call(kernel, given, made, name, reverse=False):
    """``kernel`` on blocks of arrays, read and written, each with its kind; None stays None.

    The last of ``given`` are the rows of ``keep``. The kernel's last arguments are memory for these upright and, if
    ``reverse``, for the states of a chunk.
    """
    B, T, D = given[0][1].shape
    chunk, width = _chunk_of(T), max(w for w in range(LANES, MOST_CHANNELS + 1, LANES) if D % w == 0)
    grid = B, D // width, T // chunk

    def block(kind, x):
        shape = {
            "tokens": (None, chunk, width),
            "gains": (4, width),
            "states": (None, x.shape[1], width),
            "before": (None, None, 1, width),
            "keep": (None, 2, chunk),
        }[kind]

        def index(b, m, n):
            n = grid[2] - 1 - n if reverse else n
            return {
                "tokens": (b, n, m),
                "gains": (0, m),
                "states": (b, 0, m),
                "before": (b, n, 0, m),
                "keep": (b, 0, n),
            }[kind]

        return pl.BlockSpec(shape, index)

    def blocks(pairs):
        return [None if x is None else block(kind, x) for kind, x in pairs]

    arrays, results = ([x for _, x in pairs] for pairs in (given, made))
    upright = None if arrays[-1] is None else pltpu.VMEM((chunk, 2), jnp.float32)
    run = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=blocks(given),
        out_specs=blocks(made),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        scratch_shapes=[upright, *[pltpu.VMEM((chunk, width), jnp.float32)] * reverse],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=(60 if reverse else 12) * B * T * D,
            transcendentals=0,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results) if x is not None),
        ),
        interpret=is_interpreted(),
        name=name,
    )
    return not_differentiable(run)(*arrays)
