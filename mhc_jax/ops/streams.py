"""Parallel residual streams: their order in memory, and how they are read, mixed and written.

This file alone owns the layout: streams stand in the axis before the width, (B, T, N, D). Mixes
over the few streams are unrolled sums that the compiler fuses, never tiny matrix products.

Orientation: ``mix[i, j]`` is the weight from source stream j to destination stream i.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

STREAM_AXIS = -2


def split_streams(x_BTM: Float[Array, "*B M"], streams: int) -> Float[Array, "*B N D"]:
    """Cuts the last axis into ``streams`` equal runs; run i becomes stream i."""
    return x_BTM.reshape(*x_BTM.shape[:-1], streams, -1)


def read(h_BTND: Float[Array, "*B N D"], weight_N: Float[Array, "*B N"]) -> Float[Array, "*B D"]:
    """``u = sum_i weight[i] * h_i``; the weights may be static (N,) or per token (B, T, N)."""
    return sum(weight_N[..., i, None] * h_BTND[..., i, :] for i in range(h_BTND.shape[STREAM_AXIS]))  # type: ignore[return-value]


def mix(h_BTND: Float[Array, "*B N D"], mix_NN: Float[Array, "*B N N"]) -> Float[Array, "*B N D"]:
    """``h'_i = sum_j mix[i, j] * h_j``; the matrix may be static (N, N) or per token (B, T, N, N)."""
    return jnp.stack([read(h_BTND, mix_NN[..., i, :]) for i in range(mix_NN.shape[-2])], axis=STREAM_AXIS)


def write(y: Float[Array, "*B D"] | Float[Array, "*B N D"], weight_N: Float[Array, "*B N"], *, per_stream: bool):
    """``weight[i] * y_i`` for every stream, (B, T, N, D); ``per_stream`` says whether y already differs by stream."""
    return weight_N[..., None] * (y if per_stream else y[..., None, :])


def diversity(h_BTND: Float[Array, "B T N D"]) -> Float[Array, ""]:
    """The stream-diversity term of mHC-SSM: ``mean |G - I|`` over the cosine matrix G of the mean streams.

    0 when the mean streams are orthogonal, (N - 1) / N when they coincide.
    """
    mean_ND = jnp.mean(h_BTND, axis=(0, 1))
    squared = jnp.sum(jnp.square(mean_ND), axis=-1, keepdims=True)
    # The inner where keeps the derivative of sqrt finite at zero.
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    unit_ND = mean_ND / jnp.maximum(norm, 1e-8)
    return jnp.mean(jnp.abs(unit_ND @ unit_ND.T - jnp.eye(mean_ND.shape[0], dtype=mean_ND.dtype)))
