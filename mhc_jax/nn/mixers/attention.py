"""Causal multi-head attention with a key-value cache (GPT-2's; positions come with the embedding)."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.ops.attention import AttentionName, causal_attention
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("mixer", "attention")
@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Multi-head attention.

    Attributes:
        heads: H; divides the width.
        bias: whether the four projections have biases.
        init_std: standard deviation of the projections; that of the output is divided by the square root of the number
            of sites, as in GPT-2.
        dropout: of the attention probabilities.
        views: 1, or 3 when queries, keys and values are to be read apart by a topology of three views.
        implementation: see :func:`mhc_jax.ops.attention.causal_attention`; decoding always runs ``"xla"``.
    """

    heads: int = 12
    bias: bool = True
    init_std: float = 0.02
    dropout: float = 0.0
    views: int = 1
    implementation: AttentionName = "xla"

    def validate(self):
        super().validate()
        self.require(self.heads >= 1, f"heads must be at least 1, got {self.heads}")
        self.require(self.init_std > 0, f"init_std must be positive, got {self.init_std}")
        self.require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        self.require(self.views in (1, 3), f"views must be 1 or 3 (queries, keys, values), got {self.views}")
        self.require(
            self.implementation == "xla" or self.dropout == 0,
            "implementation 'cudnn' has no dropout of probabilities; use 'xla' or dropout 0",
        )

    def check(self, width):
        self.require(width % self.heads == 0, f"heads {self.heads} must divide the width {width}")

    def product_flops(self, width, length):
        """Scores with all keys and the sum of all values."""
        return 4 * width * length

    def build(self, width, policy, init):
        return Attention(self, width, policy, init)


class Attention(Mixer):
    """``out(softmax(q k' / sqrt(K)) v)``. The state is ``{"k", "v": (B, max_len, H, K)}``, by column of the cache."""

    def __init__(self, config: AttentionConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy, self.width, self.views = config, policy, width, config.views
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Dense(width, width, init / name, kernel=normal(std), bias=zeros if config.bias else False)
            for name, std in (
                ("q_proj", config.init_std),
                ("k_proj", config.init_std),
                ("v_proj", config.init_std),
                ("out_proj", config.init_std * init.sites**-0.5),
            )
        )

    def init_state(self, batch, max_len):
        shape = (batch, max_len, self.config.heads, self.width // self.config.heads)
        k, v = (jnp.zeros(shape, self.policy.compute) for _ in range(2))
        return {"k": k, "v": v}

    def __call__(self, u_BTD, state, scope):
        q, k, v = self._project(u_BTD, scope.values)
        if state is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(state[name], new, scope.column, axis=1)
                for name, new in (("k", k), ("v", v))
            )
            state = {"k": k, "v": v}
        y = causal_attention(
            q,
            k,
            v,
            start=None if state is None else scope.column,
            first_B=scope.start_B,
            segment_ids=scope.segments_BT,
            keep_BHTS=self._keep(q, k, scope.key_of("probabilities")),
            implementation=self.config.implementation if state is None else "xla",
        )
        return self.out_proj(scope.tap("attended", y.reshape(*y.shape[:2], -1))), state

    def _project(self, u, values):
        """Queries, keys and values (B, T, H, K)."""
        inputs = u.astype(self.policy.compute)
        q_in, k_in, v_in = inputs if self.views == 3 else (inputs,) * 3
        q, k, v = self.q_proj(q_in), self.k_proj(k_in), values(self.v_proj(v_in))
        return tuple(x.reshape(*x.shape[:2], self.config.heads, -1) for x in (q, k, v))

    def _keep(self, q_BTHK, k_BSHK, key):
        if key is None or self.config.dropout == 0:
            return None
        B, T, H, _ = q_BTHK.shape
        keep = jax.random.bernoulli(key, 1 - self.config.dropout, (B, H, T, k_BSHK.shape[1]))
        return keep.astype(self.policy.accumulate) / (1 - self.config.dropout)
