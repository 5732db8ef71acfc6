"""The diagonal linear recurrence ``s_t = a_t * s_{t-1} + x_t`` in three forms of one signature.

All forms compute the same values and the same derivatives. The tangent of the recurrence is the
recurrence again, ``ds_t = a_t ds_{t-1} + (dx_t + da_t s_{t-1})``, so one rule, stated here, serves
forward mode, reverse mode (its transpose is the recurrence run backwards) and higher orders, and
only the states are kept for the backward pass.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mhc_jax.registry import unknown

ScanForm = Literal["sequential", "associative", "chunked"]


def diagonal_scan(
    a: Float[Array, "*BT D"],
    x_BTD: Float[Array, "B T D"],
    s0_BD: Float[Array, "B D"] | None = None,
    *,
    form: ScanForm = "sequential",
    chunk: int = 64,
) -> Float[Array, "B T D"]:
    """All states of ``s_t = a_t * s_{t-1} + x_t``, ``s_{-1} = s0``.

    Args:
        a: decay, ``(D,)`` when constant in time or ``(B, T, D)`` when it varies.
        x_BTD: input.
        s0_BD: state before the first token; zeros if omitted.
        form: ``"sequential"`` walks over time, O(T) depth and least traffic; ``"associative"`` is a
            parallel prefix scan, O(log T) depth; ``"chunked"`` walks inside all chunks at once and
            then over chunks, O(chunk + T / chunk) depth.
        chunk: tokens in a chunk, for the chunked form; T need not be a multiple.

    Returns:
        States ``s_0 .. s_{T-1}``, (B, T, D), in the dtype of ``x_BTD``.

    Raises:
        ValueError: an unknown form, or ``chunk < 1``.
    """
    if form not in _FORMS:
        raise ValueError(unknown("scan form", form, _FORMS))
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if s0_BD is None:
        s0_BD = jnp.zeros_like(x_BTD[:, 0])
    return _scan(form, chunk, a, x_BTD, s0_BD)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _scan(form, chunk, a, x_BTD, s0_BD):
    if form == "chunked":
        return _chunked(a, x_BTD, s0_BD, chunk)
    return _FORMS[form](a, x_BTD, s0_BD)


@_scan.defjvp
def _scan_jvp(form, chunk, primals, tangents):
    a, x_BTD, s0_BD = primals
    da, dx_BTD, ds0_BD = tangents
    s_BTD = _scan(form, chunk, a, x_BTD, s0_BD)
    previous_BTD = jnp.concatenate([s0_BD[:, None], s_BTD[:, :-1]], axis=1)
    return s_BTD, _scan(form, chunk, a, dx_BTD + da * previous_BTD, ds0_BD)


def _sequential(a, x_BTD, s0_BD):
    """One step after another over time."""

    def step(s_BD, inputs):
        a_t, x_BD = inputs
        s_BD = a_t * s_BD + x_BD
        return s_BD, s_BD

    x_TBD = jnp.swapaxes(x_BTD, 0, 1)
    if a.ndim == 1:
        _, s_TBD = jax.lax.scan(lambda s, x: step(s, (a, x)), s0_BD, x_TBD, unroll=8)
    else:
        _, s_TBD = jax.lax.scan(step, s0_BD, (jnp.swapaxes(a, 0, 1), x_TBD), unroll=8)
    return jnp.swapaxes(s_TBD, 0, 1)


def _associative(a, x_BTD, s0_BD):
    """Parallel prefix over the pairs ``(a, x)``; a constant decay is shared by the batch."""
    x_BTD = x_BTD.at[:, 0].add((a if a.ndim == 1 else a[:, 0]) * s0_BD)
    if a.ndim == 1:
        a = jnp.broadcast_to(a, (1, *x_BTD.shape[1:]))

    def combine(left, right):
        a_left, x_left = left
        a_right, x_right = right
        return a_left * a_right, a_right * x_left + x_right

    return jax.lax.associative_scan(combine, (a, x_BTD), axis=1)[1]


def _chunked(a, x_BTD, s0_BD, chunk):
    """Local scans of all chunks side by side, then the carries, then their decayed contribution."""
    B, T, D = x_BTD.shape
    chunk = min(chunk, T)
    C = -(-T // chunk)
    pad = [(0, 0), (0, C * chunk - T), (0, 0)]
    x_NKD = jnp.pad(x_BTD, pad).reshape(B * C, chunk, D)
    zeros_ND = jnp.zeros_like(x_NKD[:, 0])
    if a.ndim == 1:
        decay_CKD = jnp.broadcast_to(a, (1, chunk, D)).cumprod(axis=1)[None]
        local = _sequential(a, x_NKD, zeros_ND)
        carry_a = a**chunk
    else:
        a_NKD = jnp.pad(a, pad).reshape(B * C, chunk, D)
        decay_CKD = a_NKD.cumprod(axis=1).reshape(B, C, chunk, D)
        local = _sequential(a_NKD, x_NKD, zeros_ND)
        carry_a = decay_CKD[:, :, -1]
    local_BCKD = local.reshape(B, C, chunk, D)
    carry_BCD = _sequential(carry_a, local_BCKD[:, :, -1], s0_BD)
    before_BCD = jnp.concatenate([s0_BD[:, None], carry_BCD[:, :-1]], axis=1)
    s_BCKD = local_BCKD + decay_CKD * before_BCD[:, :, None]
    return s_BCKD.reshape(B, C * chunk, D)[:, :T]


_FORMS = {"sequential": _sequential, "associative": _associative, "chunked": _chunked}
