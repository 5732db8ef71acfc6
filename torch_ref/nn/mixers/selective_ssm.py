"""The selective state-space mixer of Mamba."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.layers import CausalConv
from torch_ref.nn.mixers.base import Mixer
from torch_ref.ops.selective_scan import selective_scan


@register("mixer", "selective_ssm")
class SelectiveSSM(Mixer):
    """``out(SiLU(gate) * SSM(SiLU(conv(u))))`` with ``u, gate = in_proj(x)``, on E channels of N states each.

    The state is ``{"inputs": (B, K-1, E), "ssm": (B, E, N)}``.
    """

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        rank = -(-width // 16) if config.dt_rank is None else config.dt_rank
        sizes = {"state": config.state, "expand": config.expand, "conv_kernel": config.conv_kernel, "dt_rank": rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        one_of("scan form", config.form, ("auto", "sequential", "associative", "chunked"))
        channels = config.expand * width
        self.taps, self.channels = config.conv_kernel, channels
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

    def init_state(self, batch: int, max_len: int) -> dict[str, Tensor]:
        like = self.d
        return {
            "inputs": like.new_zeros(batch, self.taps - 1, self.channels),
            "ssm": like.new_zeros(batch, *self.a_log.shape),
        }

    def forward(self, u_BTD, state, scope):
        before = self.init_state(len(u_BTD), 0) if state is None else state
        padding_BT, segments_BT = scope.padding_BT(), scope.segments_BT
        x_BTE, gate_BTE = self.in_proj(u_BTD).chunk(2, -1)
        # Zeros leave the filter as empty as it starts; what the states take from padding is forgotten at a row's start.
        x_BTE = scope.values(x_BTE)
        if padding_BT is not None:
            x_BTE = x_BTE.masked_fill(padding_BT[..., None], 0)
        inputs_BJE = torch.cat([before["inputs"], x_BTE], 1)[:, x_BTE.shape[1] :]
        x_BTE = scope.tap("conv", F.silu(self.conv(x_BTE, before["inputs"], segments_BT)))
        dt_BTR, in_BTN, out_BTN = self.x_proj(x_BTE).split(self.parts, -1)
        dt_BTE = scope.tap("dt", F.softplus(self.dt_proj(dt_BTR)))
        y_BTE, s_BEN = selective_scan(
            x_BTE,
            dt_BTE,
            self.a_log,
            in_BTN,
            out_BTN,
            self.d,
            before["ssm"],
            reset_BT=_starts(segments_BT, padding_BT),
        )
        y_BTD = self.out_proj(scope.tap("ssm", y_BTE) * F.silu(gate_BTE))
        return y_BTD, None if state is None else {"inputs": inputs_BJE, "ssm": s_BEN}


def _starts(segments_BT: Tensor | None, padding_BT: Tensor | None) -> Tensor | None:
    """(B, T) true at the first token of a later segment, and at the first real one of a row after padding."""
    ends = [ids_BT for ids_BT in (segments_BT, padding_BT) if ids_BT is not None]
    if not ends:
        return None
    changes = [F.pad(ids_BT[:, 1:] != ids_BT[:, :-1], (1, 0)) for ids_BT in ends]
    return torch.stack(changes).any(0)
