"""The PyTorch twin of ``ntk_scaling.py``, for the parity suite."""

import torch

from torch_ref.config import register
from torch_ref.nn.rotary import RotaryScaling


@register("rotary_scaling", "ntk")
class NTK(RotaryScaling):
    def scale(self, frequency_P, base):
        share_P = torch.linspace(0, 1, len(frequency_P)).to(frequency_P)
        return frequency_P / self.config.factor**share_P
