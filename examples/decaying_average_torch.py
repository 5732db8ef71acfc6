"""The PyTorch twin of ``decaying_average.py``, for the parity suite."""

import torch

from torch_ref.config import register
from torch_ref.nn.mixers import Mixer


@register("mixer", "decaying_average")
class DecayingAverage(Mixer):
    def __init__(self, config, width, sites):
        super().__init__()
        self.A_log = torch.nn.Parameter(torch.zeros(1, width))
        self.W = torch.nn.Parameter(torch.empty(width, width).uniform_(-(width**-0.5), width**-0.5))
        self.s = torch.nn.Parameter(torch.ones(width))

    def init_state(self, batch, max_len):
        return self.s.new_zeros(batch, len(self.s))

    def forward(self, u_BTD, state, scope):
        keep = torch.exp(-self.A_log.exp())[0]
        average = self.init_state(len(u_BTD), 0) if state is None else state
        averages = []
        for u in scope.values(u_BTD).unbind(1):
            average = keep * average + (1 - keep) * u
            averages.append(average)
        return self.s * (torch.stack(averages, 1) @ self.W), None if state is None else average
