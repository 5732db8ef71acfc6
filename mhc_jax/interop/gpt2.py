"""Checkpoints of GPT-2 as Hugging Face transformers writes them (``GPT2LMHeadModel``, ``GPT2Model``)."""

from collections.abc import Mapping
from typing import Any

from mhc_jax.interop import gpt
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, refuse
from mhc_jax.interop.rules import read, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.registry import register

_ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf"}
_ACTIVATION_NAMES = {"tanh": "gelu_new", "erf": "gelu"}

# Fields of GPT2Config: those that tensors do not show, with defaults (n_head: see GPT2.read), and the one value that
# is supported here. reorder_and_upcast_attn only changes rounding.
_FREE: dict[str, Any] = {
    "n_head": None,
    "activation_function": "gelu_new",
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
}
_FIXED: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "model_type": "gpt2",
}
_HEAD_WIDTH = 64


@register(AXIS, "gpt2")
class GPT2(Original):
    """Names with or without ``transformer.``. Heads are 64 wide, as in all published sizes, unless ``n_head`` is given.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.json}``.
    """

    model_type = "gpt2"

    @staticmethod
    def read(state_dict, hints):
        stored: Mapping[str, Any] = {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields("gpt2", "config", state_dict.get("config")), state_dict["model"]
        arrays = gpt.untied("gpt2", gpt.without_prefix("gpt2", as_numpy(state_dict), [gpt.BODY]))
        told = gpt.infer("gpt2", {name: x.shape for name, x in arrays.items()}, inputs_first=True)
        config = _config(told, _stored(told, stored) | dict(hints))
        shapes = torch_shapes(config)
        rules = list(gpt.rules(shapes, inputs_first=True))
        return config, from_torch(config, read("the gpt2 weights", rules, shapes, arrays))

    @staticmethod
    def write(config, params):
        tensors = to_torch(config, params)
        refuse("GPT-2", GPT2.faults(config))
        tensors |= gpt.zero_biases(config, tensors)
        return gpt.tied(write(gpt.rules(tensors, inputs_first=True), tensors))

    @staticmethod
    def faults(config):
        return gpt.stream_faults(config) | gpt.faults(config, bias=None)

    @staticmethod
    def huggingface(config, params):
        """The tied head is left out, as transformers does."""
        tensors = GPT2.write(config, params)
        del tensors[gpt.HEAD]
        return _fields(config), tensors


def _stored(told: dict[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ``config.json`` that matter; all others are ignored."""
    known = {**_published(told), **_FREE, **_FIXED}
    found = {"n_head": 12} | {name: value for name, value in config.items() if name in known} if config else {}
    if found.get("n_inner", 0) is None:
        found["n_inner"] = 4 * told["width"]
    return found


def _published(told: dict[str, int]) -> dict[str, int]:
    """The fields that the tensors determine, by the names of GPT2Config."""
    return {
        "vocab_size": told["vocab_size"],
        "n_positions": told["positions"],
        "n_embd": told["width"],
        "n_layer": told["layers"],
        "n_inner": told["hidden"],
    }


def _config(told: dict[str, int], hints: dict[str, Any]) -> LMConfig:
    free = settle("gpt2", hints, told=_published(told), free=_FREE, fixed=_FIXED)
    if free["activation_function"] not in _ACTIVATIONS:
        raise InteropError(
            f"gpt2: activation_function={free['activation_function']!r} is not supported, only "
            f"{', '.join(_ACTIVATIONS)} are"
        )
    if free["embd_pdrop"] != free["resid_pdrop"]:
        raise InteropError(
            f"gpt2: embd_pdrop={free['embd_pdrop']} and resid_pdrop={free['resid_pdrop']} are one dropout rate here; "
            f"choose one, e.g. by the hint embd_pdrop={free['resid_pdrop']}"
        )
    heads = free["n_head"]
    if heads is None and told["width"] % _HEAD_WIDTH:
        raise InteropError(f"gpt2: the width {told['width']} is not a multiple of {_HEAD_WIDTH}; say n_head=...")
    config = LMConfig(
        vocab_size=told["vocab_size"],
        max_len=told["positions"],
        width=told["width"],
        layers=told["layers"],
        dropout=free["resid_pdrop"],
        norm=LayerNormConfig(),
        mixer=AttentionConfig(heads=heads or told["width"] // _HEAD_WIDTH, dropout=free["attn_pdrop"]),
        mlp=GeluMLPConfig(
            hidden=0 if told["hidden"] == 4 * told["width"] else told["hidden"],
            activation=_ACTIVATIONS[free["activation_function"]],
        ),
    )
    config.validate()
    return config


def _fields(config: LMConfig) -> dict[str, Any]:
    """The contents of ``config.json``."""
    mixer, mlp = config.mixer, config.mlp
    assert isinstance(mixer, AttentionConfig)  # see GPT2.faults
    assert isinstance(mlp, GeluMLPConfig)
    ends = 50256 if config.vocab_size > 50256 else None  # <|endoftext|> of GPT-2's vocabulary
    return {
        **_FIXED,
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": mixer.heads,
        "n_inner": mlp.hidden or None,
        "activation_function": _ACTIVATION_NAMES[mlp.activation],
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": mixer.dropout,
        "bos_token_id": ends,
        "eos_token_id": ends,
    }
