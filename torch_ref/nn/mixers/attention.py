"""Multi-head attention with a key-value cache: causal or not, grouped heads, rotary positions, normalised heads."""

from typing import Any

import torch
from torch import Tensor

from torch_ref.config import as_record, register
from torch_ref.nn.layers import linear
from torch_ref.nn.mixers.base import Mixer
from torch_ref.nn.norms import Norm, build_norm
from torch_ref.nn.rotary import Rotary
from torch_ref.ops.attention import causal_attention
from torch_ref.ops.norm import RMS_EPS


def _qk_norm_of(config: Any) -> Any:
    """The record of the norm of queries and keys, or None; in older configurations it was whether there is one."""
    norm = getattr(config, "qk_norm", None)
    return as_record({"kind": "rms", "eps": getattr(config, "qk_norm_eps", RMS_EPS)}) if norm is True else norm


@register("mixer", "attention")
class Attention(Mixer):
    """``out(softmax(q k' / sqrt(K)) v)`` with H heads of queries and G heads of keys and values.

    Queries and keys are normalised, then rotated, if the configuration says so. The state is ``{"k", "v": (B, columns
    so far, G, K), "max_len"}``, its keys rotated.
    """

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        head_width, kv_heads = getattr(config, "head_width", None), getattr(config, "kv_heads", None)
        if config.heads < 1 or (head_width is None and width % config.heads):
            raise ValueError(f"heads {config.heads} must divide the width {width}")
        if config.views not in (1, 3):
            raise ValueError(f"attention takes 1 or 3 views, not {config.views}")
        self.heads, self.rate, self.views = config.heads, config.dropout, config.views
        self.head_width = width // config.heads if head_width is None else head_width
        self.kv_heads = config.heads if kv_heads is None else kv_heads
        if self.head_width < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(
                f"attention: kv_heads {self.kv_heads} must divide heads {self.heads}, "
                f"and head_width {self.head_width} be at least 1"
            )
        self.causal = getattr(config, "causal", True)
        options = getattr(config, "rotary_base", 10000.0), getattr(config, "rotary_scaling", None)
        self.rotary = Rotary(getattr(config, "rotary", "none"), self.head_width, *options)
        inner, carried = self.heads * self.head_width, self.kv_heads * self.head_width
        self.q_proj = linear(width, inner, config.init_std, config.bias)
        self.k_proj = linear(width, carried, config.init_std, config.bias)
        self.v_proj = linear(width, carried, config.init_std, config.bias)
        scale = sites**-0.5 if getattr(config, "scale_output", True) else 1.0
        self.out_proj = linear(inner, width, config.init_std * scale, config.bias)
        normalise = _qk_norm_of(config)
        self.q_norm = build_norm(normalise, self.head_width) if normalise else None
        self.k_norm = build_norm(normalise, self.head_width) if normalise else None

    def init_state(self, batch: int, max_len: int) -> dict[str, Any]:
        if not self.causal:
            raise ValueError("attention that is not causal sees later tokens: it cannot decode")
        empty = self.q_proj.weight.new_zeros(batch, 0, self.kv_heads, self.head_width)
        return {"k": empty, "v": empty, "max_len": max_len}

    def forward(self, u_BTD, state, scope):
        q_in, k_in, v_in = u_BTD if self.views == 3 else (u_BTD, u_BTD, u_BTD)
        q = self._placed(self.q_proj(q_in), self.heads, self.q_norm, scope.positions_BT)
        k = self._placed(self.k_proj(k_in), self.kv_heads, self.k_norm, scope.positions_BT)
        v = scope.values(self.v_proj(v_in)).unflatten(-1, (self.kv_heads, -1))
        start = None
        if state is not None:
            end = scope.column + q.shape[1]
            if end > state["max_len"]:
                raise ValueError(f"a cache of max_len {state['max_len']} has no room for {end} tokens; make it longer")
            if scope.column:
                start, k, v = scope.column, torch.cat([state["k"], k], 1), torch.cat([state["v"], v], 1)
            state = state | {"k": k, "v": v}
        y = causal_attention(
            q,
            k,
            v,
            start=start,
            start_B=scope.start_B,
            segment_ids=scope.segments_BT,
            causal=self.causal,
            dropout=self.rate if self.training else 0.0,
        )
        return self.out_proj(scope.tap("attended", y.flatten(2))), state

    def _placed(self, x_BTM: Tensor, heads: int, norm: Norm | None, positions_BT: Tensor) -> Tensor:
        """Queries or keys as they meet, (B, T, heads, K)."""
        x_BTHK = x_BTM.unflatten(-1, (heads, -1))
        if norm is not None:
            x_BTHK = norm(x_BTHK)
        return self.rotary(x_BTHK, positions_BT)
