"""The selective state-space recurrence of Mamba (Gu and Dao, arXiv 2312.00752, section 3.2)."""

from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mhc_jax.ops.chunks import Chunks
from mhc_jax.ops.diag_scan import ScanForm, diagonal_scan
from mhc_jax.registry import unknown


def selective_scan(
    u_BTE: Float[Array, "B T E"],
    dt_BTE: Float[Array, "B T E"],
    a_log_EN: Float[Array, "E N"],
    in_BTN: Float[Array, "B T N"],
    out_BTN: Float[Array, "B T N"],
    skip_E: Float[Array, " E"],
    s0_BEN: Float[Array, "B E N"] | None = None,
    *,
    reset_BT: Bool[Array, "B T"] | None = None,
    form: ScanForm = "sequential",
    chunk: int = 32,
) -> tuple[Float[Array, "B T E"], Float[Array, "B E N"]]:
    """``s_t = exp(dt_t A) s_{t-1} + dt_t u_t in_t'``, ``y_t = s_t out_t + skip u_t`` with ``A = -exp(a_log)``.

    The decay is the exact zero-order hold of ``A``; of the input matrix its first order is taken, as in Mamba. States
    take N times the memory of the input: outside the associative form only those between chunks are kept, and the
    backward pass computes the others again, chunk by chunk.

    Args:
        u_BTE: input.
        dt_BTE: positive time steps.
        a_log_EN: logarithm of the rates at which the N states of a channel decay.
        in_BTN, out_BTN: what each token writes to and reads from the states, the same for all channels.
        skip_E: gain of the direct path.
        s0_BEN: states before the first token; zeros if omitted.
        reset_BT: true where states are forgotten before the token is read.
        form: ``"sequential"`` walks over the tokens; ``"associative"`` is one parallel prefix scan over all of them;
            ``"chunked"`` walks over chunks, with a prefix scan inside each.
        chunk: tokens of a chunk; T need not be a multiple.

    Returns:
        Output (B, T, E) and the states after the last token (B, E, N).

    Raises:
        ValueError: an unknown form, or ``chunk < 1``.
    """
    if form not in get_args(ScanForm):
        raise ValueError(unknown("scan form", form, get_args(ScanForm)))
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    B, T, E = u_BTE.shape
    if s0_BEN is None:
        s0_BEN = jnp.zeros((B, E, a_log_EN.shape[1]), u_BTE.dtype)
    keep_BT = jnp.ones((B, T), u_BTE.dtype) if reset_BT is None else 1 - reset_BT.astype(u_BTE.dtype)
    rate_EN = -jnp.exp(a_log_EN)
    inside = _walk if form == "sequential" else _prefix
    inputs = (u_BTE, dt_BTE, in_BTN, out_BTN, keep_BT)
    size = T if form == "associative" else min(chunk, T)
    if size == T:
        s_BEN, y_BTE = inside(rate_EN, s0_BEN, inputs)
        return y_BTE + skip_E * u_BTE, s_BEN
    chunks = Chunks(T, size)
    # A step of no time leaves the states as they are.
    pieces = [chunks.cut(x) for x in inputs[:-1]] + [chunks.cut(keep_BT - 1) + 1]
    body = jax.checkpoint(lambda s_BEN, piece: inside(rate_EN, s_BEN, piece))
    s_BEN, y_CBKE = jax.lax.scan(body, s0_BEN, tuple(pieces))
    return chunks.join(y_CBKE) + skip_E * u_BTE, s_BEN


def _transition(rate_EN, u_BE, dt_BE, in_BN, keep_B):
    """Decay and input of the states, (..., E, N)."""
    decay_BEN = jnp.exp(dt_BE[..., None] * rate_EN) * keep_B[..., None, None]
    return decay_BEN, (dt_BE * u_BE)[..., None] * in_BN[..., None, :]


def _walk(rate_EN, s0_BEN, inputs):
    """One token after another; no more than the states of one token exist at a time."""

    def step(s_BEN, token):
        u_BE, dt_BE, in_BN, out_BN, keep_B = token
        decay_BEN, x_BEN = _transition(rate_EN, u_BE, dt_BE, in_BN, keep_B)
        s_BEN = decay_BEN * s_BEN + x_BEN
        return s_BEN, jnp.einsum("ben,bn->be", s_BEN, out_BN)

    s_BEN, y_TBE = jax.lax.scan(step, s0_BEN, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), inputs))
    return s_BEN, jnp.swapaxes(y_TBE, 0, 1)


def _prefix(rate_EN, s0_BEN, inputs):
    """All states at once."""
    u_BTE, dt_BTE, in_BTN, out_BTN, keep_BT = inputs
    B, T, E = u_BTE.shape
    decay_BTEN, x_BTEN = _transition(rate_EN, u_BTE, dt_BTE, in_BTN, keep_BT)
    decay_BTM, x_BTM = decay_BTEN.reshape(B, T, -1), x_BTEN.reshape(B, T, -1)
    s_BTEN = diagonal_scan(decay_BTM, x_BTM, s0_BEN.reshape(B, -1), form="associative").reshape(B, T, E, -1)
    return s_BTEN[:, -1], jnp.einsum("bten,btn->bte", s_BTEN, out_BTN)
