"""The diagonal state-space layer of mHC-SSM: one real scalar state per channel, time-invariant."""

from typing import get_args

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float

from mhc_jax.ops.chunks import Implementation
from mhc_jax.ops.diag_scan import ScanForm, check, states_before
from mhc_jax.registry import unknown

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
    implementation: Implementation = "xla",
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """``s_t = a s_{t-1} + b u_t``, ``y_t = c s_t + d u_t`` for every channel (mHC-SSM, DiagonalSSM).

    Args:
        u_BTD: input.
        logit_a_D: pole before :func:`pole`.
        b_D, c_D, d_D: input, output and skip gains.
        s0_BD: state before the first token; zeros if omitted.
        reset_BT: true where the state is reset before the token is read.
        form, chunk: see :func:`mhc_jax.ops.diag_scan.diagonal_scan`.
        implementation: ``"xla"``, or ``"pallas"`` for the kernels of TPUs and GPUs, see
            :mod:`mhc_jax.kernels.diagonal`, which sum in float32 whatever the input; tokens behind their last whole
            chunk are left to XLA.
        batch_sharding: sharding of arrays (B, ...) on several devices, which only the kernels have to know.

    Returns:
        Output (B, T, D) in the dtype of the input, and the state after the last token (B, D).

    Raises:
        ValueError: an unknown form or implementation, ``chunk < 1``, or no kernel for these channels or dtype.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(unknown("implementation", implementation, get_args(Implementation)))
    check(form, chunk)
    a = pole(logit_a_D)
    if implementation == "pallas" and len(u_BTD):
        from mhc_jax.kernels import diagonal  # Pallas takes long to import

        if T := diagonal.whole(u_BTD.shape[1]):
            gains_4D = jnp.stack([a, b_D, c_D, d_D]).astype(jnp.float32)
            s0_BD = jnp.zeros(u_BTD[:, 0].shape) if s0_BD is None else s0_BD.astype(jnp.float32)
            resets, later = (None, None) if reset_BT is None else (reset_BT[:, :T], reset_BT[:, T:])
            y_BTD, s_BD = diagonal.scan(u_BTD[:, :T], gains_4D, s0_BD, resets, batch_sharding)
            if u_BTD.shape[1] == T:
                return y_BTD, s_BD
            gains = (x_D.astype(jnp.float32) for x_D in (logit_a_D, b_D, c_D, d_D))
            rest_BTD, s_BD = diag_ssm(u_BTD[:, T:], *gains, s0_BD=s_BD, reset_BT=later, form=form, chunk=chunk)
            return jnp.concatenate([y_BTD, rest_BTD], axis=1), s_BD
    if reset_BT is not None:
        a = jnp.where(reset_BT[..., None], 0, a)
    before_BTD = states_before(a, b_D * u_BTD, s0_BD, form=form, chunk=chunk)
    # No array is made of the states after the tokens: outputs and gradients are sums of products of the others.
    y_BTD = c_D * a * before_BTD + (c_D * b_D + d_D) * u_BTD
    return y_BTD.astype(u_BTD.dtype), (a if a.ndim == 1 else a[:, -1]) * before_BTD[:, -1] + b_D * u_BTD[:, -1]
