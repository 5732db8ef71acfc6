"""Multi-head attention with a key-value cache: GPT-2's, LLaMA's, Qwen3's."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from mhc_jax.nn.columns import Columns
from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.nn.mixers.heads import check_fields, kept, turned
from mhc_jax.nn.norms import NormConfig
from mhc_jax.nn.rotary import RotaryScalingConfig
from mhc_jax.ops.attention import AttentionName, causal_attention
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("mixer", "attention")
@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Multi-head attention.

    Attributes:
        heads: H, of queries.
        kv_heads: G, of keys and values; divides H, and is H if None (grouped queries, arXiv 2305.13245).
        head_width: K; the width over H if None.
        bias: whether the four projections have biases.
        init_std: standard deviation of the projections.
        scale_output: divide that of the output by the square root of the number of sites, as in GPT-2.
        rotary: turns queries and keys by their positions, in pairs of channels; see :mod:`mhc_jax.ops.rotary`. With
            ``"none"`` positions come with the embedding.
        rotary_base: base of the rotary angles.
        rotary_scaling: of these angles, for texts longer than the model began with; None for none.
        qk_norm: of every query and key over its head, before they are turned (RMSNorm in Qwen3); None for none.
        causal: False lets every token see later ones; such a model cannot decode.
        dropout: dropout rate of the attention probabilities.
        views: 1, or 3 when queries, keys and values are to be read apart by a topology of three views.
        implementation: see :func:`mhc_jax.ops.attention.causal_attention`; decoding always runs ``"xla"``.
    """

    heads: int = 12
    kv_heads: int | None = None
    head_width: int | None = None
    rotary: Literal["none", "half", "interleaved"] = "none"
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScalingConfig | None = None
    qk_norm: NormConfig | None = None
    causal: bool = True
    bias: bool = True
    init_std: float = 0.02
    scale_output: bool = True
    dropout: float = 0.0
    views: int = 1
    implementation: AttentionName = "xla"

    @classmethod
    def from_dict(cls, data):
        return super().from_dict(_with_qk_norm(data))

    def validate(self):
        super().validate()
        check_fields(self)
        for name in ("kv_heads", "head_width"):
            if getattr(self, name) is not None:
                self.require_counts(1, name)
        self.require(self.heads % self.groups == 0, f"kv_heads {self.groups} must divide heads {self.heads}")
        self.require(self.views in (1, 3), f"views must be 1 or 3 (queries, keys, values), got {self.views}")

    @property
    def groups(self) -> int:
        """G, heads of keys and values."""
        return self.kv_heads or self.heads

    def width_of_head(self, width: int) -> int:
        """K, in a model of that width."""
        return self.head_width or width // self.heads

    def small(self):
        return self.replace(heads=2, kv_heads=self.kv_heads and 1, head_width=self.head_width and 4)

    def check(self, width):
        whole = self.head_width is not None or width % self.heads == 0
        self.require(whole, f"heads {self.heads} must divide the width {width}; otherwise set head_width")
        head = self.width_of_head(width)
        self.require(self.rotary == "none" or head % 2 == 0, f"rotary positions need an even head width, got {head}")

    def value_width(self, width):
        return self.groups * self.width_of_head(width)

    def product_flops(self, width, length):
        """Scores with all keys and the sum of all values."""
        return 4 * self.heads * self.width_of_head(width) * length

    def build(self, width, policy, init):
        return Attention(self, width, policy, init)


def _with_qk_norm(data: Any) -> Any:
    """The fields of an older record, which said whether there is an RMSNorm and its epsilon, as they are now."""
    if not isinstance(data, dict) or not isinstance(data.get("qk_norm"), bool):
        return data
    norm = {"kind": "rms", "eps": data.get("qk_norm_eps", 1e-6)} if data["qk_norm"] else None
    return {name: x for name, x in data.items() if name != "qk_norm_eps"} | {"qk_norm": norm}


class Attention(Mixer):
    """``out(softmax(q k' / sqrt(K)) v)``. The state is ``{"k", "v"}``, :class:`Columns` (B, G, K, max_len); its
    keys are turned."""

    def __init__(self, config: AttentionConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy, self.views = config, policy, config.views
        self.head_width = config.width_of_head(width)
        queries, values = config.heads * self.head_width, config.value_width(width)
        last = config.init_std * (init.sites**-0.5 if config.scale_output else 1)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Dense(inputs, outputs, init / name, axes, kernel=normal(std), bias=zeros if config.bias else False)
            for name, inputs, outputs, axes, std in (
                ("q_proj", width, queries, ("embed", "heads"), config.init_std),
                ("k_proj", width, values, ("embed", "heads"), config.init_std),
                ("v_proj", width, values, ("embed", "heads"), config.init_std),
                ("out_proj", queries, width, ("heads", "embed"), last),
            )
        )
        self.q_norm, self.k_norm = (
            None if config.qk_norm is None else config.qk_norm.build(self.head_width, init / name, channels="head")
            for name in ("q_norm", "k_norm")
        )

    def init_state(self, batch, max_len):
        shape = batch, self.config.groups, self.head_width, max_len
        return {name: Columns(jnp.zeros(shape, self.policy.compute)) for name in ("k", "v")}

    def __call__(self, u_BTD, state, scope):
        q, k, v = self._project(u_BTD, scope)
        if state is not None:
            new = {"k": k, "v": v}
            state = {name: x.written(new[name], scope.column) for name, x in state.items()}
            k, v = state["k"].read(), state["v"].read()
        y = causal_attention(
            q,
            k,
            v,
            start=None if state is None else scope.column,
            start_B=scope.start_B,
            causal=self.config.causal,
            segment_ids=scope.segments_BT,
            keep_BHTS=self._keep(q, k, scope.key_of("probabilities")),
            implementation=self.config.implementation if state is None else "xla",
            batch_sharding=scope.batch_sharding,
        )
        return self.out_proj(scope.tap("attended", y.reshape(*y.shape[:2], -1))), state

    def _project(self, u, scope):
        """Queries (B, T, H, K), and keys and values (B, T, G, K)."""
        inputs = u.astype(self.policy.compute)
        q_in, k_in, v_in = inputs if self.views == 3 else (inputs,) * 3
        q, k, v = self.q_proj(q_in), self.k_proj(k_in), scope.values(self.v_proj(v_in))
        q, k, v = (x.reshape(*x.shape[:2], -1, self.head_width) for x in (q, k, v))
        return self._placed(q, self.q_norm, scope), self._placed(k, self.k_norm, scope), v

    def _placed(self, x_BTHK, norm, scope):
        """Queries or keys as they meet: normalised, and turned by their positions."""
        if norm is not None:
            x_BTHK = norm(x_BTHK.astype(self.policy.accumulate)).astype(self.policy.compute)
        return turned(self.config, x_BTHK, scope.positions_BT, self.policy)

    def _keep(self, q_BTHK, k_BSGK, key):
        B, T, H, _ = q_BTHK.shape
        return kept(self.config.dropout, (B, H, T, k_BSGK.shape[1]), key, self.policy)
