"""The mHC layer of RLM-mHC: flows made of a token, mixed by one matrix and contracted again."""

import math

import torch
from torch import nn

from torch_ref.config import one_of, register
from torch_ref.nn.channel.base import ChannelMixer
from torch_ref.nn.layers import linear
from torch_ref.nn.projections import build_projection
from torch_ref.ops import linear_mhc


@register("channel", "linear_mhc")
class LinearMHC(ChannelMixer):
    """``contract(P expand(x))``, as written or, in the form ``"folded"``, as one matrix; ``"auto"`` is as written."""

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        n = config.flows
        self.folded = one_of("linear_mhc form", config.form, ("auto", "flows", "folded")) == "folded"
        self.projection = build_projection(config.projection, n)
        shape = self.projection.shape
        self.logits = nn.Parameter(torch.zeros(shape)) if math.prod(shape) else None
        self.expand = linear(width, n * width, config.init_std, bias=False)
        self.contract = linear(n * width, width, config.init_std, bias=False)

    def forward(self, u_BTD, scope):
        logits = self.expand.weight.new_zeros(self.projection.shape) if self.logits is None else self.logits
        run = linear_mhc.folded if self.folded else linear_mhc.flows
        return run(u_BTD, self.expand.weight.T, self.contract.weight.T, scope.tap("mixing", self.projection(logits)))
