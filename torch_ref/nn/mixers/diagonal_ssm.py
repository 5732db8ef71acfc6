"""The gated diagonal-SSM unit of mHC-SSM (its norm and residual live outside, in the block)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.layers import CausalConv
from torch_ref.nn.mixers.base import Mixer
from torch_ref.ops.diag_ssm import diag_ssm


class SSM(nn.Module):
    """Holds the four per-channel vectors of the recurrence.

    ``"time_scales"`` spreads the memories 1 / (1 - a) geometrically over 2 .. 1000 tokens, with
    ``b = sqrt(1 - a^2)`` (unit state variance for white input) and c = d = 1.
    """

    def __init__(self, width: int, init: str):
        super().__init__()
        if one_of("diagonal_ssm init", init, ("time_scales", "original")) == "original":
            logit_a, b, c = 0.02 * torch.randn(3, width)
            d = torch.zeros(width)
        else:
            memory = torch.linspace(math.log(2), math.log(1000), width, dtype=torch.float64).exp()
            logit_a = torch.log(memory - 1)  # the logit of a = 1 - 1 / memory
            b = (1 - (1 - 1 / memory).square()).sqrt()
            c = d = torch.ones(width)
        self.logit_a, self.b, self.c, self.d = (nn.Parameter(leaf.float().clone()) for leaf in (logit_a, b, c, d))


@register("mixer", "diagonal_ssm")
class DiagonalSSM(Mixer):
    """``out(sigmoid(gate) * SSM(SiLU(conv(u))))`` with ``u, gate = in_proj(x)``.

    The state is ``{"inputs": (B, K-1, D), "ssm": (B, D)}``.
    """

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        if config.conv_kernel < 1 or config.chunk < 1:
            raise ValueError(f"conv_kernel {config.conv_kernel} and chunk {config.chunk} must be at least 1")
        self.form = one_of("scan form", config.form, ("auto", "sequential", "associative", "chunked"))
        self.chunk, self.width, self.taps = config.chunk, width, config.conv_kernel
        self.in_proj = nn.Linear(width, 2 * width)
        self.conv = CausalConv(width, config.conv_kernel)
        self.ssm = SSM(width, config.init)
        self.out_proj = nn.Linear(width, width)

    def init_state(self, batch: int, max_len: int) -> dict[str, Tensor]:
        like = self.ssm.b
        return {"inputs": like.new_zeros(batch, self.taps - 1, self.width), "ssm": like.new_zeros(batch, self.width)}

    def forward(self, u_BTD, state, scope):
        before = self.init_state(len(u_BTD), 0) if state is None else state
        padding_BT, segments_BT = scope.padding_BT(), scope.segments_BT
        x_BTD, gate_BTD = self.in_proj(u_BTD).chunk(2, -1)
        # Zeros leave the filter and the recurrence as empty as they start.
        x_BTD = _without(padding_BT, scope.values(x_BTD))
        inputs_BJD = torch.cat([before["inputs"], x_BTD], 1)[:, x_BTD.shape[1] :]
        x_BTD = scope.tap("conv", F.silu(self.conv(x_BTD, before["inputs"], segments_BT)))
        ssm = self.ssm
        y_BTD, s_BD = diag_ssm(
            _without(padding_BT, x_BTD),
            ssm.logit_a,
            ssm.b,
            ssm.c,
            ssm.d,
            before["ssm"],
            reset_BT=None if segments_BT is None else _segment_starts(segments_BT),
            form=self._form(u_BTD.device.type),
            chunk=self.chunk,
        )
        y_BTD = self.out_proj(scope.tap("ssm", y_BTD) * gate_BTD.sigmoid())
        return y_BTD, None if state is None else {"inputs": inputs_BJD, "ssm": s_BD}

    def _form(self, device: str) -> str:
        if self.form != "auto":
            return self.form
        return "sequential" if device == "cpu" else "chunked"


def _segment_starts(segment_ids: Tensor) -> Tensor:
    """(B, T) true at the first token of every segment but the first, whose state is the initial one."""
    return F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))


def _without(padding_BT: Tensor | None, x_BTD: Tensor) -> Tensor:
    """``x`` with zeros for padding."""
    return x_BTD if padding_BT is None else x_BTD.masked_fill(padding_BT[..., None], 0)
