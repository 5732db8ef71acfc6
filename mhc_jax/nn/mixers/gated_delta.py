"""Gated DeltaNet (Yang, Kautz and Hatamizadeh, arXiv 2412.06464)."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, normal, time_steps
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.mixers.linear_attention import Heads, LinearAttention, LinearAttentionConfig
from mhc_jax.ops.delta_rule import gated_delta_rule
from mhc_jax.precision import Policy
from mhc_jax.registry import register

# Rates at the start; a rate of 0 would have no logarithm.
RATES = (0.01, 16.0)
# Added to the squared length of queries and keys.
LENGTH_EPS = 1e-6


@register("mixer", "gated_delta")
@dataclasses.dataclass(frozen=True)
class GatedDeltaConfig(LinearAttentionConfig):
    """``S_t = a_t (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'`` (Gated DeltaNet), queries and keys of length 1.

    ``a = exp(-exp(a_log) softplus(a_proj(x) + dt_bias))`` and ``beta = sigmoid(b_proj(x))``, one number for each head.

    Other fields are those of :class:`mhc_jax.nn.mixers.linear_attention.LinearAttentionConfig`.

    Attributes:
        heads: of queries and keys.
        value_heads: a multiple of ``heads``, and that number if None.
        head_width: K, of queries and keys; None for three quarters of the model's width over the heads: with
            ``expand_v`` 2 and a gate the mixer then has about six times the square of the width in parameters.
        expand_v: width of values, as a multiple of K.
        allow_neg_eigval: ``beta`` up to 2, so that a state may turn along a key (arXiv 2411.12537).
    """

    heads: int = 6
    value_heads: int | None = None
    head_width: int | None = None
    expand_v: float = 2.0
    conv_kernel: int | None = 4
    allow_neg_eigval: bool = False

    def validate(self):
        super().validate()
        for name in ("heads", "value_heads", "head_width"):
            if getattr(self, name) is not None:
                self.require_counts(1, name)
        values = self.value_heads or self.heads
        self.require(values % self.heads == 0, f"value_heads {values} must be a multiple of heads {self.heads}")
        self.require(self.expand_v > 0, f"expand_v must be positive, got {self.expand_v}")

    def small(self):
        return self.replace(heads=2, value_heads=self.value_heads and 4, head_width=3, expand_v=4 / 3, chunk=4)

    def check(self, width):
        whole = self.head_width is not None or 3 * width % (4 * self.heads) == 0
        self.require(whole, f"heads {self.heads} must divide 3/4 of the width {width}; otherwise set head_width")
        K = self._key_width(width)
        V = self.expand_v * K
        self.require(
            abs(V - round(V)) < 1e-6 and V > 0.5, f"expand_v {self.expand_v} of a head of {K} is no whole number"
        )

    def _key_width(self, width: int) -> int:
        return self.head_width or 3 * width // (4 * self.heads)

    def shape(self, width):
        K = self._key_width(width)
        return Heads(self.heads, self.heads, self.value_heads or self.heads, K, round(self.expand_v * K))

    @property
    def activates(self):
        return True

    def product_flops(self, width, length):
        # Of each number of a state: decay, and twice for what is read back, written and read.
        heads = self.shape(width)
        return 7 * heads.out * heads.K * heads.V

    def build(self, width, policy, init):
        return GatedDelta(self, width, policy, init)


class GatedDelta(LinearAttention):
    """See :class:`GatedDeltaConfig`."""

    def __init__(self, config: GatedDeltaConfig, width: int, policy: Policy, init: Init):
        super().__init__(config, width, policy, init)
        heads, std = self.heads.out, normal(config.init_std)
        self.a_proj, self.b_proj = (
            Dense(width, heads, init / name, ("embed", ""), kernel=std, bias=False) for name in ("a_proj", "b_proj")
        )
        self.a_log = init("a_log", _rates, heads)
        self.dt_bias = init("dt_bias", time_steps, heads)

    def recur(self, u_BTD, qkv, matrix_BHKV, scope):
        accumulate, (q_BTHK, k_BTHK, v_BTHV) = self.policy.accumulate, qkv
        dt_BTH = jax.nn.softplus(self.a_proj(u_BTD).astype(accumulate) + self.dt_bias[...].astype(accumulate))
        log_decay_BTH = -jnp.exp(self.a_log[...].astype(accumulate)) * dt_BTH
        beta_BTH = jax.nn.sigmoid(self.b_proj(u_BTD).astype(accumulate))
        return gated_delta_rule(
            _of_length_one(q_BTHK),
            _of_length_one(k_BTHK),
            v_BTHV,
            scope.tap("log_decay", log_decay_BTH),
            scope.tap("beta", 2 * beta_BTH if self.config.allow_neg_eigval else beta_BTH),
            matrix_BHKV,
            reset_BT=scope.starts_BT(u_BTD.shape[1]),
            form=self.config.form,
            chunk=self.config.chunk,
            implementation=self.config.implementation,
            batch_sharding=scope.batch_sharding,
        )


def _of_length_one(x_BTHK: jax.Array) -> jax.Array:
    """Every head at length 1, or shorter where it is almost zero."""
    return x_BTHK * jax.lax.rsqrt(jnp.sum(jnp.square(x_BTHK), axis=-1, keepdims=True) + LENGTH_EPS)


def _rates(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Logarithms of rates uniform over :data:`RATES`."""
    low, high = RATES
    return jnp.log(jax.random.uniform(key, shape, minval=low, maxval=high))
