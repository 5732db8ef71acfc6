"""Token-dependent coefficients of hyper-connections: functions of one stream, or of all streams of the token."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mhc_jax.ops.norm import inverse_unit_rms, rms_norm
from mhc_jax.ops.streams import Streams, project, split_streams


def dynamic_weights(
    h: Streams,
    fn_DK: Float[Array, "D K"],
    scale: Float[Array, "*S"],
    static_NK: Float[Array, "N K"],
    *,
    tanh: bool,
    gamma_D: Float[Array, " D"] | None = None,
) -> Float[Array, "*B N K"]:
    """``static + scale * act(h_i @ fn)`` with ``act`` tanh or the identity (hyper-connections, 2409.19606, eq. 10-13).

    Args:
        h: streams, normalised unless ``gamma_D`` is given.
        fn_DK: matrix that all streams share.
        scale: one number, or one for each column.
        static_NK: static part, one row for each stream.
        tanh: whether ``act`` is tanh, so that ``scale`` bounds the dynamic part.
        gamma_D: gain minus one of a :func:`mhc_jax.ops.norm.unit_rms_norm` of the streams. The division follows the
            product, so that the streams are read once and never stored normalised.
    """

    def dynamic(x_BTD):
        if gamma_D is None:
            return x_BTD @ fn_DK
        return x_BTD @ ((1 + gamma_D[:, None]) * fn_DK) * inverse_unit_rms(x_BTD)

    logits_BTNK = h.astype(fn_DK.dtype).each(dynamic).stack()
    return static_NK + scale * (jnp.tanh(logits_BTNK) if tanh else logits_BTNK)


def flat_weights(h: Streams, phi_KM: Float[Array, "K M"], *, eps: float) -> Float[Array, "*B K"]:
    """``phi @ x / sqrt(mean(x^2) + eps)`` of the concatenated streams x of a token (mHC, 2512.24880, eq. 7).

    The division follows the product, so that the streams are read once and never stored normalised.

    Args:
        h: streams; channel c of stream s is entry s * D + c of x.
        phi_KM: matrix with M = N * D columns.
        eps: added to the mean square.
    """
    h = h.astype(phi_KM.dtype)
    squares_BT1 = jnp.mean(h.each(jnp.square).total(), axis=-1, keepdims=True)  # one sum, not one for every stream
    return project(h, phi_KM) * lax.rsqrt(squares_BT1 / len(h) + eps)


def stream_gate(
    h: Streams,
    scale_ND: Float[Array, "N D"],
    down_RM: Float[Array, "R M"],
    up_MR: Float[Array, "M R"],
    *,
    eps: float,
) -> tuple[Float[Array, "*B D"], Streams]:
    """The gated read of Qwen4-exp (transformers ``qwen4_exp``): a gate for every channel of every stream.

    ``x_s = rms_norm(h_s) * (1 + scale_s)``; ``gate = sigmoid(up @ SiLU(down @ x / N))`` over all
    streams at once; the read is ``mean_s gate_s * x_s``.

    Args:
        h: streams.
        scale_ND: gains of the norms minus one.
        down_RM, up_MR: bottleneck of width R over M = N * D channels, stream by stream.
        eps: epsilon of the norms.

    Returns:
        The read (B, T, D), and the normalised streams.
    """
    N = len(h)
    x = h.astype(scale_ND.dtype).each(lambda x, scale_D: rms_norm(x, 1 + scale_D, eps=eps), scale_ND)
    hidden_BTR = jax.nn.silu(project(x, down_RM) / N)
    gated = x.each(lambda x, up_RD: jax.nn.sigmoid(hidden_BTR @ up_RD) * x, split_streams(up_MR.T, N))
    return gated.total() / N, x
