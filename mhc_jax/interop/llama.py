"""Checkpoints of LLaMA and Qwen3 as Hugging Face transformers writes them.

``LlamaForCausalLM`` and ``Qwen3ForCausalLM``, or the models without head. Only Qwen3 normalises queries and keys.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from mhc_jax.interop import rope
from mhc_jax.interop.gpt import without_prefix
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import is_tied, layer_count, shape_of, validated
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, plain_faults, refuse
from mhc_jax.interop.rules import Rule, read, renamed, reordered, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, MixerConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.registry import register, shown
from mhc_jax.tree import Shapes

BODY, TOKENS, HEAD = "model.", "embed_tokens.weight", "lm_head.weight"

# Angles that older versions stored beside the parameters.
_ANGLES = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

# The mirror's names, outside and inside a block, and the published ones, less ".weight" and ".bias".
_OUTSIDE = {"embed.tokens": TOKENS, "final_norm.weight": "norm.weight", "head.weight": HEAD}
COMMON = {
    "mixer.norm": "input_layernorm",
    "mixer.branch.q_proj": "self_attn.q_proj",
    "mixer.branch.out_proj": "self_attn.o_proj",
    "mlp.norm": "post_attention_layernorm",
    "mlp.branch.gate_proj": "mlp.gate_proj",
    "mlp.branch.up_proj": "mlp.up_proj",
    "mlp.branch.down_proj": "mlp.down_proj",
}
_ATTENTION = {
    "mixer.branch.k_proj": "self_attn.k_proj",
    "mixer.branch.v_proj": "self_attn.v_proj",
    "mixer.branch.q_norm": "self_attn.q_norm",
    "mixer.branch.k_norm": "self_attn.k_norm",
}
_TURNED = re.compile(r"mixer\.branch\.[qk]_(proj|norm)")

# Fields that tensors do not show, with the defaults of transformers for a config.json that omits them.
_FREE: dict[str, Any] = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "attention_dropout": 0.0}


@register(AXIS, "llama")
class Llama(Original):
    """Names with or without ``model.``. Without a configuration, ``num_attention_heads`` must be given as a hint.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.json}``. Hints are its fields.

    Attributes:
        architecture: the class of transformers.
        max_len: the length of a model whose fields state none.
        stated: defaults of fields that matter before the tensors are read.
        fixed: fields of which the model here can have one value. What is named nowhere changes nothing.
        unread: fields that the tensors do not show and that are no numbers.
        inside: the mirror's names of the parts of a block and the published ones.
        mixer: the sequence mixer.
        normalised: whether queries and keys are.
    """

    model_type = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    max_len: ClassVar[int] = 2048
    stated: ClassVar[dict[str, Any]] = {"num_attention_heads": 32}
    fixed: ClassVar[dict[str, Any]] = {
        "hidden_act": "silu",
        "mlp_bias": False,
        "is_causal": True,
        "use_sliding_window": False,
        "quantization_config": None,
    }
    unread: ClassVar[tuple[str, ...]] = ("layer_types",)
    inside: ClassVar[dict[str, str]] = COMMON | _ATTENTION
    mixer: ClassVar[type[MixerConfig]] = AttentionConfig
    normalised: ClassVar[bool] = False

    @classmethod
    def read(cls, state_dict, hints):
        system, stored = cls.model_type, {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields(system, "config", state_dict.get("config")), state_dict["model"]
            stored = cls.stated | dict(stored)
        arrays = without_prefix(system, as_numpy(state_dict), [BODY])
        arrays = {name: x for name, x in arrays.items() if not _ANGLES.fullmatch(name)}
        shapes = {name: x.shape for name, x in arrays.items()}
        config = cls._config(shapes, stored, hints, is_tied(arrays, {**stored, **hints}, tokens=TOKENS, head=HEAD))
        if config.head == "tied":
            arrays.pop(HEAD, None)
        shapes = torch_shapes(config)
        return config, from_torch(
            config, read(f"the {system} weights", list(cls._rules(config, shapes)), shapes, arrays)
        )

    @classmethod
    def write(cls, config, params):
        refuse(cls.__name__, cls.faults(config))
        tensors = to_torch(config, params)
        found = write(cls._rules(config, tensors), tensors)
        head = found.pop(HEAD, found[TOKENS])
        return {BODY + name: x for name, x in found.items()} | {HEAD: head}

    @classmethod
    def huggingface(cls, config, params):
        """A tied head is left out, as transformers does."""
        tensors = cls.write(config, params)
        if config.head == "tied":
            del tensors[HEAD]
        return cls._fields(config), tensors

    @classmethod
    def faults(cls, config):
        mixer, mlp, norm = config.mixer, config.mlp, config.norm
        between = {config.before_mixer, config.before_mlp} != {None}
        found = {
            **plain_faults(config),
            "channel mixers before attention or the MLP": between,
            "dropout after branches": config.dropout != 0,
            f"norm {norm.kind!r}": not isinstance(norm, RMSNormConfig),
            "no MLP": mlp is None,
            f"MLP {mlp and mlp.kind!r}": not isinstance(mlp, SwiGLUConfig | None),
            f"mixer {mixer.kind!r}": not isinstance(mixer, cls.mixer),
        }
        if isinstance(mixer, cls.mixer):
            found |= cls._faults_of_attention(config, mixer)
        return found

    @classmethod
    def _faults_of_attention(cls, config: LMConfig, mixer: Any) -> dict[str, bool]:
        scaling = mixer.rotary_scaling
        return {
            "no rotary positions": mixer.rotary == "none",
            f"rotary scaling {scaling and scaling.kind!r}": scaling is not None and scaling.kind not in rope.KINDS,
            "attention that is not causal": not mixer.causal,
            "three views": mixer.views != 1,
            **cls._faults_of_heads(config, mixer),
        }

    @classmethod
    def _faults_of_heads(cls, config: LMConfig, mixer: AttentionConfig) -> dict[str, bool]:
        return {
            "normalised queries and keys": mixer.qk_norm is not None,
            f"{mixer.heads} heads, which do not divide the width {config.width}": config.width % mixer.heads != 0,
        }

    @classmethod
    def _config(cls, shapes: Shapes, stored: Mapping[str, Any], hints: Mapping[str, Any], tied: bool) -> LMConfig:
        system = cls.model_type
        given = {**stored, **hints}
        positions = rope.read(system, stored, hints, cls.max_len)
        told = cls._infer(shapes, given) | {"tie_word_embeddings": tied}
        free = {**_FREE, "max_position_embeddings": cls.max_len}
        unread = (*rope.FIELDS, *cls.unread)
        known = {*told, *free, *cls.fixed, *unread}
        matters = {name: value for name, value in stored.items() if name in known and value is not None}
        settled = settle(system, {**matters, **hints}, told=told, free=free, fixed=cls.fixed, unread=unread)
        norm, std = RMSNormConfig(eps=settled["rms_norm_eps"]), settled["initializer_range"]
        mixer = cls._mixer(told, given, norm, positions).replace(
            rotary_base=positions.base,
            rotary_scaling=positions.scaling,
            bias=told["attention_bias"],
            init_std=std,
            scale_output=False,
            dropout=settled["attention_dropout"],
        )
        config = LMConfig(
            vocab_size=told["vocab_size"],
            max_len=settled["max_position_embeddings"],
            width=told["hidden_size"],
            layers=told["num_hidden_layers"],
            positions="none",
            head="tied" if tied else "dense",
            embed_std=std,
            norm=norm,
            mixer=mixer,
            mlp=SwiGLUConfig(hidden=told["intermediate_size"], init_std=std, scale_output=False),
        )
        return validated(system, config)

    @classmethod
    def _fields(cls, config: LMConfig) -> dict[str, Any]:
        """The contents of ``config.json``. It leaves open which tokens begin and end a text, as the model does."""
        mixer: Any = config.mixer
        norm = config.norm
        assert isinstance(norm, RMSNormConfig)  # see faults
        return {
            **outside_fields(cls, config),
            "hidden_act": "silu",
            "attention_bias": mixer.bias,
            "attention_dropout": mixer.dropout,
            "rms_norm_eps": norm.eps,
            "initializer_range": mixer.init_std,
            **cls._fields_of_attention(config, mixer),
        }

    @classmethod
    def _infer(cls, shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the configuration that the tensors show, once the number of heads is known."""
        system = cls.model_type
        _check_layer_types(system, given.get("layer_types"))
        queries, _ = shape_of(system, shapes, "layers.0.self_attn.q_proj.weight")
        keys, _ = shape_of(system, shapes, "layers.0.self_attn.k_proj.weight")
        head_width = _head_width(system, shapes, queries, given)
        return infer_outside(system, shapes) | {
            "num_attention_heads": queries // head_width,
            "num_key_value_heads": keys // head_width,
            "head_dim": head_width,
            "attention_bias": "layers.0.self_attn.q_proj.bias" in shapes,
        }

    @classmethod
    def _mixer(
        cls, told: Mapping[str, Any], given: Mapping[str, Any], norm: RMSNormConfig, positions: rope.Rope
    ) -> MixerConfig:
        """The mixer but for what all types have: base and scaling of positions, spread, biases and dropout."""
        heads, groups, head_width = (told[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        return AttentionConfig(
            heads=heads,
            kv_heads=None if groups == heads else groups,
            head_width=None if heads * head_width == told["hidden_size"] else head_width,
            rotary="half",
            qk_norm=norm if cls.normalised else None,
        )

    @classmethod
    def _fields_of_attention(cls, config: LMConfig, mixer: Any) -> dict[str, Any]:
        return {
            "num_attention_heads": mixer.heads,
            "num_key_value_heads": mixer.groups,
            "head_dim": mixer.width_of_head(config.width),
            **rope.write(rope.Rope(mixer.rotary_base, mixer.rotary_scaling)),
        }

    @classmethod
    def _rules(cls, config: LMConfig, names: Mapping[str, Any]) -> Iterator[Rule]:
        """The translation of all tensors."""
        for name in names:
            if name in _OUTSIDE:
                yield renamed(name, _OUTSIDE[name])
                continue
            _, layer, inside = name.split(".", 2)
            part, _, leaf = inside.rpartition(".")
            yield from cls._rules_of(config, part, name, f"layers.{layer}.{cls.inside[part]}.{leaf}")

    @classmethod
    def _rules_of(cls, config: LMConfig, part: str, name: str, published: str) -> Iterator[Rule]:
        """The translation of one tensor of a block. Published heads have the halves of a pair apart, ours maybe not."""
        mixer: Any = config.mixer
        if mixer.rotary == "interleaved" and _TURNED.fullmatch(part):
            halves = np.arange(mixer.width_of_head(config.width)).reshape(-1, 2).T.ravel()
            yield reordered(name, published, halves)
        else:
            yield renamed(name, published)


@register(AXIS, "qwen3")
class Qwen3(Llama):
    """As :class:`Llama`; the number of heads shows in the tensors."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    max_len = 32768
    normalised = True

    @classmethod
    def _faults_of_heads(cls, config, mixer):
        without = "queries and keys without the RMSNorm of all other places"
        return {without: isinstance(config.norm, RMSNormConfig) and mixer.qk_norm != config.norm}


def _check_layer_types(system: str, kinds: Any) -> None:
    """Raises InteropError unless all layers have full attention."""
    for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
        if kind not in (None, "full_attention"):
            raise InteropError(f"{system}: layer_types with {shown(kind)} are not supported, only 'full_attention' is")


def infer_outside(system: str, shapes: Shapes) -> dict[str, Any]:
    """The fields that tensors outside attention show."""
    vocab_size, width = shape_of(system, shapes, TOKENS)
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layer_count(shapes),
        "intermediate_size": shape_of(system, shapes, "layers.0.mlp.down_proj.weight")[1],
    }


def outside_fields(original: Any, config: LMConfig) -> dict[str, Any]:
    """What ``config.json`` says of a decoder with gated perceptrons outside its mixers.

    Args:
        original: of the ``model_type`` and ``architecture``.
    """
    assert isinstance(config.mlp, SwiGLUConfig)  # see faults
    return {
        "model_type": original.model_type,
        "architectures": [original.architecture],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.mlp.hidden_width(config.width),
        "tie_word_embeddings": config.head == "tied",
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _head_width(system: str, shapes: Shapes, queries: int, given: Mapping[str, Any]) -> int:
    """K, from the norm of a query, or from the number of heads."""
    norm = shapes.get("layers.0.self_attn.q_norm.weight", ())
    heads = given.get("num_attention_heads")
    if len(norm) == 1 and norm[0]:
        return norm[0]
    if heads is None:
        raise InteropError(f"{system}: the tensors do not show the number of heads; say num_attention_heads=...")
    if not isinstance(heads, int) or heads < 1 or queries % heads:
        raise InteropError(f"{system}: num_attention_heads={heads!r} does not divide the {queries} rows of q_proj")
    return queries // heads
