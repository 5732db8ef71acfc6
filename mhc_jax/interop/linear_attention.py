"""Checkpoints of gated linear attention and of Gated DeltaNet as flash-linear-attention writes them.

``GLAForCausalLM`` and ``GatedDeltaNetForCausalLM``, which transformers knows once ``fla`` is imported.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from mhc_jax.interop.gpt import without_prefix
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import is_tied, layer_count, shape_of, validated
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.llama import outside_fields
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, plain_faults, refuse
from mhc_jax.interop.rules import Rule, read, renamed, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig
from mhc_jax.nn.mixers.linear_attention import LinearAttentionConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.registry import register, required, shown
from mhc_jax.tree import Shapes

BODY, TOKENS, HEAD = "model.", "embeddings.weight", "lm_head.weight"
_OUTSIDE = {"embed.tokens": TOKENS, "final_norm.weight": "norm.weight", "head.weight": HEAD}
# The mirror's names in a block, and the published ones, less ".weight" and ".bias".
_PARTS = {"mixer.norm": "attn_norm", "mlp.norm": "mlp_norm", "mixer.branch": "attn", "mlp.branch": "mlp"}
_INSIDE = {
    "out_proj": "o_proj",
    "a_log": "A_log",
    "gk_down": "gk_proj.0",
    "gk_up": "gk_proj.1",
    **{f"{name}_conv": f"{name}_conv1d" for name in "qkv"},
}


class _Decoder(Original):
    """Names with or without ``model.``.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.json}``. Hints are its fields.

    Attributes:
        system: the name in messages, and the ``model_type``.
        architecture: the class of the package.
        mixer: the kind of its mixers.
        norm: published name of the norm of a head's output.
        free: fields that the tensors do not show.
        fixed: fields of which the model here can have one value. What is named nowhere changes nothing.
    """

    package = "fla"
    system: ClassVar[str]
    architecture: ClassVar[str]
    mixer: ClassVar[type[LinearAttentionConfig]]
    norm: ClassVar[str]
    free: ClassVar[dict[str, Any]] = {"norm_eps": 1e-6, "initializer_range": 0.02, "max_position_embeddings": 2048}
    fixed: ClassVar[dict[str, Any]] = {
        "hidden_act": "swish",
        "attn": None,
        "attnres_block_size": None,
        "quantization_config": None,
    }

    @classmethod
    def read(cls, state_dict, hints):
        stored = {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields(cls.system, "config", state_dict.get("config")), state_dict["model"]
        given = {name: value for name, value in {**stored, **hints}.items() if value is not None}
        # First of all, lest the tensors of another model be found wanting.
        stated = {name: given[name] for name in cls.fixed if name in given}
        settle(cls.system, stated, told={}, free={}, fixed=cls.fixed)
        arrays = cls._plain_names(without_prefix(cls.system, as_numpy(state_dict), [BODY]))
        tied = is_tied(arrays, given, tokens=TOKENS, head=HEAD)
        config = cls._config({name: x.shape for name, x in arrays.items()}, stored, hints, tied=tied)
        if tied:
            arrays.pop(HEAD, None)
        shapes = torch_shapes(config)
        return config, from_torch(config, read(f"the {cls.system} weights", list(cls._rules(shapes)), shapes, arrays))

    @classmethod
    def write(cls, config, params):
        refuse(cls.system, cls.faults(config))
        tensors = to_torch(config, params)
        found = write(cls._rules(tensors), tensors)
        head = found.pop(HEAD, found[TOKENS])
        return {BODY + cls._published_name(name, config): x for name, x in found.items()} | {HEAD: head}

    @classmethod
    def huggingface(cls, config, params):
        """A tied head is left out, as transformers does."""
        tensors = cls.write(config, params)
        if config.head == "tied":
            del tensors[HEAD]
        mixer, norm = config.mixer, config.norm
        assert isinstance(mixer, LinearAttentionConfig)  # see faults
        assert isinstance(norm, RMSNormConfig)
        taps = {} if mixer.conv_kernel is None else {"conv_size": mixer.conv_kernel}
        return {
            **outside_fields(cls, config),
            "hidden_act": "swish",
            "norm_eps": norm.eps,
            "fuse_norm": True,  # which decides on the names of norms
            "use_short_conv": mixer.conv_kernel is not None,
            **taps,
            **cls._fields(config, mixer),
            "initializer_range": config.embed_std,
        }, tensors

    @classmethod
    def faults(cls, config):
        mixer, mlp, norm = config.mixer, config.mlp, config.norm
        return {
            **plain_faults(config),
            "channel mixers before the mixer or the MLP": {config.before_mixer, config.before_mlp} != {None},
            f"norm {norm.kind!r}": not isinstance(norm, RMSNormConfig),
            f"MLP {mlp and mlp.kind!r}": not isinstance(mlp, SwiGLUConfig),
            f"mixer {mixer.kind!r}": not isinstance(mixer, cls.mixer),
            "norms of two epsilons": getattr(mixer, "norm_eps", None) != getattr(norm, "eps", None),
        }

    @classmethod
    def _plain_names(cls, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors with one name for each, where the code base has several."""
        return arrays

    @classmethod
    def _published_name(cls, name: str, config: LMConfig) -> str:
        """Inverse of :meth:`_plain_names`, for one name."""
        return name

    @classmethod
    def _rules(cls, names: Mapping[str, Any]) -> Iterator[Rule]:
        """The translation of all tensors."""
        for name in names:
            if name in _OUTSIDE:
                yield renamed(name, _OUTSIDE[name])
                continue
            _, layer, place, kind, *inside = name.split(".")
            if kind == "branch":
                inside[0] = cls.norm if inside[0] == "o_norm" else _INSIDE.get(inside[0], inside[0])
            yield renamed(name, ".".join(["layers", layer, _PARTS[f"{place}.{kind}"], *inside]))

    @classmethod
    def _config(cls, shapes: Shapes, stored: Mapping[str, Any], hints: Mapping[str, Any], *, tied: bool) -> LMConfig:
        told, mixer = cls._infer(shapes, {**stored, **hints})
        vocab_size, width = shape_of(cls.system, shapes, TOKENS)
        told |= {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": layer_count(shapes),
            "intermediate_size": shape_of(cls.system, shapes, "layers.0.mlp.down_proj.weight")[1],
            "tie_word_embeddings": tied,
        }
        known = {*told, *cls.free, *cls.fixed}
        matters = {name: value for name, value in stored.items() if name in known and value is not None}
        settled = settle(cls.system, {**matters, **hints}, told=told, free=cls.free, fixed=cls.fixed)
        norm, std = RMSNormConfig(eps=settled["norm_eps"]), settled["initializer_range"]
        config = LMConfig(
            vocab_size=vocab_size,
            max_len=settled["max_position_embeddings"],
            width=width,
            layers=told["num_hidden_layers"],
            positions="none",
            head="tied" if tied else "dense",
            embed_std=std,
            norm=norm,
            mixer=cls._settled(mixer, settled).replace(norm_eps=norm.eps, init_std=std, scale_output=False),
            mlp=SwiGLUConfig(hidden=told["intermediate_size"], init_std=std, scale_output=False),
        )
        return validated(cls.system, config)

    @classmethod
    @required
    def _infer(cls, shapes: Shapes, given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """The published fields that the tensors of a mixer show, and the mixer with these."""

    @classmethod
    @required
    def _fields(cls, config: LMConfig, mixer: Any) -> dict[str, Any]:
        """The published fields of a mixer, but for its convolutions and its norm."""

    @classmethod
    @required
    def _settled(cls, mixer: Any, settled: Mapping[str, Any]) -> Any:
        """The mixer with the fields that the tensors do not show."""

    @classmethod
    def _rows(cls, shapes: Shapes, name: str, rank: int = 2) -> int:
        """Rows of a tensor of the first mixer."""
        return shape_of(cls.system, shapes, f"layers.0.attn.{name}", rank)[0]

    @classmethod
    def _short_conv(cls, shapes: Shapes) -> tuple[dict[str, Any], int | None]:
        """The fields of the convolutions, and their taps."""
        name = "layers.0.attn.q_conv1d.weight"
        if name not in shapes:
            return {"use_short_conv": False}, None
        taps = shape_of(cls.system, shapes, name, 3)[2]
        return {"use_short_conv": True, "conv_size": taps}, taps

    @classmethod
    def _divided(cls, what: str, channels: int, head: int) -> int:
        """The number of heads of that width."""
        if channels % head:
            raise InteropError(f"{cls.system}: {channels} channels of {what} are no multiple of a head's {head}")
        return channels // head


@register(AXIS, "gla")
class GLA(_Decoder):
    """Gated linear attention. The norm of a head's output has two names; with a gate the fused one is written."""

    system = model_type = "gla"
    architecture = "GLAForCausalLM"
    mixer = GLAConfig
    norm = "g_norm"
    # No floor is one at minus infinity.
    free: ClassVar[dict[str, Any]] = {**_Decoder.free, "clamp_min": -math.inf, "feature_map": "none"}
    fixed: ClassVar[dict[str, Any]] = {**_Decoder.fixed, "elementwise_affine": True}
    fused: ClassVar[str] = "g_norm_swish_gate"

    @classmethod
    def faults(cls, config):
        mixer = config.mixer
        own = isinstance(mixer, GLAConfig)
        return super().faults(config) | {
            "a gate that is no SiLU": own and mixer.output_gate == "sigmoid",
            "gate_normalizer other than 16": own and mixer.gate_normalizer != 16,
            "gate_rank other than 16": own and mixer.gate_rank != 16,
        }

    @classmethod
    def _plain_names(cls, arrays):
        return {name.replace(f".{cls.fused}.", f".{cls.norm}."): x for name, x in arrays.items()}

    @classmethod
    def _published_name(cls, name, config):
        mixer: Any = config.mixer
        return name if mixer.output_gate is None else name.replace(f".{cls.norm}.", f".{cls.fused}.")

    @classmethod
    def _infer(cls, shapes, given):
        queries, width = shape_of(cls.system, shapes, "layers.0.attn.q_proj.weight")
        _, outputs = shape_of(cls.system, shapes, "layers.0.attn.o_proj.weight")
        head = cls._rows(shapes, "g_norm.weight", 1)
        heads = cls._divided("the output", outputs, head)
        groups = cls._divided("values", cls._rows(shapes, "v_proj.weight"), head)
        conv, taps = cls._short_conv(shapes)
        told = {
            "num_heads": heads,
            "num_kv_heads": groups,
            "expand_k": _multiple(queries, width, given.get("expand_k")),
            "expand_v": _multiple(outputs, width, given.get("expand_v")),
            "use_output_gate": "layers.0.attn.g_proj.weight" in shapes,
            **conv,
        }
        mixer = GLAConfig(
            heads=heads,
            kv_heads=None if groups == heads else groups,
            expand_k=queries / width,
            expand_v=outputs / width,
            gate_rank=cls._rows(shapes, "gk_proj.0.weight"),
            conv_kernel=taps,
            output_gate="silu" if told["use_output_gate"] else None,
        )
        return told, mixer

    @classmethod
    def _fields(cls, config, mixer):
        heads = mixer.shape(config.width)
        return {
            "num_heads": heads.queries,
            "num_kv_heads": heads.keys,
            "expand_k": _multiple(heads.queries * heads.K, config.width),
            "expand_v": _multiple(heads.out * heads.V, config.width),
            "feature_map": None if mixer.feature_map == "none" else mixer.feature_map,
            "clamp_min": mixer.gate_floor,
            "use_output_gate": mixer.output_gate is not None,
        }

    @classmethod
    def _settled(cls, mixer, settled):
        floor = settled["clamp_min"]
        return mixer.replace(
            gate_floor=None if math.isinf(floor) else floor, feature_map=_activation(settled["feature_map"])
        )


@register(AXIS, "gated_deltanet")
class GatedDeltaNet(_Decoder):
    """Gated DeltaNet. ``allow_neg_eigval`` does not show; with more value heads ``num_heads`` must be given, too."""

    system = model_type = "gated_deltanet"
    architecture = "GatedDeltaNetForCausalLM"
    mixer = GatedDeltaConfig
    norm = "o_norm"
    free: ClassVar[dict[str, Any]] = {
        **_Decoder.free,
        "allow_neg_eigval": False,
        "output_gate_activation": "swish",
    }

    @classmethod
    def _infer(cls, shapes, given):
        values, head = cls._rows(shapes, "A_log", 1), cls._rows(shapes, "o_norm.weight", 1)
        heads = given.get("num_heads", values)
        if not isinstance(heads, int) or heads < 1:
            raise InteropError(f"{cls.system}: num_heads must be a positive integer, got {shown(heads)}")
        keys = cls._rows(shapes, "k_proj.weight")
        if keys % heads:
            raise InteropError(f"{cls.system}: {keys} channels of keys are no multiple of num_heads {heads}")
        conv, taps = cls._short_conv(shapes)
        told = {
            "num_heads": heads,
            "num_v_heads": values,
            "head_dim": keys // heads,
            "expand_v": _multiple(head, keys // heads, given.get("expand_v")),
            "use_gate": "layers.0.attn.g_proj.weight" in shapes,
            **conv,
        }
        mixer = GatedDeltaConfig(
            heads=heads,
            value_heads=None if values == heads else values,
            head_width=told["head_dim"],
            expand_v=head * heads / keys,
            conv_kernel=taps,
            output_gate="silu" if told["use_gate"] else None,
        )
        return told, mixer

    @classmethod
    def _fields(cls, config, mixer):
        heads = mixer.shape(config.width)
        return {
            "num_heads": heads.queries,
            "num_v_heads": heads.values,
            "head_dim": heads.K,
            "expand_v": _multiple(heads.V, heads.K),
            "allow_neg_eigval": mixer.allow_neg_eigval,
            "use_gate": mixer.output_gate is not None,
            "output_gate_activation": mixer.output_gate or "swish",
        }

    @classmethod
    def _settled(cls, mixer, settled):
        gate = None if mixer.output_gate is None else _activation(settled["output_gate_activation"])
        return mixer.replace(allow_neg_eigval=settled["allow_neg_eigval"], output_gate=gate)


def _multiple(wide: int, narrow: int, stated: Any = None) -> float:
    """How many times the one width is the other, where the package cuts products to whole numbers.

    Args:
        stated: the result if its product is cut to ``wide``, too.
    """
    ratio = wide / narrow
    likely = stated if isinstance(stated, int | float) and math.isfinite(stated) else ratio, ratio
    return next((x for x in likely if int(narrow * x) == wide), math.nextafter(ratio, math.inf))


def _activation(name: str) -> str:
    """Our name for it."""
    return "silu" if name == "swish" else name
