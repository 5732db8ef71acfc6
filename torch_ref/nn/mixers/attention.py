"""Causal multi-head attention with a key-value cache."""

import torch
from torch import Tensor

from torch_ref.config import register
from torch_ref.nn.layers import linear
from torch_ref.nn.mixers.base import Mixer, own_values
from torch_ref.nn.taps import no_tap
from torch_ref.ops.attention import causal_attention


@register("mixer", "attention")
class Attention(Mixer):
    """``out(softmax(q k' / sqrt(K)) v)``.

    The state is ``{"k", "v": (B, length, H, K)}``: what was seen so far, nothing at first.
    """

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        if config.heads < 1 or width % config.heads:
            raise ValueError(f"heads {config.heads} must divide the width {width}")
        if config.views not in (1, 3):
            raise ValueError(f"attention takes 1 or 3 views, not {config.views}")
        self.heads, self.rate, self.views, self.width = config.heads, config.dropout, config.views, width
        self.q_proj = linear(width, width, config.init_std, config.bias)
        self.k_proj = linear(width, width, config.init_std, config.bias)
        self.v_proj = linear(width, width, config.init_std, config.bias)
        self.out_proj = linear(width, width, config.init_std / sites**0.5, config.bias)

    def init_state(self, batch: int, max_len: int) -> dict[str, Tensor]:
        empty = self.q_proj.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return {"k": empty, "v": empty}

    def forward(self, u_BTD, state, *, segment_ids=None, values=own_values, tap=no_tap):
        q_in, k_in, v_in = u_BTD if self.views == 3 else (u_BTD, u_BTD, u_BTD)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)) for x in (self.q_proj(q_in), self.k_proj(k_in), values(self.v_proj(v_in)))
        )
        start = state["k"].shape[1]
        if start:
            k, v = torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1)
        y = causal_attention(
            q,
            k,
            v,
            start=start or None,
            segment_ids=segment_ids,
            dropout=self.rate if self.training else 0.0,
        )
        return self.out_proj(tap("attended", y.flatten(2))), {"k": k, "v": v}
