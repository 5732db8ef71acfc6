"""Gated linear attention."""

import torch.nn.functional as F

from torch_ref.config import one_of, register
from torch_ref.nn.layers import linear
from torch_ref.nn.mixers.linear_attention import LinearAttention, resets
from torch_ref.ops.gla import gated_linear_attention

FEATURES = {"none": lambda x: x, "relu": F.relu, "silu": F.silu}


@register("mixer", "gla")
class GLA(LinearAttention):
    """The decays of all key channels come through a narrow layer; ``gk_up`` alone has a bias."""

    always_active = False

    def __init__(self, config, width: int, sites: int):
        heads = config.heads
        groups = heads if config.kv_heads is None else config.kv_heads
        if groups < 1 or heads % groups:
            raise ValueError(f"kv_heads {groups} must divide heads {heads}")
        key_width, value_width = (round(expand * width / heads) for expand in (config.expand_k, config.expand_v))
        super().__init__(config, width, sites, (heads, groups, groups), key_width, value_width)
        self.feature = FEATURES[one_of("feature map", config.feature_map, FEATURES)]
        self.floor, self.normalizer = config.gate_floor, config.gate_normalizer
        self.gk_down = linear(width, config.gate_rank, config.init_std, bias=False)
        self.gk_up = linear(config.gate_rank, groups * key_width, config.init_std, bias=True)

    def recur(self, u_BTD, q_BTHK, k_BTHK, v_BTHV, matrix_BHKV, scope):
        log_decay_BTM = -F.softplus(-self.gk_up(self.gk_down(u_BTD))) / self.normalizer
        if self.floor is not None:
            log_decay_BTM = log_decay_BTM.clamp(min=self.floor)
        log_decay_BTM = scope.tap("log_decay", log_decay_BTM)
        decays_BTHK = self._by_head(log_decay_BTM.unflatten(-1, self.shapes[1]))
        q_BTHK, k_BTHK = self.feature(q_BTHK), self.feature(k_BTHK)
        options = {"reset_BT": resets(scope), "form": self.form, "chunk": self.chunk}
        return gated_linear_attention(q_BTHK, k_BTHK, v_BTHV, decays_BTHK, matrix_BHKV, **options)
