"""Parallel residual streams: their order in memory, and how they are read, mixed and written.

This file alone owns the layout: streams stand in the axis before the width, (B, T, N, D). On accelerators mixes over
the few streams are unrolled sums, which the compiler fuses; as small matrix products they would waste a matrix unit.
On a CPU it is the other way round: the slices of single streams are not fused in the backward pass, contractions are.

Orientation: ``mix[i, j]`` is the weight from source stream j to destination stream i.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend

STREAM_AXIS = -2


def split_streams(x_BTM: Float[Array, "*B M"], streams: int) -> Float[Array, "*B N D"]:
    """Cuts the last axis into ``streams`` equal runs; run i becomes stream i."""
    return x_BTM.reshape(*x_BTM.shape[:-1], streams, -1)


def read(h_BTND: Float[Array, "*B N D"], weight_N: Float[Array, "*B N"]) -> Float[Array, "*B D"]:
    """``u = sum_i weight[i] * h_i``; the weights may be static (N,) or per token (B, T, N)."""
    if _contracts():
        return jnp.einsum("...n,...nd->...d", weight_N, h_BTND)
    return sum(weight_N[..., i, None] * h_BTND[..., i, :] for i in range(h_BTND.shape[STREAM_AXIS]))  # type: ignore[return-value]


def mix(h_BTND: Float[Array, "*B N D"], mix_NN: Float[Array, "*B N N"]) -> Float[Array, "*B N D"]:
    """``h'_i = sum_j mix[i, j] * h_j``; the matrix may be static (N, N) or per token (B, T, N, N)."""
    if _contracts():
        return jnp.einsum("...mn,...nd->...md", mix_NN, h_BTND)
    return jnp.stack([read(h_BTND, mix_NN[..., i, :]) for i in range(mix_NN.shape[-2])], axis=STREAM_AXIS)


def write(y: Float[Array, "*B D"] | Float[Array, "*B N D"], weight_N: Float[Array, "*B N"], *, per_stream: bool):
    """``weight[i] * y_i`` for every stream, (B, T, N, D); ``per_stream`` says whether y already differs by stream."""
    if per_stream:
        return weight_N[..., None] * y
    return jnp.einsum("...n,...d->...nd", weight_N, y) if _contracts() else weight_N[..., None] * y[..., None, :]


def _contracts() -> bool:
    """Whether streams are contracted rather than summed one by one."""
    return target_backend() == "cpu"


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
