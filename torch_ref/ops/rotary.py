"""Rotary positions (RoFormer): pairs of channels turn by an angle that grows with the position."""

import math

import torch
from torch import Tensor

from torch_ref.config import one_of

LAYOUTS = ("half", "interleaved")


def rotate(
    x_BTHK: Tensor,
    positions_BT: Tensor,
    *,
    base: float = 10000.0,
    layout: str = "half",
    frequency_P: Tensor | None = None,
    gain: float = 1.0,
) -> Tensor:
    """Pair i of every head turned by ``position * base^(-2i/K)``, (B, T, H, K).

    The product of a rotated query and a rotated key depends only on the distance of their positions.

    Args:
        x_BTHK: queries or keys; K is even.
        layout: pairs are channels i and i + K/2 (``"half"``: GPT-NeoX, LLaMA), or 2i and 2i + 1 (``"interleaved"``).
        frequency_P: replaces ``base^(-2i/K)``.
        gain: multiplies the result.

    Raises:
        ValueError: an odd K, or an unknown layout.
    """
    K = x_BTHK.shape[-1]
    if K % 2:
        raise ValueError(f"rotary positions need heads of even width, got {K}")
    one_of("rotary layout", layout, LAYOUTS)
    # In bfloat16 neighbouring positions would share an angle.
    dtype = torch.promote_types(x_BTHK.dtype, torch.float32)
    if frequency_P is None:
        frequency_P = frequencies(torch.tensor(base, dtype=dtype, device=x_BTHK.device), K)
    angles_BT1P = positions_BT[..., None, None].to(dtype) * frequency_P.to(dtype)
    cos, sin = angles_BT1P.cos(), angles_BT1P.sin()
    # The two channels of a pair form an axis, before the pairs or after them.
    axis, sizes = (-2, (2, -1)) if layout == "half" else (-1, (-1, 2))
    first, second = x_BTHK.to(dtype).unflatten(-1, sizes).unbind(axis)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], axis)
    return (gain * turned.flatten(-2)).to(x_BTHK.dtype)


def frequencies(base: Tensor, width: int) -> Tensor:
    """``base^(-2i/K)`` for the pairs of a head of width K, (P,)."""
    return base ** -(torch.arange(0, width, 2, dtype=base.dtype, device=base.device) / width)


def linear(frequency_P: Tensor, *, factor: float) -> Tensor:
    """Position interpolation: positions, and so angles, divided by ``factor``."""
    return frequency_P / factor


def llama3(
    frequency_P: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """The rule of LLaMA 3.1 by wavelengths: short ones stay, long ones are stretched by ``factor``, others between."""
    length = original_max_position_embeddings
    wavelength_P = 2 * math.pi / frequency_P
    smooth_P = (length / wavelength_P - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between_P = (1 - smooth_P) * frequency_P / factor + smooth_P * frequency_P
    stretched_P = torch.where(wavelength_P > length / low_freq_factor, frequency_P / factor, between_P)
    return torch.where(wavelength_P < length / high_freq_factor, frequency_P, stretched_P)


def yarn(
    frequency_P: Tensor,
    *,
    base: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    original_max_position_embeddings: int,
    truncate: bool,
) -> Tensor:
    """YaRN's mixture of extrapolation and interpolation, "NTK by parts", with the ramp of the published code."""
    pairs = len(frequency_P)
    width = 2 * pairs

    def dimension(rotations: float) -> float:
        """The pair, as a real number, that rotates as often within the original length."""
        length = original_max_position_embeddings
        return width * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    ramp_P = ((torch.arange(pairs).to(frequency_P) - low) / (high - low)).clamp(0, 1)
    interpolated_P, extrapolated_P = frequency_P / factor, frequency_P
    return interpolated_P * ramp_P + extrapolated_P * (1 - ramp_P)
