"""The diagonal state-space layer of mHC-SSM: one real scalar state per channel, time-invariant."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mhc_jax.ops.diag_scan import ScanForm, states_before

POLE_MARGIN = 1e-4


def pole(logit_a_D: Float[Array, " D"]) -> Float[Array, " D"]:
    """``a = clip(sigmoid(logit_a), 1e-4, 1 - 1e-4)``; no gradient reaches a clipped logit."""
    return jnp.clip(jax.nn.sigmoid(logit_a_D), POLE_MARGIN, 1 - POLE_MARGIN)


def diag_ssm(
    u_BTD: Float[Array, "B T D"],
    logit_a_D: Float[Array, " D"],
    b_D: Float[Array, " D"],
    c_D: Float[Array, " D"],
    d_D: Float[Array, " D"],
    s0_BD: Float[Array, "B D"] | None = None,
    *,
    reset_BT: Bool[Array, "B T"] | None = None,
    form: ScanForm = "sequential",
    chunk: int = 64,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """``s_t = a s_{t-1} + b u_t``, ``y_t = c s_t + d u_t`` for every channel (mHC-SSM, DiagonalSSM).

    Args:
        u_BTD: input.
        logit_a_D: pole before :func:`pole`.
        b_D, c_D, d_D: input, output and skip gains.
        s0_BD: state before the first token; zeros if omitted.
        reset_BT: true where the state is reset before the token is read.
        form, chunk: see :func:`mhc_jax.ops.diag_scan.diagonal_scan`.

    Returns:
        Output (B, T, D) and the state after the last token (B, D).
    """
    a = pole(logit_a_D)
    if reset_BT is not None:
        a = jnp.where(reset_BT[..., None], 0, a)
    before_BTD = states_before(a, b_D * u_BTD, s0_BD, form=form, chunk=chunk)
    # No array is made of the states after the tokens: outputs and gradients are sums of products of the others.
    y_BTD = c_D * a * before_BTD + (c_D * b_D + d_D) * u_BTD
    return y_BTD, (a if a.ndim == 1 else a[:, -1]) * before_BTD[:, -1] + b_D * u_BTD[:, -1]
