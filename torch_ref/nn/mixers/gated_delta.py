"""Gated DeltaNet."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from torch_ref.config import register
from torch_ref.nn.layers import linear
from torch_ref.nn.mixers.linear_attention import LinearAttention, resets
from torch_ref.ops.delta_rule import gated_delta_rule


@register("mixer", "gated_delta")
class GatedDelta(LinearAttention):
    """The gated delta rule on queries and keys of length 1, with one decay and one strength for each head."""

    always_active = True

    def __init__(self, config, width: int, sites: int):
        heads = config.heads
        values = heads if config.value_heads is None else config.value_heads
        if heads < 1 or values % heads:
            raise ValueError(f"value_heads {values} must be a multiple of heads {heads}")
        key_width = config.head_width
        if key_width is None:
            key_width, rest = divmod(3 * width, 4 * heads)
            if rest:
                raise ValueError(f"heads {heads} must divide 3/4 of the width {width}; otherwise set head_width")
        super().__init__(config, width, sites, (heads, heads, values), key_width, round(config.expand_v * key_width))
        self.strongest = 2 if config.allow_neg_eigval else 1
        self.a_proj = linear(width, values, config.init_std, bias=False)
        self.b_proj = linear(width, values, config.init_std, bias=False)
        self.a_log = nn.Parameter(torch.empty(values).uniform_(0.01, 16).log())
        # Time steps between 0.001 and 0.1, uniform in the logarithm: the inverse of softplus gives their biases.
        dt = torch.empty(values).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(dt.expm1().log())

    def recur(self, u_BTD, q_BTHK, k_BTHK, v_BTHV, matrix_BHKV, scope):
        log_decay_BTH = -F.softplus(self.a_proj(u_BTD) + self.dt_bias) * self.a_log.exp()
        beta_BTH = self.strongest * torch.sigmoid(self.b_proj(u_BTD))
        q_BTHK, k_BTHK = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q_BTHK, k_BTHK))
        log_decay_BTH, beta_BTH = scope.tap("log_decay", log_decay_BTH), scope.tap("beta", beta_BTH)
        options = {"reset_BT": resets(scope), "form": self.form, "chunk": self.chunk}
        return gated_delta_rule(q_BTHK, k_BTHK, v_BTHV, log_decay_BTH, beta_BTH, matrix_BHKV, **options)
