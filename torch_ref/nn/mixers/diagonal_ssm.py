"""The gated diagonal-SSM unit of mHC-SSM (its norm and residual live outside, in the block)."""

import math

import torch
from torch import Tensor, nn

from torch_ref.config import one_of, register
from torch_ref.nn.layers import CausalConv
from torch_ref.nn.mixers.gated_ssm import GatedSSM, changes, without
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
class DiagonalSSM(GatedSSM):
    """The gate is a sigmoid; the recurrence carries (B, D)."""

    gate = staticmethod(torch.sigmoid)

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        if config.conv_kernel < 1 or config.chunk < 1:
            raise ValueError(f"conv_kernel {config.conv_kernel} and chunk {config.chunk} must be at least 1")
        self.form = one_of("scan form", config.form, ("auto", "sequential", "associative", "chunked"))
        self.chunk = config.chunk
        self.in_proj = nn.Linear(width, 2 * width)
        self.conv = CausalConv(width, config.conv_kernel)
        self.ssm = SSM(width, config.init)
        self.out_proj = nn.Linear(width, width)

    def init_ssm(self, batch: int) -> Tensor:
        return self.ssm.b.new_zeros(batch, len(self.ssm.b))

    def recur(self, x_BTE, ssm, scope):
        segments_BT, own = scope.segments_BT, self.ssm
        return diag_ssm(
            without(scope.padding_BT(), x_BTE),  # zeros leave the recurrence as empty as it starts
            own.logit_a,
            own.b,
            own.c,
            own.d,
            ssm,
            # What the first segment finds is the state.
            reset_BT=None if segments_BT is None else changes(segments_BT),
            form=self._form(x_BTE.device.type),
            chunk=self.chunk,
        )

    def _form(self, device: str) -> str:
        if self.form != "auto":
            return self.form
        return "sequential" if device == "cpu" else "chunked"
