"""Coefficients of hyper-connections that depend on the token: from one stream, or from all streams of the token."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mhc_jax.ops.norm import inverse_unit_rms, rms_norm


def dynamic_weights(
    x_BM: Float[Array, "*B M"],
    fn_MK: Float[Array, "M K"],
    scale: Float[Array, "*S"],
    static_K: Float[Array, "*R K"],
    *,
    tanh: bool,
    gamma_M: Float[Array, " M"] | None = None,
) -> Float[Array, "*B K"]:
    """``static + scale * act(x @ fn)`` with ``act`` tanh or the identity (hyper-connections, 2409.19606, eq. 10-13).

    Args:
        x_BM: streams, normalised unless ``gamma_M`` is given.
        fn_MK: shared by all streams.
        scale: one number, or one for each column.
        static_K: what remains when x says nothing; (R, K) when x is (..., R, M) and its rows differ.
        tanh: bound the dynamic part by ``scale``.
        gamma_M: put x through :func:`mhc_jax.ops.norm.unit_rms_norm` with it. The division follows the product, so the
            streams are read once and never stored normalised.
    """
    dynamic = x_BM @ fn_MK if gamma_M is None else x_BM @ ((1 + gamma_M[:, None]) * fn_MK) * inverse_unit_rms(x_BM)
    return static_K + scale * (jnp.tanh(dynamic) if tanh else dynamic)


def flat_weights(h_BTND: Float[Array, "*B N D"], phi_KM: Float[Array, "K M"], *, eps: float) -> Float[Array, "*B K"]:
    """``phi @ x / sqrt(mean(x^2) + eps)`` with x all streams of a token as one vector (mHC, 2512.24880, eq. 7).

    The division follows the product, so the streams are read once and never stored normalised.

    Args:
        h_BTND: streams; channel c of stream s is entry s * D + c of x.
        phi_KM: M = N * D.
        eps: added to the mean square.
    """
    x_BTM = h_BTND.reshape(*h_BTND.shape[:-2], -1)
    inverse_rms = lax.rsqrt(jnp.mean(jnp.square(x_BTM), axis=-1, keepdims=True) + eps)
    return jnp.einsum("...m,km->...k", x_BTM, phi_KM) * inverse_rms


def stream_gate(
    h_BTND: Float[Array, "*B N D"],
    scale_ND: Float[Array, "N D"],
    down_RM: Float[Array, "R M"],
    up_MR: Float[Array, "M R"],
    *,
    eps: float,
) -> tuple[Float[Array, "*B D"], Float[Array, "*B M"]]:
    """The gated read of Qwen4-exp (transformers ``qwen4_exp``): a gate for every channel of every stream.

    ``x_s = rms_norm(h_s) * (1 + scale_s)``; ``gate = sigmoid(up @ SiLU(down @ x / N))`` over all
    streams at once; the read is ``mean_s gate_s * x_s``.

    Args:
        h_BTND: streams.
        scale_ND: gains of the norms, less one.
        down_RM, up_MR: a bottleneck of width R over M = N * D channels, stream by stream.
        eps: of the norms.

    Returns:
        The read (B, T, D), and the normalised streams as one vector (B, T, M).
    """
    N = h_BTND.shape[-2]
    x_BTND = rms_norm(h_BTND, 1 + scale_ND, eps=eps)
    x_BTM = x_BTND.reshape(*x_BTND.shape[:-2], -1)
    hidden = jax.nn.silu(jnp.einsum("...m,rm->...r", x_BTM, down_RM) / N)
    gate_BTM = jax.nn.sigmoid(jnp.einsum("...r,mr->...m", hidden, up_MR))
    return jnp.mean(gate_BTM.reshape(x_BTND.shape) * x_BTND, axis=-2), x_BTM
