"""Multi-head latent attention (DeepSeek-V2): what is kept of a token is one latent, and one key with its position."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from torch_ref.config import register
from torch_ref.nn.layers import linear
from torch_ref.nn.mixers.base import Mixer
from torch_ref.nn.norms import build_norm
from torch_ref.nn.rotary import Rotary
from torch_ref.ops.attention import absorbed_latent_attention, latent_attention


@register("mixer", "latent_attention")
class LatentAttention(Mixer):
    """``out(softmax(scale (q . k_up c + q_rope . k_rope)) v_up c)``, where ``c = norm(kv_down u)`` has R channels.

    K channels of a query meet the keys that its head makes of c, and P channels, rotated, the key that heads share.
    The state is ``{"latent": (B, columns so far, R), "k_rope": (B, columns so far, P), "max_len"}``, its keys rotated;
    ``"k_rope"`` is missing without rotary positions.
    """

    def __init__(self, config, width: int, sites: int):
        super().__init__()
        H, turned = config.heads, config.rotary != "none"
        K = width // H if config.head_width is None else config.head_width
        V = K if config.value_head_width is None else config.value_head_width
        P = config.rotary_width if turned else 0
        if P is None:
            P = max(2, K // 4 * 2)
        R = width * 3 // 5 - P if config.latent_width is None else config.latent_width
        if min(H, K, V, R) < 1:
            raise ValueError(
                f"latent_attention needs widths of at least 1, got heads {H} of {K} and {V}, latents of {R}"
            )
        self.heads, self.head_width, self.rotary_width, self.rate = H, K, P, config.dropout
        self.causal = config.causal
        self.rotary = Rotary(config.rotary, P, config.rotary_base, config.rotary_scaling)
        mscale = 1.0
        if config.mscale_all_dim:
            mscale += 0.1 * config.mscale_all_dim * math.log(config.rotary_scaling.factor)
        self.scale = mscale * mscale / math.sqrt(K + P)
        std, bias, queries = config.init_std, config.bias, config.query_latent_width
        self.q_proj = linear(width, H * (K + P), std, False) if queries is None else None
        if queries is not None:
            self.q_down_proj = linear(width, queries, std, bias)
            self.q_norm = build_norm(config.latent_norm, queries)
            self.q_up_proj = linear(queries, H * (K + P), std, False)
        self.kv_down_proj = linear(width, R, std, bias)
        self.kv_norm = build_norm(config.latent_norm, R)
        if P:
            self.k_rope_proj = linear(width, P, std, bias)
        self.k_up_proj = linear(R, H * K, std, False)
        self.v_up_proj = linear(R, H * V, std, False)
        self.out_proj = linear(H * V, width, std * (sites**-0.5 if config.scale_output else 1.0), bias)

    def init_state(self, batch: int, max_len: int) -> dict[str, Any]:
        if not self.causal:
            raise ValueError("attention that is not causal sees later tokens: it cannot decode")
        widths = {"latent": self.kv_down_proj.out_features, "k_rope": self.rotary_width}
        empty = {name: self.out_proj.weight.new_zeros(batch, 0, x) for name, x in widths.items() if x}
        return empty | {"max_len": max_len}

    def forward(self, u_BTD, state, scope):
        positions_BT = scope.positions_BT
        q_BTHK, q_rope_BTHP = self._queries(u_BTD).split([self.head_width, self.rotary_width], -1)
        kept = {"latent": scope.tap("latent", scope.values(self.kv_norm(self.kv_down_proj(u_BTD))))}
        if self.rotary_width:
            kept["k_rope"] = self.rotary(self.k_rope_proj(u_BTD).unsqueeze(2), positions_BT).squeeze(2)
        start = None
        if state is not None:
            end = scope.column + u_BTD.shape[1]
            if end > state["max_len"]:
                raise ValueError(f"a cache of max_len {state['max_len']} has no room for {end} tokens; make it longer")
            if scope.column:
                start, kept = scope.column, {name: torch.cat([state[name], x], 1) for name, x in kept.items()}
            state = state | kept
        attend = latent_attention if start is None else absorbed_latent_attention
        y_BTHV = attend(
            q_BTHK,
            self.rotary(q_rope_BTHP, positions_BT),
            kept["latent"],
            kept.get("k_rope", kept["latent"][..., :0]),
            self._up(self.k_up_proj),
            self._up(self.v_up_proj),
            scale=self.scale,
            start=start,
            start_B=scope.start_B,
            segment_ids=scope.segments_BT,
            causal=self.causal,
            dropout=self.rate if self.training else 0.0,
        )
        return self.out_proj(scope.tap("attended", y_BTHV.flatten(2))), state

    def _queries(self, u_BTD: Tensor) -> Tensor:
        """(B, T, H, K + P), the latter P not yet rotated."""
        if self.q_proj is None:
            q_BTM = self.q_up_proj(self.q_norm(self.q_down_proj(u_BTD)))
        else:
            q_BTM = self.q_proj(u_BTD)
        return q_BTM.unflatten(-1, (self.heads, -1))

    def _up(self, layer: nn.Linear) -> Tensor:
        """The map (R, H, ...) of a layer from latents to all heads."""
        return layer.weight.T.unflatten(1, (self.heads, -1))
