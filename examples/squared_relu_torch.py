"""The PyTorch twin of ``squared_relu.py``, for the parity suite."""

import torch.nn.functional as F

from torch_ref.config import register
from torch_ref.nn.channel import ChannelMixer
from torch_ref.nn.layers import linear


@register("channel", "squared_relu")
class SquaredReLU(ChannelMixer):
    def __init__(self, config, width, sites):
        super().__init__()
        self.activity = config.activity
        self.up = linear(width, 4 * width, 0.02, False)
        self.down = linear(4 * width, width, 0.02 / sites**0.5, False)

    def forward(self, u_BTD, scope):
        hidden = F.relu(self.up(u_BTD)).square()
        scope.penalise("activity", self.activity * hidden.mean())
        return self.down(scope.tap("hidden", hidden))
