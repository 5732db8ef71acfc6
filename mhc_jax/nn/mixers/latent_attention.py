"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one latent per token is cached for all heads."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.columns import Columns
from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.nn.mixers.heads import check_fields, kept, turned
from mhc_jax.nn.norms import NormConfig, RMSNormConfig
from mhc_jax.nn.rotary import RotaryScalingConfig, YarnScalingConfig
from mhc_jax.ops.attention import AttentionName, absorbed_latent_attention, latent_attention
from mhc_jax.precision import Policy
from mhc_jax.registry import register

# Numbers cached for a token, as a share of the model's width; keys and values of full attention are twice the width.
CACHED = 3, 5


@register("mixer", "latent_attention")
@dataclasses.dataclass(frozen=True)
class LatentAttentionConfig(MixerConfig):
    """Attention whose keys and values are made of a small latent, which alone is cached.

    Attributes:
        heads: H.
        latent_width: R, of the latents (DeepSeek's kv_lora_rank). If None, latent and turned key together have three
            fifths of the model's width: a cache 3.3 times smaller than that of ``attention``.
        query_latent_width: queries are made of latents of this width, too (q_lora_rank); None for none.
        head_width: K, of the part of queries and keys without positions; if None, the width over H, rounded down.
        value_head_width: V, of a head's values; K if None.
        rotary: turns the other part of queries and keys by their positions, in pairs of channels; see
            :mod:`mhc_jax.ops.rotary`. ``"none"`` leaves that part out: positions come with the embedding.
        rotary_width: P, of that part, whose key all heads share; if None, half of K, and even.
        rotary_base: base of the rotary angles.
        rotary_scaling: of these angles, for texts longer than the model began with; None for none.
        mscale_all_dim: under YaRN, scores are multiplied by ``(0.1 mscale_all_dim ln(factor) + 1) ** 2``.
        latent_norm: of every latent.
        causal: False lets every token see later ones; such a model cannot decode.
        bias: whether the projections to latents, to the shared key and of the output have biases.
        init_std: standard deviation of the projections.
        scale_output: divide that of the output by the square root of the number of sites, as in GPT-2.
        dropout: dropout rate of the attention probabilities.
        implementation: see :func:`mhc_jax.ops.attention.causal_attention`; decoding always runs ``"xla"``.
    """

    heads: int = 12
    latent_width: int | None = None
    query_latent_width: int | None = None
    head_width: int | None = None
    value_head_width: int | None = None
    rotary: Literal["none", "half", "interleaved"] = "half"
    rotary_width: int | None = None
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScalingConfig | None = None
    mscale_all_dim: float = 0.0
    latent_norm: NormConfig = RMSNormConfig()
    causal: bool = True
    bias: bool = False
    init_std: float = 0.02
    scale_output: bool = True
    dropout: float = 0.0
    implementation: AttentionName = "xla"

    def validate(self):
        super().validate()
        check_fields(self)
        for name in ("latent_width", "query_latent_width", "head_width", "value_head_width", "rotary_width"):
            if getattr(self, name) is not None:
                self.require_counts(1, name)
        width = self.rotary_width
        self.require(self.rotary != "none" or width is None, f"rotary_width {width} needs rotary 'half'")
        self.require(width is None or width % 2 == 0, f"rotary positions need an even rotary_width, got {width}")
        self.require_not_negative("mscale_all_dim")
        yarn = isinstance(self.rotary_scaling, YarnScalingConfig)
        self.require(yarn or self.mscale_all_dim == 0, "mscale_all_dim needs a rotary_scaling of kind 'yarn'")

    def small(self):
        widths = {"latent_width": 6, "head_width": 3, "value_head_width": 2}
        rotary_width = None if self.rotary == "none" else 2
        query_latent_width = self.query_latent_width and 5
        return self.replace(heads=2, rotary_width=rotary_width, query_latent_width=query_latent_width, **widths)

    def check(self, width):
        head = self.width_of_head(width)
        self.require(head >= 1, f"heads {self.heads} are more than the width {width}; set fewer, or head_width")
        latent, rotary = self.value_width(width), self.width_of_rotary(width)
        self.require(latent >= 1, f"rotary_width {rotary} leaves no latent at width {width}; set latent_width")

    def width_of_head(self, width: int) -> int:
        """K, in a model of that width."""
        return self.head_width or width // self.heads

    def width_of_value(self, width: int) -> int:
        """V, in a model of that width."""
        return self.value_head_width or self.width_of_head(width)

    def width_of_rotary(self, width: int) -> int:
        """P, in a model of that width; 0 without rotary positions."""
        if self.rotary == "none":
            return 0
        return self.rotary_width or 2 * max(1, self.width_of_head(width) // 4)

    def value_width(self, width):
        part, whole = CACHED
        return self.latent_width or part * width // whole - self.width_of_rotary(width)

    def scale(self, width: int) -> float:
        """Factor of the scores, in a model of that width."""
        scaling, gain = self.rotary_scaling, 1.0
        if isinstance(scaling, YarnScalingConfig):
            gain = 0.1 * self.mscale_all_dim * math.log(scaling.factor) + 1
        return gain**2 * (self.width_of_head(width) + self.width_of_rotary(width)) ** -0.5

    def product_flops(self, width, length):
        """Scores with all keys and the sum of all values, in the form of training."""
        channels = self.width_of_head(width) + self.width_of_rotary(width) + self.width_of_value(width)
        return 2 * self.heads * channels * length

    def build(self, width, policy, init):
        return LatentAttention(self, width, policy, init)


class LatentAttention(Mixer):
    """``out(softmax(scale (q' k_up c + q_rope' k_rope)) v_up c)`` with latents ``c = norm(kv_down_proj(u))``.

    The state is ``{"latent", "k_rope"}``, :class:`Columns` (B, R, max_len) and (B, P, max_len), the latter only with
    rotary positions: normalised latents, which the value residual mixes, and turned keys.
    """

    def __init__(self, config: LatentAttentionConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy, self.scale = config, policy, config.scale(width)
        self.head_width, self.value_head_width = config.width_of_head(width), config.width_of_value(width)
        self.latent_width, self.rotary_width = config.value_width(width), config.width_of_rotary(width)
        K, V, R, P = self.head_width, self.value_head_width, self.latent_width, self.rotary_width
        H, Q, bias = config.heads, config.query_latent_width, zeros if config.bias else False
        last = config.init_std * (init.sites**-0.5 if config.scale_output else 1)

        def dense(name, inputs, outputs, axes, bias: Any = False, std=config.init_std):
            return Dense(inputs, outputs, init / name, axes, kernel=normal(std), bias=bias)

        self.q_proj = dense("q_proj", width, H * (K + P), ("embed", "heads")) if Q is None else None
        if Q is not None:
            self.q_down_proj = dense("q_down_proj", width, Q, ("embed", "latent"), bias)
            self.q_norm = config.latent_norm.build(Q, init / "q_norm", channels="latent")
            self.q_up_proj = dense("q_up_proj", Q, H * (K + P), ("latent", "heads"))
        self.kv_down_proj = dense("kv_down_proj", width, R, ("embed", "latent"), bias)
        self.kv_norm = config.latent_norm.build(R, init / "kv_norm", channels="latent")
        self.k_rope_proj = dense("k_rope_proj", width, P, ("embed", "head"), bias) if P else None
        self.k_up_proj = dense("k_up_proj", R, H * K, ("latent", "heads"))
        self.v_up_proj = dense("v_up_proj", R, H * V, ("latent", "heads"))
        self.out_proj = dense("out_proj", H * V, width, ("heads", "embed"), bias, last)

    def init_state(self, batch, max_len):
        widths = {"latent": self.latent_width, "k_rope": self.rotary_width}
        return {name: Columns(jnp.zeros((batch, x, max_len), self.policy.compute)) for name, x in widths.items() if x}

    def __call__(self, u_BTD, state, scope):
        u_BTD = u_BTD.astype(self.policy.compute)
        q_BTHK, q_rope_BTHP = self._queries(u_BTD, scope)
        keys = {"latent": self._latents(u_BTD, scope)}
        if self.k_rope_proj is not None:
            k_rope_BT1P = self.k_rope_proj(u_BTD)[:, :, None]
            keys["k_rope"] = turned(self.config, k_rope_BT1P, scope.positions_BT, self.policy)[:, :, 0]
        options: dict[str, Any] = {"start_B": scope.start_B, "segment_ids": scope.segments_BT}
        if state is None:
            options |= {"implementation": self.config.implementation, "batch_sharding": scope.batch_sharding}
        else:
            state = {name: held.written(keys[name], scope.column) for name, held in state.items()}
            keys |= {name: held.read() for name, held in state.items()}
            options |= {"start": scope.column}
        (B, T, H, _), S = q_BTHK.shape, keys["latent"].shape[1]
        absorbs = state is not None and self._absorbs(T)
        attend: Callable[..., jax.Array] = absorbed_latent_attention if absorbs else latent_attention
        y_BTHV = attend(
            q_BTHK,
            q_rope_BTHP,
            keys["latent"],
            keys.get("k_rope", keys["latent"][..., :0]),
            self._up(self.k_up_proj),
            self._up(self.v_up_proj),
            scale=self.scale,
            causal=self.config.causal,
            keep_BHTS=kept(self.config.dropout, (B, H, T, S), scope.key_of("probabilities"), self.policy),
            **options,
        )
        return self.out_proj(scope.tap("attended", y_BTHV.reshape(B, T, H * self.value_head_width))), state

    def _absorbs(self, queries: int) -> bool:
        """Whether for so many queries on a long cache it takes fewer operations not to form keys and values.

        For each key and head, forming takes ``R (K + V)``, and a query ``K + P + V`` then or ``2 R + P`` without it.
        """
        R, formed = self.latent_width, self.head_width + self.value_head_width
        return queries * (2 * R - formed) <= R * formed

    def _queries(self, u_BTD, scope):
        """Both parts of every query, (B, T, H, K) and (B, T, H, P)."""
        if self.q_proj is None:
            q = self.q_up_proj(self._normalised(self.q_norm, self.q_down_proj(u_BTD)))
        else:
            q = self.q_proj(u_BTD)
        q = q.reshape(*q.shape[:2], self.config.heads, self.head_width + self.rotary_width)
        q_BTHK, q_rope_BTHP = jnp.split(q, [self.head_width], axis=-1)
        return q_BTHK, turned(self.config, q_rope_BTHP, scope.positions_BT, self.policy)

    def _latents(self, u_BTD, scope):
        latent_BTR = scope.values(self._normalised(self.kv_norm, self.kv_down_proj(u_BTD)))
        return scope.tap("latent", latent_BTR)

    def _normalised(self, norm, x):
        return norm(x.astype(self.policy.accumulate)).astype(self.policy.compute)

    def _up(self, proj):
        """The weights (R, H, ...) from latents to every head."""
        return proj.kernel[...].astype(self.policy.compute).reshape(self.latent_width, self.config.heads, -1)
