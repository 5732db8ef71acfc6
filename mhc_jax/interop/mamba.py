"""Checkpoints of Mamba as Hugging Face transformers writes them: ``MambaForCausalLM``, or the model without head."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mhc_jax.config import ConfigError
from mhc_jax.interop.gpt import without_prefix
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, refuse
from mhc_jax.interop.rules import Rule, read, renamed, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import SelectiveSSMConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.registry import register
from mhc_jax.tree import Shapes

BODY, TOKENS, HEAD = "backbone.", "embeddings.weight", "lm_head.weight"

# The mirror's names, outside and inside a block, and the published ones.
_OUTSIDE = {"embed.tokens": TOKENS, "final_norm.weight": "norm_f.weight", "head.weight": HEAD}
_INSIDE = {
    "mixer.norm.weight": "norm.weight",
    "mixer.branch.a_log": "mixer.A_log",
    "mixer.branch.d": "mixer.D",
}
_BRANCH, _CONV = "mixer.branch.", "conv."

# Fields that tensors do not show, and those of which the model here can have one value. What else a configuration says
# matters for initial values alone.
_FREE: dict[str, Any] = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.1}
_FIXED: dict[str, Any] = {"hidden_act": "silu", "quantization_config": None}
# The length that the published models were trained on; the recurrence itself has no limit.
_MAX_LEN = 2048


@register(AXIS, "mamba")
class Mamba(Original):
    """Names with or without ``backbone.``.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.json}``. Hints are its fields.
    """

    model_type = "mamba"

    @classmethod
    def read(cls, state_dict, hints):
        stored = {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields("mamba", "config", state_dict.get("config")), state_dict["model"]
        arrays = without_prefix("mamba", as_numpy(state_dict), [BODY])
        config = _config({name: x.shape for name, x in arrays.items()}, stored, hints, tied=_tied(arrays))
        if config.head == "tied":
            arrays.pop(HEAD, None)
        shapes = torch_shapes(config)
        return config, from_torch(config, read("the mamba weights", list(_rules(shapes)), shapes, arrays))

    @classmethod
    def write(cls, config, params):
        refuse("Mamba", cls.faults(config))
        tensors = to_torch(config, params)
        found = write(_rules(tensors), tensors)
        head = found.pop(HEAD, found[TOKENS])
        return {BODY + name: x for name, x in found.items()} | {HEAD: head}

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
            f"residual {config.residual.kind!r}": config.residual.kind != "plain",
            f"ends {config.ends.kind!r}": config.ends.kind != "identity",
            "value residual": config.value_residual is not None,
            "channel mixers before the mixer": config.before_mixer is not None,
            "dropout after branches": config.dropout != 0,
            "learned positions": config.positions != "none",
            f"{config.outputs} outputs": config.outputs not in (None, config.vocab_size),
            f"norm {norm.kind!r}": not isinstance(norm, RMSNormConfig),
            f"MLP {mlp and mlp.kind!r}": mlp is not None,
            f"mixer {mixer.kind!r}": not isinstance(mixer, SelectiveSSMConfig),
        }


def _tied(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the head is the token table."""
    return HEAD not in arrays or TOKENS not in arrays or np.array_equal(arrays[HEAD], arrays[TOKENS], equal_nan=True)


def _config(shapes: Shapes, stored: Mapping[str, Any], hints: Mapping[str, Any], *, tied: bool) -> LMConfig:
    told = _infer(shapes) | {"tie_word_embeddings": tied}
    known = {*told, *_FREE, *_FIXED}
    matters = {name: value for name, value in stored.items() if name in known and value not in (None, "auto")}
    settled = settle("mamba", {**matters, **hints}, told=told, free=_FREE, fixed=_FIXED)
    mixer = SelectiveSSMConfig(
        state=told["state_size"],
        expand=told["expand"],
        conv_kernel=told["conv_kernel"],
        dt_rank=None if told["time_step_rank"] == -(-told["hidden_size"] // 16) else told["time_step_rank"],
        bias=told["use_bias"],
        conv_bias=told["use_conv_bias"],
    )
    config = LMConfig(
        vocab_size=told["vocab_size"],
        max_len=_MAX_LEN,
        width=told["hidden_size"],
        layers=told["num_hidden_layers"],
        positions="none",
        head="tied" if tied else "dense",
        embed_std=settled["initializer_range"],
        norm=RMSNormConfig(eps=settled["layer_norm_epsilon"]),
        mixer=mixer,
        mlp=None,
    )
    try:
        config.validate()
    except ConfigError as error:
        raise InteropError(f"mamba: {error}") from None
    return config


def _infer(shapes: Shapes) -> dict[str, Any]:
    """The fields of the configuration that the tensors show."""
    vocab_size, width = _shape(shapes, TOKENS, 2)
    channels, states = _shape(shapes, "layers.0.mixer.A_log", 2)
    if channels % width:
        raise InteropError(
            f"mamba: {channels} channels are no multiple of the width {width}, which the model here needs"
        )
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": len({match[1] for name in shapes if (match := re.match(r"layers\.(\d+)\.", name))}),
        "state_size": states,
        "expand": channels // width,
        "conv_kernel": _shape(shapes, "layers.0.mixer.conv1d.weight", 3)[-1],
        "time_step_rank": _shape(shapes, "layers.0.mixer.dt_proj.weight", 2)[-1],
        "use_bias": "layers.0.mixer.in_proj.bias" in shapes,
        "use_conv_bias": "layers.0.mixer.conv1d.bias" in shapes,
    }


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    found = shapes.get(name, ())
    if len(found) != rank or 0 in found:
        raise InteropError(f"not mamba weights: {name} of rank {rank} is missing")
    return found


def _rules(names: Mapping[str, Any]) -> Iterator[Rule]:
    """The translation of all tensors; those without a rule here have the same names in a unit."""
    for name in names:
        if name in _OUTSIDE:
            yield renamed(name, _OUTSIDE[name])
            continue
        _, layer, inside = name.split(".", 2)
        unit = inside.removeprefix(_BRANCH)
        unit = f"conv1d.{unit.removeprefix(_CONV)}" if unit.startswith(_CONV) else unit
        yield renamed(name, f"layers.{layer}.{_INSIDE.get(inside, f'mixer.{unit}')}")
