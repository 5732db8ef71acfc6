"""What the state-space mixers share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import required
from torch_ref.nn.layers import CausalConv
from torch_ref.nn.mixers.base import Mixer
from torch_ref.nn.scope import Scope


class GatedSSM(Mixer):
    """``out(gate(g) * recurrence(SiLU(conv(u))))`` with ``u, g = in_proj(x)``, on E channels.

    The state is ``{"inputs": (B, K-1, E), "ssm": ...}``. Subclasses set the layers and the activation of the gate.
    """

    gate: Callable[[Tensor], Tensor]
    in_proj: nn.Linear
    conv: CausalConv
    out_proj: nn.Linear

    @required
    def init_ssm(self, batch: int) -> Tensor:
        """What the recurrence carries before the first token."""

    @required
    def recur(self, x_BTE: Tensor, ssm: Tensor, scope: Scope) -> tuple[Tensor, Tensor]:
        """The recurrence over the tokens after ``ssm``, and what it carries after the last."""

    def init_state(self, batch: int, max_len: int) -> dict[str, Tensor]:
        channels, _, taps = self.conv.weight.shape
        return {"inputs": self.conv.weight.new_zeros(batch, taps - 1, channels), "ssm": self.init_ssm(batch)}

    def forward(self, u_BTD, state, scope):
        before = self.init_state(len(u_BTD), 0) if state is None else state
        x_BTE, gate_BTE = self.in_proj(u_BTD).chunk(2, -1)
        x_BTE = without(scope.padding_BT(), scope.values(x_BTE))  # zeros leave the filter as empty as it starts
        inputs_BJE = torch.cat([before["inputs"], x_BTE], 1)[:, x_BTE.shape[1] :]
        x_BTE = scope.tap("conv", F.silu(self.conv(x_BTE, before["inputs"], scope.segments_BT)))
        y_BTE, ssm = self.recur(x_BTE, before["ssm"], scope)
        y_BTD = self.out_proj(scope.tap("ssm", y_BTE) * self.gate(gate_BTE))
        return y_BTD, None if state is None else {"inputs": inputs_BJE, "ssm": ssm}


def changes(ids_BT: Tensor) -> Tensor:
    """(B, T) true where an entry differs from the one before it."""
    return F.pad(ids_BT[:, 1:] != ids_BT[:, :-1], (1, 0))


def without(padding_BT: Tensor | None, x_BTE: Tensor) -> Tensor:
    """``x`` with zeros for padding."""
    return x_BTE if padding_BT is None else x_BTE.masked_fill(padding_BT[..., None], 0)
