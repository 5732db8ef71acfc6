"""Checkpoints of Mamba as Hugging Face transformers writes them, and of SHC's student, whose layers are the same.

Of transformers it is ``MambaForCausalLM``, or the model without head.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from mhc_jax.interop.gpt import without_prefix
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import layer_count, shape_of, validated
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, plain_faults, refuse
from mhc_jax.interop.rules import Rule, read, renamed, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.nn.norms import LayerNormConfig, NormConfig, RMSNormConfig
from mhc_jax.registry import register
from mhc_jax.tree import Shapes

HEAD = "lm_head.weight"
# The mirror's names in a unit, where the published ones differ.
_UNIT = {"a_log": "A_log", "d": "D", "conv": "conv1d"}
# The length that the published models were trained on; the recurrence itself has no limit.
_MAX_LEN = 2048


@register(AXIS, "mamba")
class Mamba(Original):
    """Names with or without ``backbone.``.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.json}``. Hints are its fields.

    Attributes:
        system: the name in messages.
        body: prefix of all names but the head's.
        outside: the mirror's names outside the layers and the published ones, less ".weight" and ".bias".
        unit: name of the mixer in a layer.
        told: published names of the fields that the tensors show.
        free: fields that they do not show.
        fixed: fields of which the model here can have one value. What else a configuration says matters for initial
            values alone.
        mixer: the unit before the tensors are seen.
    """

    model_type = "mamba"
    system: ClassVar[str] = "mamba"
    body: ClassVar[str] = "backbone."
    outside: ClassVar[dict[str, str]] = {"embed": "embeddings", "final_norm": "norm_f", "head": "lm_head"}
    unit: ClassVar[str] = "mixer"
    told: ClassVar[dict[str, str]] = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "state": "state_size",
        "expand": "expand",
        "conv_kernel": "conv_kernel",
        "dt_rank": "time_step_rank",
        "bias": "use_bias",
        "conv_bias": "use_conv_bias",
        "tied": "tie_word_embeddings",
    }
    free: ClassVar[dict[str, Any]] = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.1}
    fixed: ClassVar[dict[str, Any]] = {"hidden_act": "silu", "quantization_config": None}
    mixer: ClassVar[SelectiveSSMConfig] = SelectiveSSMConfig()

    @classmethod
    def read(cls, state_dict, hints):
        stored = {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields(cls.system, "config", state_dict.get("config")), state_dict["model"]
        arrays = without_prefix(cls.system, as_numpy(state_dict), [cls.body])
        config = cls._config({name: x.shape for name, x in arrays.items()}, stored, hints, tied=cls._tied(arrays))
        if config.head == "tied":
            arrays.pop(HEAD, None)
        shapes = torch_shapes(config)
        found = read(f"the {cls.system} weights", list(cls._rules(shapes)), shapes, arrays)
        return config, from_torch(config, found)

    @classmethod
    def write(cls, config, params):
        refuse(cls.__name__, cls.faults(config))
        tensors = to_torch(config, params)
        found = write(cls._rules(tensors), tensors)
        head = found.pop(HEAD, found[cls._tokens()])
        return {cls.body + name: x for name, x in found.items()} | {HEAD: head}

    @classmethod
    def huggingface(cls, config, params):
        """A tied head is left out, as transformers does."""
        tensors = cls.write(config, params)
        if config.head == "tied":
            del tensors[HEAD]
        mixer, norm = config.mixer, config.norm
        assert isinstance(mixer, SelectiveSSMConfig)  # see faults
        assert isinstance(norm, RMSNormConfig)
        return {
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "state_size": mixer.state,
            "expand": mixer.expand,
            "conv_kernel": mixer.conv_kernel,
            "time_step_rank": mixer.rank(config.width),
            "use_bias": mixer.bias,
            "use_conv_bias": mixer.conv_bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": norm.eps,
            "initializer_range": config.embed_std,
            "tie_word_embeddings": config.head == "tied",
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }, tensors

    @classmethod
    def faults(cls, config):
        mixer, mlp, norm = config.mixer, config.mlp, config.norm
        return {
            **plain_faults(config),
            "channel mixers before the mixer": config.before_mixer is not None,
            f"MLP {mlp and mlp.kind!r}": mlp is not None,
            f"mixer {mixer.kind!r}": not isinstance(mixer, SelectiveSSMConfig),
            **cls._further_faults(config, norm),
        }

    @classmethod
    def _further_faults(cls, config: LMConfig, norm: NormConfig) -> dict[str, bool]:
        return {
            "dropout after branches": config.dropout != 0,
            f"norm {norm.kind!r}": not isinstance(norm, RMSNormConfig),
        }

    @classmethod
    def _read_fields(cls, settled: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the model that the tensors do not show."""
        return {
            "norm": RMSNormConfig(eps=settled["layer_norm_epsilon"]),
            "embed_std": settled["initializer_range"],
        }

    @classmethod
    def _config(cls, shapes: Shapes, stored: Mapping[str, Any], hints: Mapping[str, Any], *, tied: bool) -> LMConfig:
        found = cls._infer(shapes) | {"tied": tied}
        told = {name: found[field] for field, name in cls.told.items()}
        known = {*told, *cls.free, *cls.fixed}
        matters = {name: value for name, value in stored.items() if name in known and value not in (None, "auto")}
        settled = settle(cls.system, {**matters, **hints}, told=told, free=cls.free, fixed=cls.fixed)
        rank = found["dt_rank"]
        mixer = cls.mixer.replace(
            **{name: found[name] for name in ("state", "expand", "conv_kernel", "bias", "conv_bias")},
            dt_rank=None if rank == cls.mixer.rank(found["width"]) else rank,
        )
        config = LMConfig(
            vocab_size=found["vocab_size"],
            max_len=_MAX_LEN,
            width=found["width"],
            layers=found["layers"],
            positions="none",
            head="tied" if tied else "dense",
            mixer=mixer,
            mlp=None,
            **cls._read_fields(settled),
        )
        return validated(cls.system, config)

    @classmethod
    def _infer(cls, shapes: Shapes) -> dict[str, Any]:
        """The fields of the configuration that the tensors show, by our names."""
        unit = f"layers.0.{cls.unit}"
        vocab_size, width = shape_of(cls.system, shapes, cls._tokens())
        channels, states = shape_of(cls.system, shapes, f"{unit}.A_log")
        if channels % width:
            raise InteropError(
                f"{cls.system}: {channels} channels are no multiple of the width {width}, which the model here needs"
            )
        return {
            "vocab_size": vocab_size,
            "width": width,
            "layers": layer_count(shapes),
            "state": states,
            "expand": channels // width,
            "conv_kernel": shape_of(cls.system, shapes, f"{unit}.conv1d.weight", 3)[-1],
            "dt_rank": shape_of(cls.system, shapes, f"{unit}.dt_proj.weight")[-1],
            "bias": f"{unit}.in_proj.bias" in shapes,
            "conv_bias": f"{unit}.conv1d.bias" in shapes,
        }

    @classmethod
    def _tokens(cls) -> str:
        """The published name of the token table."""
        return f"{cls.outside['embed']}.weight"

    @classmethod
    def _tied(cls, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether the head is the token table."""
        tokens, head = arrays.get(cls._tokens()), arrays.get(HEAD)
        return tokens is None or head is None or np.array_equal(head, tokens, equal_nan=True)

    @classmethod
    def _rules(cls, names: Mapping[str, Any]) -> Iterator[Rule]:
        """The translation of all tensors."""
        for name in names:
            part, _, leaf = name.rpartition(".")
            if part in cls.outside:
                yield renamed(name, f"{cls.outside[part]}.{'weight' if part == 'embed' else leaf}")
                continue
            _, layer, _, where, *unit = name.split(".")
            if where == "branch":
                unit[0] = _UNIT.get(unit[0], unit[0])
            yield renamed(name, ".".join(["layers", layer, cls.unit if where == "branch" else "norm", *unit]))


@register(AXIS, "shc_student")
class Student(Mamba):
    """The state-space student of SHC, as :class:`Mamba` but for LayerNorm, dropout and a head that is always tied."""

    model_type = None
    system = "shc_student"
    body = ""
    outside: ClassVar[dict[str, str]] = {"embed": "embed", "final_norm": "final_norm"}
    unit = "ssm"
    told: ClassVar[dict[str, str]] = {
        "vocab_size": "vocab_size",
        "width": "hidden_dim",
        "layers": "n_layers",
        "state": "state_dim",
        "expand": "expansion_factor",
    }
    free: ClassVar[dict[str, Any]] = {"dropout": 0.1}
    fixed: ClassVar[dict[str, Any]] = {}
    mixer = SelectiveSSMConfig(init="original")

    @classmethod
    def _further_faults(cls, config, norm):
        return {
            "a separate head": config.head != "tied",
            f"norm {norm.kind!r}": not (isinstance(norm, LayerNormConfig) and norm.bias),
        }

    @classmethod
    def _read_fields(cls, settled):
        return {"norm": LayerNormConfig(bias=True), "embed_std": 0.02, "dropout": settled["dropout"]}
