"""Causal depth-wise convolution over time, for whole sequences and for one token."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def causal_depthwise_conv(
    u_BTD: Float[Array, "B T D"],
    filter_KD: Float[Array, "K D"],
    bias_D: Float[Array, " D"],
    history_BJD: Float[Array, "B J D"] | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """``y_t = bias + sum_k filter[k] * u_{t-(K-1)+k}``; the last tap multiplies the current token.

    Args:
        u_BTD: input.
        filter_KD: K taps for each channel, oldest first.
        bias_D: added to every output.
        history_BJD: the J = K-1 inputs before the first token; zeros if omitted.
        segment_ids: tokens of other segments do not reach a token.
    """
    K, T = filter_KD.shape[0], u_BTD.shape[1]
    if history_BJD is None:
        history_BJD = jnp.zeros((u_BTD.shape[0], K - 1, u_BTD.shape[2]), u_BTD.dtype)
    padded = jnp.concatenate([history_BJD, u_BTD], axis=1)
    y_BTD = bias_D + filter_KD[K - 1] * u_BTD
    for k in range(K - 1):
        lag = K - 1 - k
        term = filter_KD[k] * padded[:, k : k + T]
        if segment_ids is not None:
            before = jnp.pad(segment_ids, ((0, 0), (lag, 0)), mode="edge")[:, :T]
            term = jnp.where((before == segment_ids)[..., None], term, 0)
        y_BTD = y_BTD + term
    return y_BTD
