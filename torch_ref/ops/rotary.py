"""Rotary positions (RoFormer): pairs of channels turn by an angle that grows with the position."""

import torch
from torch import Tensor

from torch_ref.config import one_of

LAYOUTS = ("half", "interleaved")


def rotate(x_BTHK: Tensor, positions_BT: Tensor, *, base: float = 10000.0, layout: str = "half") -> Tensor:
    """Pair i of every head turned by ``position * base^(-2i/K)``, (B, T, H, K).

    The product of a rotated query and a rotated key depends only on the distance of their positions.

    Args:
        x_BTHK: queries or keys; K is even.
        layout: pairs are channels i and i + K/2 (``"half"``: GPT-NeoX, LLaMA), or 2i and 2i + 1 (``"interleaved"``).

    Raises:
        ValueError: an odd K, or an unknown layout.
    """
    K = x_BTHK.shape[-1]
    if K % 2:
        raise ValueError(f"rotary positions need heads of even width, got {K}")
    one_of("rotary layout", layout, LAYOUTS)
    # In bfloat16 neighbouring positions would share an angle.
    dtype = torch.promote_types(x_BTHK.dtype, torch.float32)
    exponents_P = torch.arange(0, K, 2, dtype=dtype, device=x_BTHK.device) / K
    angles_BT1P = positions_BT[..., None, None].to(dtype) * base**-exponents_P
    cos, sin = angles_BT1P.cos(), angles_BT1P.sin()
    # The two channels of a pair form an axis, before the pairs or after them.
    axis, sizes = (-2, (2, -1)) if layout == "half" else (-1, (-1, 2))
    first, second = x_BTHK.to(dtype).unflatten(-1, sizes).unbind(axis)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], axis)
    return turned.flatten(-2).to(x_BTHK.dtype)
