"""The diagonal state-space layer as Pallas Mosaic kernels of GPUs: a thread has one channel of a chunk of tokens.

All chunks are walked at once, first to their ends from a state of zero; then, from the states that these make before
every chunk, to the output. The chunk's states stay in registers while its cotangents are walked back.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.mosaic_gpu import THREADS, over_blocks
from mhc_jax.ops.diag_scan import states_before

# Tokens of a chunk, at most; their number divides that of all tokens. No load passes a store that comes before it, so
# that tokens are loaded some at a time.
CHUNK, AT_ONCE = 64, 16


def forth(u_BTD, gains_4D, s0_BD, keep_B2T):
    """Output, states before each chunk, and those after the last token, see :mod:`mhc_jax.kernels.diagonal`."""
    chunk = min(CHUNK, u_BTD.shape[1] & -u_BTD.shape[1])
    decays = _over_chunk(gains_4D, keep_B2T, 0, chunk)
    run = functools.partial(_over_chunks, chunk, gains_4D, keep_B2T, u_BTD)

    def ends(gains, keep, rows, made):
        (u,), (a, b, _, _), s = rows, gains, jnp.zeros(THREADS)
        for t in range(chunk):
            s = keep(0, t, a) * s + b * u.load(t)
        made[0].store(0, s)

    def outputs(gains, keep, rows, made):
        (u, before), (a, b, c, d), (y,) = rows, gains, made
        s = before.load(0)
        for t, u_t in _loaded(range(chunk), u):
            s = keep(0, t, a) * s + b * u_t
            y.store(t, c * s + d * u_t)

    (ends_BND,) = run(ends, [], [(1, jnp.float32)], "diagonal_ends")
    before_BND = states_before(decays, ends_BND, s0_BD, form="associative", chunk=1)
    (y_BTD,) = run(outputs, [before_BND], [(chunk, u_BTD.dtype)], "diagonal")
    return y_BTD, before_BND, (decays if decays.ndim == 1 else decays[:, -1]) * before_BND[:, -1] + ends_BND[:, -1]


def back(u_BTD, gains_4D, before_BND, keep_B2T, dy_BTD, ds_BD):
    """Cotangents of the input, of the gains for each sequence, and of the first states, unless reset at once.

    h is a times the cotangent of the state after a token: ``h_t = a (c dy_t + keep_{t+1} h_{t+1})``.
    """
    chunk = u_BTD.shape[1] // before_BND.shape[1]
    run = functools.partial(_over_chunks, chunk, gains_4D, keep_B2T)

    def starts(gains, keep, rows, made):
        (dy,), (a, _, c, _), h = rows, gains, jnp.zeros(THREADS)
        for t in reversed(range(chunk)):
            h = a * c * dy.load(t) + keep(1, t, a) * h
        made[0].store(0, h)

    def cotangents(gains, keep, rows, made):
        (u, dy, before, after), (a, b, c, d), (du, dgains) = rows, gains, made
        s, states = before.load(0), []
        for t in range(chunk):
            decayed = keep(0, t, a) * s
            states.append(decayed)
            s = decayed + b * u.load(t)
        h, sums = after.load(0), [jnp.zeros(THREADS)] * 4
        for t, u_t, dy_t in _loaded(reversed(range(chunk)), u, dy):
            h = a * c * dy_t + keep(1, t, a) * h
            du.store(t, b / a * h + d * dy_t)
            shares = h * states[t], h * u_t, dy_t * (states[t] + b * u_t), dy_t * u_t
            sums = [x + y for x, y in zip(sums, shares, strict=True)]
        h_s, h_u, *others = sums
        for k, total in enumerate([h_s / (a * a), h_u / a, *others]):
            dgains.store(k, total)

    (starts_BND,) = run(dy_BTD, starts, [], [(1, jnp.float32)], "diagonal_starts")
    decays = _over_chunk(gains_4D, keep_B2T, 1, chunk)
    ordered = decays if decays.ndim == 1 else jnp.flip(decays, 1)
    after_BND = jnp.flip(states_before(ordered, jnp.flip(starts_BND, 1), ds_BD, form="associative", chunk=1), 1)
    made = [(chunk, u_BTD.dtype), (4, jnp.float32)]
    du_BTD, dgains_BMD = run(u_BTD, cotangents, [dy_BTD, before_BND, after_BND], made, "diagonal_backward")
    dgains_B4D = jnp.sum(dgains_BMD.reshape(len(u_BTD), -1, *gains_4D.shape), axis=1)
    dh_BD = (decays if decays.ndim == 1 else decays[:, 0]) * after_BND[:, 0] + starts_BND[:, 0]
    return du_BTD, dgains_B4D, dh_BD


def _over_chunk(gains_4D, keep_B2T, row, chunk):
    """The decays over every chunk."""
    whole_D = gains_4D[0] ** chunk
    if keep_B2T is None:
        return whole_D
    return whole_D * keep_B2T[:, row].reshape(len(keep_B2T), -1, chunk).min(-1)[..., None]


class _Rows:
    """Of an array, the rows of a chunk, of which each thread has one channel."""

    def __init__(self, ref, first, channels):
        self.ref, self.first, self.channels = ref, first, channels

    def load(self, t):
        return self.ref[self.first + t, self.channels].astype(jnp.float32)

    def store(self, t, x):
        self.ref[self.first + t, self.channels] = x.astype(self.ref.dtype)


def _loaded(tokens, *rows):
    """Each token with what it has in the rows."""
    tokens = list(tokens)
    for first in range(0, len(tokens), AT_ONCE):
        yield from [(t, *(x.load(t) for x in rows)) for t in tokens[first : first + AT_ONCE]]


def _over_chunks(chunk, gains_4D, keep_B2T, first_BTD, kernel, others, made, name):
    """``kernel`` on all chunks and channels, and the arrays (B, rows, D) that it makes.

    Args:
        first_BTD, others: arrays with as many rows for each chunk as they have all in all.
        made: rows for each chunk, and dtype, of the results.
    """
    B, T, D = first_BTD.shape
    arrays, pieces = [first_BTD, *others], T // chunk
    rows = [x.shape[1] // pieces for x in arrays] + [count for count, _ in made]

    def on_block(block, gains, keep, *refs):
        piece, channels = block // (D // THREADS), pl.ds(block % (D // THREADS) * THREADS, THREADS)
        views = [_Rows(ref, piece * count, channels) for ref, count in zip(refs, rows, strict=True)]
        sequence, start = piece // pieces, piece % pieces * chunk

        def decay(row, t, a):
            return a if keep is None else a * keep[sequence, row, start + t]

        kernel([gains[k, channels] for k in range(4)], decay, views[: len(arrays)], views[len(arrays) :])

    makes = [jax.ShapeDtypeStruct((B * pieces * count, D), dtype) for count, dtype in made]
    run = not_differentiable(over_blocks(on_block, B * pieces * (D // THREADS), makes, name))
    found = run(gains_4D, keep_B2T, *(x.reshape(-1, D) for x in arrays))
    return [x.reshape(B, -1, D) for x in found]
