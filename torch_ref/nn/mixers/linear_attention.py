"""What the mixers share whose heads carry a matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ref.config import one_of, required
from torch_ref.nn.layers import CausalConv, linear
from torch_ref.nn.mixers.base import Mixer
from torch_ref.nn.mixers.gated_ssm import changes, without
from torch_ref.nn.norms.rms import RMSNorm
from torch_ref.nn.scope import Scope

GATES = {"silu": F.silu, "sigmoid": torch.sigmoid}


class LinearAttention(Mixer):
    """``out(gate(g) * norm(recurrence(q, k, v)))``; the state is ``{"matrix": (B, H, K, V), "inputs": (B, J, E)}``.

    Built with the numbers of heads of queries, keys and values, and the widths of a head of keys and of values.
    ``"inputs"`` is there only with convolutions.
    """

    # Whether there is a SiLU without a convolution, too.
    always_active: bool
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    q_conv: CausalConv
    k_conv: CausalConv
    v_conv: CausalConv

    def __init__(self, config, width: int, sites: int, heads: tuple[int, int, int], key_width: int, value_width: int):
        super().__init__()
        self.form, self.chunk = one_of("form", config.form, ("chunked", "recurrent")), config.chunk
        if config.chunk < 1 or (config.conv_kernel is not None and config.conv_kernel < 1):
            raise ValueError(f"conv_kernel {config.conv_kernel} and chunk {config.chunk} must be at least 1")
        std, self.rate, self.out_heads = config.init_std, config.dropout, max(heads)
        self.shapes = list(zip(heads, (key_width, key_width, value_width)))
        for name, (count, channels) in zip("qkv", self.shapes):
            setattr(self, f"{name}_proj", linear(width, count * channels, std, bias=False))
        self.taps = config.conv_kernel
        if self.taps is not None:
            for name, (count, channels) in zip("qkv", self.shapes):
                conv = CausalConv(count * channels, self.taps, bias=False)
                nn.init.normal_(conv.weight, std=std)
                setattr(self, f"{name}_conv", conv)
        self.gate = None
        if config.output_gate is not None:
            self.gate = GATES[one_of("output gate", config.output_gate, GATES)]
            self.g_proj = linear(width, self.out_heads * value_width, std, bias=False)
        self.o_norm = RMSNorm(_Epsilon(config.norm_eps), value_width)
        scaled = std / (sites**0.5 if config.scale_output else 1)
        self.out_proj = linear(self.out_heads * value_width, width, scaled, bias=False)

    @required
    def recur(
        self, u_BTD: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, matrix_BHKV: Tensor, scope: Scope
    ) -> tuple[Tensor, Tensor]:
        """The recurrence over the tokens after the matrix, and the matrix after the last."""

    def init_state(self, batch: int, max_len: int) -> dict[str, Tensor]:
        weight = self.out_proj.weight
        (_, key_width), _, (_, value_width) = self.shapes
        state = {"matrix": weight.new_zeros(batch, self.out_heads, key_width, value_width)}
        if self.taps is not None:
            channels = sum(count * width for count, width in self.shapes)
            state["inputs"] = weight.new_zeros(batch, self.taps - 1, channels)
        return state

    def forward(self, u_BTD, state, scope):
        B, T, _ = u_BTD.shape
        before = self.init_state(B, 0) if state is None else state
        parts = [self.q_proj(u_BTD), self.k_proj(u_BTD), scope.values(self.v_proj(u_BTD))]
        parts = [without(scope.padding_BT(), F.dropout(x_BTE, self.rate, self.training)) for x_BTE in parts]
        widths, after = [x_BTE.shape[-1] for x_BTE in parts], {}
        if self.taps is not None:
            after["inputs"] = torch.cat([before["inputs"], torch.cat(parts, -1)], 1)[:, T:]
            histories = before["inputs"].split(widths, -1)
            convs = (self.q_conv, self.k_conv, self.v_conv)
            parts = [
                conv(x_BTE, history_BJE, scope.segments_BT) for conv, x_BTE, history_BJE in zip(convs, parts, histories)
            ]
        if self.always_active or self.taps is not None:
            parts = [F.silu(x_BTE) for x_BTE in parts]
        parts = scope.tap("qkv", torch.cat(parts, -1)).split(widths, -1)
        q, k, v = (self._by_head(x_BTE.unflatten(-1, shape)) for x_BTE, shape in zip(parts, self.shapes))
        y_BTHV, after["matrix"] = self.recur(u_BTD, q, k, v, before["matrix"], scope)
        y_BTE = self.o_norm(scope.tap("read", y_BTHV)).flatten(2)
        if self.gate is not None:
            y_BTE = y_BTE * self.gate(self.g_proj(u_BTD))
        return self.out_proj(y_BTE), None if state is None else after

    def _by_head(self, x_BTGM: Tensor) -> Tensor:
        """Each group of heads as often as the output needs it."""
        return x_BTGM.repeat_interleave(self.out_heads // x_BTGM.shape[2], 2)


class _Epsilon:
    """What a norm asks a configuration for."""

    kind = "rms"

    def __init__(self, eps: float):
        self.eps = eps


def resets(scope: Scope) -> Tensor | None:
    """(B, T) true at a later segment's first token, and at a row's first one after padding."""
    starts = [changes(ids_BT) for ids_BT in (scope.segments_BT, scope.padding_BT()) if ids_BT is not None]
    return torch.stack(starts).any(0) if starts else None
