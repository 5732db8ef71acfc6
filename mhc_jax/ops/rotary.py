"""Rotary positions (RoFormer, arXiv 2104.09864): a query and a key meet at the distance between them.

Scaling slows down what turns, so that a model meets longer texts at angles that it knows.
"""

import math
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
    frequency_P: Float[Array, " P"] | None = None,
    gain: float = 1.0,
) -> Float[Array, "B T H K"]:
    """Every pair of channels turned by its angle, ``position * base^(-2i/K)`` for pair i (RoFormer, eq. 15).

    Args:
        x_BTHK: queries or keys; K is even.
        positions_BT: absolute positions.
        base: the slowest pair turns once in about ``2 pi base`` tokens.
        layout: channels that form pair i: ``"half"``, i and i + K/2 (GPT-NeoX, LLaMA), or ``"interleaved"``, 2i and
            2i + 1 (RoFormer, GPT-J).
        frequency_P: radians per token of the K/2 pairs, in place of those of ``base``.
        gain: length of what is turned, as a multiple of what it was.

    Raises:
        ValueError: an unknown layout, or an odd K.
    """
    if layout not in get_args(RotaryLayout):
        raise ValueError(unknown("layout of rotary positions", layout, get_args(RotaryLayout)))
    K = x_BTHK.shape[-1]
    if K % 2:
        raise ValueError(f"rotary positions turn pairs of channels, but a head has {K}")
    dtype = jnp.promote_types(x_BTHK.dtype, jnp.float32)
    if frequency_P is None:
        frequency_P = frequencies(jnp.asarray(base, dtype), K)
    angle_BT1P = (positions_BT[..., None].astype(dtype) * frequency_P.astype(dtype))[:, :, None]
    cos, sin = gain * jnp.cos(angle_BT1P), gain * jnp.sin(angle_BT1P)
    x = x_BTHK.astype(dtype)
    even, odd = (x[..., ::2], x[..., 1::2]) if layout == "interleaved" else jnp.split(x, 2, axis=-1)
    turned = even * cos - odd * sin, odd * cos + even * sin
    y = jnp.stack(turned, axis=-1).reshape(x.shape) if layout == "interleaved" else jnp.concatenate(turned, axis=-1)
    return y.astype(x_BTHK.dtype)


def frequencies(base: Float[Array, ""], width: int) -> Float[Array, " P"]:
    """Radians per token of the pairs of a head of that width, from the fastest, 1, towards 1 / base."""
    return base ** (-jnp.arange(0, width, 2, dtype=base.dtype) / width)


def linear(frequency_P: Float[Array, " P"], *, factor: float) -> Float[Array, " P"]:
    """All of them slower by a factor: position interpolation (arXiv 2306.15595)."""
    return frequency_P / factor


def llama3(
    frequency_P: Float[Array, " P"],
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Float[Array, " P"]:
    """LLaMA 3.1's: pairs that turn seldom within the original length are slower by a factor, those that turn often not.

    Args:
        frequency_P: radians per token.
        factor: of slowness.
        low_freq_factor: turns in the original length up to which all of the factor counts.
        high_freq_factor: turns from which nothing of it counts; linear in between.
        original_max_position_embeddings: the original length, in tokens.
    """
    turns_P = frequency_P * (original_max_position_embeddings / (2 * math.pi))
    kept_P = jnp.clip((turns_P - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return frequency_P * (kept_P + (1 - kept_P) / factor)


def yarn(
    frequency_P: Float[Array, " P"],
    *,
    base: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    original_max_position_embeddings: int,
    truncate: bool,
) -> Float[Array, " P"]:
    """YaRN's (arXiv 2309.00071), as its code has it: linear in the index of a pair where the paper is in its turns.

    Args:
        frequency_P: radians per token, those of ``base``.
        base: above 1.
        factor: of slowness.
        beta_fast: turns in the original length from which a pair stays as it is.
        beta_slow: turns up to which it is slower by the whole factor.
        original_max_position_embeddings: the original length, in tokens.
        truncate: round the indices of these two pairs down and up to whole ones.
    """
    P = len(frequency_P)
    first, last = (
        P * math.log(original_max_position_embeddings / (2 * math.pi * turns)) / math.log(base)
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * P - 1)
    # The published code keeps an empty interval open by as much.
    span = last - first or 0.001
    slowed_P = jnp.clip((jnp.arange(P, dtype=frequency_P.dtype) - first) / span, 0, 1)
    return frequency_P * (1 - slowed_P + slowed_P / factor)
