"""Checkpoints of DeepSeek-V2 and DeepSeek-V3 as Hugging Face transformers writes them, whose layers are all dense.

``DeepseekV2ForCausalLM`` and ``DeepseekV3ForCausalLM``, or the models without head.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from mhc_jax.interop import rope
from mhc_jax.interop.infer import layer_count, shape_of
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.llama import COMMON, Llama, infer_outside
from mhc_jax.interop.original import AXIS
from mhc_jax.interop.rules import joined, renamed
from mhc_jax.nn.mixers import LatentAttentionConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.registry import register, shown
from mhc_jax.tree import Shapes

_EXPERTS = re.compile(r"layers\.(\d+)\.mlp\.(gate|experts|shared_experts)\..*")
_KV_DOWN, _K_ROPE, _K_UP, _V_UP = (f"mixer.branch.{name}_proj" for name in ("kv_down", "k_rope", "k_up", "v_up"))
_LATENTS = {
    "mixer.branch.q_down_proj": "self_attn.q_a_proj",
    "mixer.branch.q_norm": "self_attn.q_a_layernorm",
    "mixer.branch.q_up_proj": "self_attn.q_b_proj",
    "mixer.branch.kv_norm": "self_attn.kv_a_layernorm",
    _KV_DOWN: "self_attn.kv_a_proj_with_mqa",
    _K_UP: "self_attn.kv_b_proj",
}
# Published beside another part, in one tensor.
_BESIDE = {_K_ROPE: _KV_DOWN, _V_UP: _K_UP}

# Norms of latents have this one whatever the configuration says.
_LATENT_NORM = RMSNormConfig(eps=1e-6)


@register(AXIS, "deepseek_v3")
class DeepseekV3(Llama):
    """As :class:`Llama`; the number of heads shows in the tensors."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    max_len = 4096
    stated: ClassVar[dict[str, Any]] = {}
    unread = ("rope_interleave", "first_k_dense_replace")
    inside: ClassVar[dict[str, str]] = COMMON | _LATENTS | {part: _LATENTS[other] for part, other in _BESIDE.items()}
    mixer = LatentAttentionConfig

    @classmethod
    def _faults_of_heads(cls, config, mixer):
        return {
            f"latents with another norm than RMSNorm of epsilon {_LATENT_NORM.eps}": mixer.latent_norm != _LATENT_NORM
        }

    @classmethod
    def _infer(cls, shapes, given):
        system = cls.model_type
        _check_dense(system, shapes, given)
        low = any(f"layers.0.self_attn.{name}.weight" in shapes for name in ("q_a_proj", "q_b_proj"))
        queries = "q_b_proj" if low else "q_proj"
        (latent,) = shape_of(system, shapes, "layers.0.self_attn.kv_a_layernorm.weight", 1)
        rows = {
            name: _of_attention(system, shapes, name) for name in (queries, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
        }
        # Of H heads, queries have H (K + P) rows, keys and values H (K + V), and H V channels reach the output.
        turned, values = rows["kv_a_proj_with_mqa"][0] - latent, rows["o_proj"][1]
        heads, rest = divmod(rows[queries][0] - rows["kv_b_proj"][0] + values, max(turned, 1))
        head_width = (rows["kv_b_proj"][0] - values) // max(heads, 1)
        if min(turned, heads, head_width) < 1 or rest or values % heads or rows["kv_b_proj"][0] % heads:
            raise InteropError(f"{system}: the tensors of attention do not fit each other: {rows}")
        return infer_outside(system, shapes) | {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "kv_lora_rank": latent,
            "q_lora_rank": rows[queries][1] if queries == "q_b_proj" else None,
            "qk_nope_head_dim": head_width,
            "qk_rope_head_dim": turned,
            "v_head_dim": values // heads,
            "attention_bias": "layers.0.self_attn.o_proj.bias" in shapes,
        }

    @classmethod
    def _mixer(cls, told, given, norm, positions):
        return LatentAttentionConfig(
            heads=told["num_attention_heads"],
            latent_width=told["kv_lora_rank"],
            query_latent_width=told["q_lora_rank"],
            head_width=told["qk_nope_head_dim"],
            value_head_width=told["v_head_dim"],
            rotary="interleaved" if cls._interleaved(given) else "half",
            rotary_width=told["qk_rope_head_dim"],
            mscale_all_dim=positions.mscale_all_dim,
            latent_norm=_LATENT_NORM,
        )

    @classmethod
    def _interleaved(cls, given: Mapping[str, Any]) -> bool:
        value = given.get("rope_interleave", True)
        if not isinstance(value, bool):
            raise InteropError(f"{cls.model_type}: rope_interleave must be true or false, got {shown(value)}")
        return value

    @classmethod
    def _fields_of_attention(cls, config, mixer):
        width, positions = config.width, rope.Rope(mixer.rotary_base, mixer.rotary_scaling, mixer.mscale_all_dim)
        return {
            "num_attention_heads": mixer.heads,
            "num_key_value_heads": mixer.heads,
            "kv_lora_rank": mixer.value_width(width),
            "q_lora_rank": mixer.query_latent_width,
            "qk_nope_head_dim": mixer.width_of_head(width),
            "qk_rope_head_dim": mixer.width_of_rotary(width),
            "v_head_dim": mixer.width_of_value(width),
            "rope_interleave": mixer.rotary == "interleaved",
            "first_k_dense_replace": config.layers,
            **rope.write(positions),
        }

    @classmethod
    def _rules_of(cls, config, part, name, published):
        mixer, width = config.mixer, config.width
        assert isinstance(mixer, LatentAttentionConfig)  # see faults
        widths = {
            _KV_DOWN: mixer.value_width(width),
            _K_ROPE: mixer.width_of_rotary(width),
            _K_UP: mixer.width_of_head(width),
            _V_UP: mixer.width_of_value(width),
        }
        for other, first in _BESIDE.items():
            if part == first:
                pair = name, name.replace(first, other)
                yield joined(pair, published, [widths[first], widths[other]], mixer.heads if first == _K_UP else 1)
        if part not in widths:
            yield renamed(name, published)


@register(AXIS, "deepseek_v2")
class DeepseekV2(DeepseekV3):
    """As :class:`DeepseekV3`; the channels of a pair are always beside each other."""

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    max_len = 2048
    unread = ("first_k_dense_replace",)

    @classmethod
    def _faults_of_heads(cls, config, mixer):
        widths = mixer.width_of_head(config.width), mixer.value_width(config.width)
        return super()._faults_of_heads(config, mixer) | {
            "rotary layout 'half'": mixer.rotary == "half",
            # Its channels become complex numbers where they lie in memory.
            "heads or latents of an odd width": any(width % 2 for width in widths),
            f"{mixer.heads} heads, which do not divide the width {config.width}": config.width % mixer.heads != 0,
        }

    @classmethod
    def _interleaved(cls, given):
        return True

    @classmethod
    def _fields_of_attention(cls, config, mixer):
        fields = super()._fields_of_attention(config, mixer)
        return {name: value for name, value in fields.items() if name != "rope_interleave"}


def _of_attention(system: str, shapes: Shapes, name: str) -> tuple[int, ...]:
    return shape_of(system, shapes, f"layers.0.self_attn.{name}.weight")


def _check_dense(system: str, shapes: Shapes, given: Mapping[str, Any]) -> None:
    """Raises InteropError if a layer is a mixture of experts, by its tensors or as stated."""
    layers = [int(match[1]) for name in shapes if (match := _EXPERTS.fullmatch(name))]
    stated, count = given.get("first_k_dense_replace"), layer_count(shapes)
    layers += range(stated, count) if isinstance(stated, int) else ()
    if layers:
        raise InteropError(
            f"{system}: layer {min(layers)} is a mixture of experts (first_k_dense_replace), which no model here "
            "expresses; only checkpoints whose layers are all dense can be read"
        )
