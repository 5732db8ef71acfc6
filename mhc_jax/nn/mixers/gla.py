"""Gated linear attention (Yang, Wang, Shen, Panda and Kim, arXiv 2312.06635)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.mixers.linear_attention import Heads, LinearAttention, LinearAttentionConfig, repeated
from mhc_jax.ops.gla import gated_linear_attention
from mhc_jax.precision import Policy
from mhc_jax.registry import register

_FEATURES = {"relu": jax.nn.relu, "silu": jax.nn.silu}


@register("mixer", "gla")
@dataclasses.dataclass(frozen=True)
class GLAConfig(LinearAttentionConfig):
    """``S_t = diag(a_t) S_{t-1} + k_t v_t'`` with ``a = sigmoid(gk_up(gk_down(x)))^(1 / gate_normalizer)``.

    Other fields are those of :class:`mhc_jax.nn.mixers.linear_attention.LinearAttentionConfig`.

    Attributes:
        heads: H, of queries and of the output.
        kv_heads: G, of keys, values and decays; divides H, and is H if None.
        expand_k, expand_v: widths of all queries and of the whole output, as multiples of the model's.
        gate_rank: width through which the decays are computed.
        gate_normalizer: with larger ones, states remember longer.
        gate_floor: least logarithm of a decay; None for none.
        feature_map: of queries and keys.
    """

    decays_by_key: ClassVar[bool] = True

    heads: int = 4
    kv_heads: int | None = None
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    gate_normalizer: float = 16.0
    gate_floor: float | None = None
    feature_map: Literal["none", "relu", "silu"] = "none"

    def validate(self):
        super().validate()
        self.require_counts(1, "heads", "gate_rank")
        if self.kv_heads is not None:
            self.require_counts(1, "kv_heads")
        groups = self.kv_heads or self.heads
        self.require(self.heads % groups == 0, f"kv_heads {groups} must divide heads {self.heads}")
        for name in ("expand_k", "expand_v", "gate_normalizer"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        floor = self.gate_floor
        self.require(floor is None or floor <= 0, f"gate_floor must not be above 0, got {floor}")

    def small(self):
        return self.replace(heads=2, kv_heads=self.kv_heads and 1, gate_rank=3, chunk=4)

    def check(self, width):
        for name in ("expand_k", "expand_v"):
            expand = getattr(self, name)
            head = expand * width / self.heads
            whole = abs(head - round(head)) < 1e-6 and head > 0.5
            self.require(whole, f"heads {self.heads} must divide {name} {expand} times the width {width}")

    def shape(self, width):
        groups = self.kv_heads or self.heads
        K, V = (round(expand * width / self.heads) for expand in (self.expand_k, self.expand_v))
        return Heads(self.heads, groups, groups, K, V)

    def product_flops(self, width, length):
        # Of each number of a state: decay, and twice for what is written and read.
        heads = self.shape(width)
        return 5 * heads.out * heads.K * heads.V

    def build(self, width, policy, init):
        return GLA(self, width, policy, init)


class GLA(LinearAttention):
    """See :class:`GLAConfig`."""

    def __init__(self, config: GLAConfig, width: int, policy: Policy, init: Init):
        super().__init__(config, width, policy, init)
        rank, keys, std = config.gate_rank, self.heads.keys * self.heads.K, normal(config.init_std)
        self.gk_down = Dense(width, rank, init / "gk_down", ("embed", ""), kernel=std, bias=False)
        self.gk_up = Dense(rank, keys, init / "gk_up", ("", "heads"), kernel=std, bias=zeros)

    def recur(self, u_BTD, qkv, matrix_BHKV, scope):
        config, (q_BTHK, k_BTHK, v_BTHV) = self.config, qkv
        if config.feature_map != "none":
            feature = _FEATURES[config.feature_map]
            q_BTHK, k_BTHK = feature(q_BTHK), feature(k_BTHK)
        gate_BTM = self.gk_up(self.gk_down(u_BTD)).astype(self.policy.accumulate)
        log_decay_BTM = jax.nn.log_sigmoid(gate_BTM) / config.gate_normalizer
        if config.gate_floor is not None:
            log_decay_BTM = jnp.maximum(log_decay_BTM, config.gate_floor)
        log_decay_BTM = scope.tap("log_decay", log_decay_BTM)
        by_group = log_decay_BTM.reshape(*log_decay_BTM.shape[:2], self.heads.keys, self.heads.K)
        return gated_linear_attention(
            q_BTHK,
            k_BTHK,
            v_BTHV,
            repeated(by_group, self.heads.out),
            matrix_BHKV,
            reset_BT=scope.starts_BT(u_BTD.shape[1]),
            form=config.form,
            chunk=config.chunk,
            implementation=config.implementation,
            batch_sharding=scope.batch_sharding,
        )
