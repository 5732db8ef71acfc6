"""The selective state-space mixer of Mamba."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.layers import CausalConv
from torch_ref.nn.mixers.gated_ssm import GatedSSM, changes
from torch_ref.ops.selective_scan import selective_scan


@register("mixer", "selective_ssm")
class SelectiveSSM(GatedSSM):
    """The gate is a SiLU; the recurrence carries N states of each of E channels, (B, E, N)."""

    gate = staticmethod(F.silu)

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        rank = -(-width // 16) if config.dt_rank is None else config.dt_rank
        sizes = {"state": config.state, "expand": config.expand, "conv_kernel": config.conv_kernel, "dt_rank": rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        one_of("scan form", config.form, ("auto", "sequential", "associative", "chunked"))
        channels = config.expand * width
        self.parts = (rank, config.state, config.state)
        self.in_proj = nn.Linear(width, 2 * channels, bias=config.bias)
        self.conv = CausalConv(channels, config.conv_kernel, bias=config.conv_bias)
        self.x_proj = nn.Linear(channels, sum(self.parts), bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.a_log = nn.Parameter(torch.arange(1.0, config.state + 1).log().repeat(channels, 1))
        self.d = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=config.bias)
        if one_of("selective_ssm init", config.init, ("time_scales", "original")) == "original":
            for layer in (self.in_proj, self.x_proj, self.out_proj):
                nn.init.normal_(layer.weight, std=0.02)
            nn.init.uniform_(self.dt_proj.weight, -0.1, 0.1)
            return
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(sites)
            # Time steps between 0.001 and 0.1, uniform in the logarithm: the inverse of softplus gives their biases.
            dt = torch.exp(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)))
            self.dt_proj.bias.copy_(dt.expm1().log())

    def init_ssm(self, batch: int) -> Tensor:
        return self.d.new_zeros(batch, *self.a_log.shape)

    def recur(self, x_BTE, ssm, scope):
        dt_BTR, in_BTN, out_BTN = self.x_proj(x_BTE).split(self.parts, -1)
        dt_BTE = scope.tap("dt", F.softplus(self.dt_proj(dt_BTR)))
        # States are forgotten at a later segment's first token, and at a row's first one after padding.
        starts = [changes(ids_BT) for ids_BT in (scope.segments_BT, scope.padding_BT()) if ids_BT is not None]
        reset_BT = torch.stack(starts).any(0) if starts else None
        return selective_scan(x_BTE, dt_BTE, self.a_log, in_BTN, out_BTN, self.d, ssm, reset_BT=reset_BT)
