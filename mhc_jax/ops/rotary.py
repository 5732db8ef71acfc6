"""Rotary positions (RoFormer, arXiv 2104.09864): a query and a key meet at the distance between them."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mhc_jax.registry import unknown

RotaryLayout = Literal["half", "interleaved"]


def rotate(
    x_BTHK: Float[Array, "B T H K"],
    positions_BT: Int[Array, "#B T"],
    *,
    base: float = 10000.0,
    layout: RotaryLayout = "half",
) -> Float[Array, "B T H K"]:
    """Every pair of channels turned by its angle, ``position * base^(-2i/K)`` for pair i (RoFormer, eq. 15).

    Args:
        x_BTHK: queries or keys; K is even.
        positions_BT: absolute positions.
        base: the slowest pair turns once in about ``2 pi base`` tokens.
        layout: channels that form pair i: ``"half"``, i and i + K/2 (GPT-NeoX, LLaMA), or ``"interleaved"``, 2i and
            2i + 1 (RoFormer, GPT-J).

    Raises:
        ValueError: an unknown layout, or an odd K.
    """
    if layout not in get_args(RotaryLayout):
        raise ValueError(unknown("layout of rotary positions", layout, get_args(RotaryLayout)))
    K = x_BTHK.shape[-1]
    if K % 2:
        raise ValueError(f"rotary positions turn pairs of channels, but a head has {K}")
    dtype = jnp.promote_types(x_BTHK.dtype, jnp.float32)
    frequency_P = jnp.asarray(base, dtype) ** (-jnp.arange(0, K, 2, dtype=dtype) / K)
    angle_BT1P = (positions_BT[..., None].astype(dtype) * frequency_P)[:, :, None]
    cos, sin = jnp.cos(angle_BT1P), jnp.sin(angle_BT1P)
    x = x_BTHK.astype(dtype)
    even, odd = (x[..., ::2], x[..., 1::2]) if layout == "interleaved" else jnp.split(x, 2, axis=-1)
    turned = even * cos - odd * sin, odd * cos + even * sin
    y = jnp.stack(turned, axis=-1).reshape(x.shape) if layout == "interleaved" else jnp.concatenate(turned, axis=-1)
    return y.astype(x_BTHK.dtype)
