"""The diagonal linear recurrence ``s_t = a_t * s_{t-1} + x_t`` in three forms of one signature.

All forms compute the same values and the same derivatives. They are written for the states *before* the tokens,
``p_0 = 0, p_{t+1} = a_t p_t + x_t``, because nothing has then to be shifted: the tangent is the recurrence again,
``dp = P(dx + da p)`` with the linear map P from inputs to states, and the transpose of P is P run backwards over time,
with the same decay at every token. One rule, stated here, so serves forward mode, reverse mode and higher orders, and
only the states are kept for the backward pass.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
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
    return a * states_before(a, x_BTD, s0_BD, form=form, chunk=chunk) + x_BTD


def check(form: str, chunk: int) -> None:
    """Raises ValueError for an unknown form, or ``chunk < 1``."""
    if form not in _FORMS:
        raise ValueError(unknown("scan form", form, _FORMS))
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")


def states_before(
    a: Float[Array, "*BT D"],
    x_BTD: Float[Array, "B T D"],
    s0_BD: Float[Array, "B D"] | None,
    *,
    form: ScanForm,
    chunk: int,
) -> Float[Array, "B T D"]:
    """The states before every token, ``s_{-1} .. s_{T-2}``; see :func:`diagonal_scan`."""
    check(form, chunk)
    if s0_BD is not None:
        x_BTD = x_BTD.at[:, 0].add((a if a.ndim == 1 else a[:, 0]) * s0_BD)

    def states(x_BTD, reverse):
        return _FORMS[form](a, x_BTD, reverse, chunk)

    # The solution p of p_{t+1} - a_t p_t = x_t; of the left side JAX only asks how it depends on a.
    p_BTD = jax.lax.custom_linear_solve(
        lambda p_BTD: -a * p_BTD,
        x_BTD,
        solve=lambda _, x_BTD: states(x_BTD, reverse=False),
        transpose_solve=lambda _, x_BTD: states(x_BTD, reverse=True),
    )
    return p_BTD if s0_BD is None else p_BTD.at[:, 0].set(s0_BD)


def _sequential(a, x_BTD, reverse, chunk):
    return _walk(a, x_BTD, reverse)[1]


def _walk(a, x_BTD, reverse):
    """:func:`_walk_by_scan` in the form that is the fastest on the machine."""
    if target_backend() == "cpu":
        return _walk_in_place(a, x_BTD, reverse)
    return _walk_by_scan(a, x_BTD, reverse)


def _walk_by_scan(a, x_BTD, reverse):
    """One step after another over time, the last axis but one: the state after all tokens, and those before them."""

    def step(s_BD, inputs):
        a_t, x_BD = inputs
        return a_t * s_BD + x_BD, s_BD

    x_TBD = jnp.moveaxis(x_BTD, -2, 0)
    start = jnp.zeros_like(x_TBD[0])
    if a.ndim == 1:
        end_BD, p_TBD = jax.lax.scan(lambda s, x: step(s, (a, x)), start, x_TBD, reverse=reverse, unroll=8)
    else:
        end_BD, p_TBD = jax.lax.scan(step, start, (jnp.moveaxis(a, -2, 0), x_TBD), reverse=reverse, unroll=8)
    return end_BD, jnp.moveaxis(p_TBD, 0, -2)


def _walk_in_place(a, x_BTD, reverse):
    """The same, each state written where its input was read: no array is transposed and none but the input's needed.

    The state before a NaN becomes one, too.
    """
    T, axis = x_BTD.shape[-2], x_BTD.ndim - 2

    def step(i, carry):
        s_BD, p_BTD = carry
        t = T - 1 - i if reverse else i
        a_t, x_BD = (jax.lax.dynamic_index_in_dim(z, t, axis, keepdims=False) if z.ndim > 1 else z for z in (a, p_BTD))
        after_BD = a_t * s_BD + x_BD
        # XLA copies the whole array every step unless what it writes depends on what it read there.
        s_BD = jnp.where(jnp.isnan(x_BD), after_BD, s_BD)
        return after_BD, jax.lax.dynamic_update_index_in_dim(p_BTD, s_BD, t, axis)

    return jax.lax.fori_loop(0, T, step, (jnp.zeros_like(x_BTD[..., 0, :]), x_BTD))


def _associative(a, x_BTD, reverse, chunk):
    """Parallel prefix over the pairs ``(a, x)``; a constant decay is shared by the batch."""
    if reverse:  # walking backwards instead would reverse arrays, in more kernels
        return jax.linear_transpose(lambda x_BTD: _associative(a, x_BTD, False, chunk), x_BTD)(x_BTD)[0]
    if a.ndim == 1:
        a = jnp.broadcast_to(a, (1, *x_BTD.shape[1:]))

    def combine(left, right):
        a_left, x_left = left
        a_right, x_right = right
        return a_left * a_right, a_right * x_left + x_right

    return _before(jax.lax.associative_scan(combine, (a, x_BTD), axis=1)[1], 0, reverse=False)


def _chunked(a, x_BTD, reverse, chunk):
    """Local walks of all chunks side by side, then over the chunks, then what these add inside every chunk."""
    B, T, D = x_BTD.shape
    chunk = min(chunk, T)

    def cut(z_BTD):
        return jnp.pad(z_BTD, ((0, 0), (0, -T % chunk), (0, 0))).reshape(B, -1, chunk, D)

    if a.ndim == 1:
        k_K1 = jnp.arange(chunk)[:, None]
        decay, whole = a ** (chunk - 1 - k_K1 if reverse else k_K1), a**chunk
    else:
        a = cut(a)
        decay, whole = _before(jax.lax.cumprod(a, 2, reverse), 1, reverse), a.prod(2)
    ends_BCD, local_BCKD = _walk(a, cut(x_BTD), reverse)
    # In place a NaN would reach the tokens of its chunk that come before it.
    _, start_BCD = _walk_by_scan(whole, ends_BCD, reverse)
    return (local_BCKD + decay * start_BCD[:, :, None]).reshape(B, -1, D)[:, :T]


def _before(x_BTD, start, reverse):
    """Everything one token later, from ``start`` on; one earlier if ``reverse``."""
    x_BTD = x_BTD[..., 1:, :] if reverse else x_BTD[..., :-1, :]
    pad = [(0, 0)] * (x_BTD.ndim - 2) + [(0, 1) if reverse else (1, 0), (0, 0)]
    return jnp.pad(x_BTD, pad, constant_values=start)


_FORMS = {"sequential": _sequential, "associative": _associative, "chunked": _chunked}
