"""Rotary positions of a mixer, and their scaling for longer texts."""

import math
from typing import Any

import torch
from torch import Tensor

from torch_ref.config import implementation, one_of, register, required
from torch_ref.ops import rotary


class RotaryScaling:
    """What becomes of the frequencies of the pairs, and of the length of queries and keys (``gain``)."""

    gain = 1.0

    def __init__(self, config: Any):
        if config.factor < 1:
            raise ValueError(f"{config.kind}: factor must be at least 1, got {config.factor}")
        self.config = config

    @required
    def scale(self, frequency_P: Tensor, base: float) -> Tensor: ...


def build_scaling(config: Any) -> RotaryScaling:
    """The scaling that ``config`` describes.

    Raises:
        ValueError: an unknown kind, or a factor below 1.
    """
    return implementation("rotary_scaling", config)(config)


@register("rotary_scaling", "linear")
class Linear(RotaryScaling):
    def scale(self, frequency_P, base):
        return rotary.linear(frequency_P, factor=self.config.factor)


@register("rotary_scaling", "llama3")
class Llama3(RotaryScaling):
    def scale(self, frequency_P, base):
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return rotary.llama3(frequency_P, **{name: getattr(self.config, name) for name in names})


@register("rotary_scaling", "yarn")
class Yarn(RotaryScaling):
    """The logits of attention grow by ``gain`` squared, a temperature of ``1 / gain^2``."""

    def __init__(self, config):
        super().__init__(config)
        self.gain = config.attention_factor
        if self.gain is None:
            self.gain = 0.1 * math.log(config.factor) + 1

    def scale(self, frequency_P, base):
        names = ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate")
        return rotary.yarn(frequency_P, base=base, **{name: getattr(self.config, name) for name in names})


class Rotary:
    """Turns queries and keys (B, T, H, K) by their positions; with the layout ``"none"`` they stay as they are.

    Raises:
        ValueError: an unknown layout, an odd width, or a scaling that is not there.
    """

    def __init__(self, layout: str, width: int, base: float, scaling: Any):
        self.layout = one_of("rotary layout", layout, ("none", *rotary.LAYOUTS))
        if layout != "none" and width % 2:
            raise ValueError(f"rotary positions need heads of even width, got {width}")
        self.width, self.base = width, base
        self.scaling = build_scaling(scaling) if scaling else None

    def __call__(self, x_BTHK: Tensor, positions_BT: Tensor) -> Tensor:
        if self.layout == "none":
            return x_BTHK
        if self.scaling is None:
            return rotary.rotate(x_BTHK, positions_BT, base=self.base, layout=self.layout)
        dtype = torch.promote_types(x_BTHK.dtype, torch.float32)
        base = torch.tensor(self.base, dtype=dtype, device=x_BTHK.device)
        frequency_P = self.scaling.scale(rotary.frequencies(base, self.width), self.base)
        options = {"frequency_P": frequency_P, "gain": self.scaling.gain}
        return rotary.rotate(x_BTHK, positions_BT, layout=self.layout, **options)
