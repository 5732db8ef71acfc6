"""Checkpoints of the published RLM-mHC code (``rlm_mhc``)."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mhc_jax.functional import Params
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import layer_count, shape_of, validated
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, refuse
from mhc_jax.interop.rules import Rule, fused, read, renamed, write
from mhc_jax.interop.store import WEIGHTS, read_tensors, write_folder
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.models.rlm import rlm
from mhc_jax.nn.channel import LinearMHCConfig, SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.projections import ClippedSinkhornConfig
from mhc_jax.registry import register
from mhc_jax.tree import Shapes

TOKENS, HEAD = "embeddings.embedding.weight", "lm_head.weight"
YAML = "config.yaml"

# The mirror's names, outside and inside a block, and the published ones.
_OUTSIDE = {"embed.tokens": TOKENS, "final_norm.weight": "norm.weight"}
_INSIDE = {
    "before_mixer.norm.weight": "norm_mhc_pre.weight",
    "mixer.norm.weight": "norm1.weight",
    "mixer.branch.out_proj.weight": "attention.out_proj.weight",
    "before_mlp.norm.weight": "norm_mhc_post.weight",
    "mlp.norm.weight": "norm2.weight",
    "mlp.branch.down_proj.weight": "ffn.down_proj.weight",
} | {
    f"{site}.branch.{ours}": f"{theirs}.{leaf}"
    for site, theirs in (("before_mixer", "mhc_pre"), ("before_mlp", "mhc_post"))
    for ours, leaf in (
        ("logits", "connection_weights"),
        ("expand.weight", "expand_proj.weight"),
        ("contract.weight", "contract_proj.weight"),
    )
}
# Published matrices whose outputs are those of several of ours, in order.
_FUSED = {
    "mixer.branch.q_proj.weight": (("q_proj", "k_proj", "v_proj"), "attention.qkv_proj.weight"),
    "mlp.branch.gate_proj.weight": (("gate_proj", "up_proj"), "ffn.gate_up_proj.weight"),
}

# Fields of the original's ModelConfig that tensors do not show, with its defaults; the one value that the model here
# can have, as its dropout follows every branch; and those that change nothing (a wrong head_dim is overwritten).
_FREE: dict[str, Any] = {
    "num_heads": 16,
    "max_seq_len": 8192,
    "attention_dropout": 0.0,
    "mhc_sinkhorn_iters": 20,
    "rope_theta": 10000.0,
}
_FIXED: dict[str, Any] = {"dropout": 0.0}
_UNREAD = {"head_dim", "gradient_checkpointing"}


@register(AXIS, "rlm")
class RLM(Original):
    """With and without mHC layers.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.yaml}``. Hints are fields of the
    original's ``ModelConfig``; heads are not visible in the tensors: 16 unless given.
    """

    @staticmethod
    def read(state_dict, hints):
        stored: Mapping[str, Any] = {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields("rlm", "config", state_dict.get("config")), state_dict["model"]
            stored = fields("rlm", "model", stored.get("model", stored))
        arrays = dict(as_numpy(state_dict))
        head = arrays.pop(HEAD, None)
        if head is not None and TOKENS in arrays and not np.array_equal(head, arrays[TOKENS], equal_nan=True):
            raise InteropError(f"{HEAD} differs from {TOKENS}, but the two are one tied matrix")
        config = _config(_infer({name: x.shape for name, x in arrays.items()}), stored, hints)
        shapes = torch_shapes(config)
        return config, from_torch(config, read("the rlm weights", list(_rules(shapes)), shapes, arrays))

    @staticmethod
    def write(config, params):
        _check_expressible(config)
        tensors = to_torch(config, params)
        found = write(_rules(tensors), tensors)
        return found | {HEAD: found[TOKENS]}


def load_rlm(directory: str | os.PathLike[str], **hints: Any) -> tuple[LMConfig, Params]:
    """The model in a folder that the original's ``save_pretrained`` wrote.

    Args:
        directory: holds ``config.yaml`` and ``model.safetensors``.
        hints: fields that replace those of ``config.yaml``.

    Raises:
        InteropError: a file is missing or damaged, or weights that do not fit; pickles are never read.
    """
    directory = Path(directory)
    stored = _read_yaml(directory / YAML)
    if not (directory / WEIGHTS).exists():
        raise InteropError(f"{directory / WEIGHTS} does not exist; save the model as safetensors")
    tensors = read_tensors(directory / WEIGHTS)
    try:
        return RLM.read({"model": tensors, "config": stored}, hints)
    except InteropError as error:
        raise InteropError(f"{directory}: {error}") from None


def save_rlm(directory: str | os.PathLike[str], config: LMConfig, params: Params) -> None:
    """Writes a folder that the original's ``from_pretrained`` loads; it appears whole or not at all.

    Raises:
        ConfigError: ``params`` are not those of ``config``, a model that the original cannot express, or a
            ``directory`` that holds anything but an earlier export.
    """
    config.validate()
    tensors = RLM.write(config, params)
    del tensors[HEAD]  # the original ties it when it loads
    text = yaml.safe_dump({"model": _fields(config)}, sort_keys=False)
    write_folder(directory, tensors, text, ours=_holds_rlm, name=YAML)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise InteropError(f"{path} cannot be read; a folder of RLM-mHC holds {YAML} and {WEIGHTS}") from None
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # some of its values raise Python's own
        raise InteropError(f"{path} is not YAML ({str(error).splitlines()[0]})") from None


def _holds_rlm(directory: Path) -> bool:
    try:
        stored = _read_yaml(directory / YAML)
    except InteropError:
        return False
    return isinstance(stored, dict) and isinstance(stored.get("model"), dict)


def _rules(names: Mapping[str, Any]) -> Iterator[Rule]:
    for name in names:
        if name in _OUTSIDE:
            yield renamed(name, _OUTSIDE[name])
            continue
        _, layer, inside = name.split(".", 2)
        if inside in _INSIDE:
            yield renamed(name, f"layers.{layer}.{_INSIDE[inside]}")
        elif inside in _FUSED:
            parts, published = _FUSED[inside]
            site = inside.rsplit(".", 2)[0]
            yield fused([f"blocks.{layer}.{site}.{part}.weight" for part in parts], f"layers.{layer}.{published}")


def _infer(shapes: Shapes) -> dict[str, Any]:
    """The fields of the original's configuration, inferred from the tensors."""
    vocab_size, width = shape_of("rlm", shapes, TOKENS)
    told = {
        "hidden_dim": width,
        "num_layers": layer_count(shapes),
        "ffn_dim": shape_of("rlm", shapes, "layers.0.ffn.down_proj.weight")[1],
        "vocab_size": vocab_size,
        "mhc_enabled": any(".mhc_" in name for name in shapes),
    }
    if told["mhc_enabled"]:
        told["mhc_flows"] = shape_of("rlm", shapes, "layers.0.mhc_pre.connection_weights")[0]
    return told


def _config(told: dict[str, Any], stored: Mapping[str, Any], hints: Mapping[str, Any]) -> LMConfig:
    unread = _UNREAD if told["mhc_enabled"] else {*_UNREAD, "mhc_flows"}
    free = settle("rlm", {**stored, **hints}, told=told, free=_FREE, fixed=_FIXED, unread=unread)
    template = rlm("small", "original")
    between = None
    if told["mhc_enabled"]:
        projection = ClippedSinkhornConfig(iters=free["mhc_sinkhorn_iters"])
        between = LinearMHCConfig(flows=told["mhc_flows"], projection=projection, form="flows")
    assert isinstance(template.mixer, AttentionConfig)
    assert isinstance(template.mlp, SwiGLUConfig)
    config = template.replace(
        vocab_size=told["vocab_size"],
        max_len=free["max_seq_len"],
        width=told["hidden_dim"],
        layers=told["num_layers"],
        before_mixer=between,
        mixer=template.mixer.replace(
            heads=free["num_heads"], rotary_base=free["rope_theta"], dropout=free["attention_dropout"]
        ),
        before_mlp=between,
        mlp=template.mlp.replace(hidden=told["ffn_dim"]),
    )
    return validated("rlm", config)


def _fields(config: LMConfig) -> dict[str, Any]:
    """The contents of ``config.yaml`` under ``model``."""
    mixer, mlp, between = config.mixer, config.mlp, config.before_mixer
    assert isinstance(mixer, AttentionConfig)  # see _check_expressible
    assert isinstance(mlp, SwiGLUConfig)
    assert isinstance(between, LinearMHCConfig | None)
    assert between is None or isinstance(between.projection, ClippedSinkhornConfig)
    return {
        "hidden_dim": config.width,
        "num_layers": config.layers,
        "num_heads": mixer.heads,
        "head_dim": config.width // mixer.heads,
        "ffn_dim": mlp.hidden_width(config.width),
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_len,
        "dropout": config.dropout,
        "attention_dropout": mixer.dropout,
        "mhc_enabled": between is not None,
        "mhc_flows": 4 if between is None else between.flows,
        "mhc_sinkhorn_iters": 20 if between is None else between.projection.iters,
        "rope_theta": mixer.rotary_base,
        "gradient_checkpointing": config.execution.remat != "none",
    }


def _check_expressible(config: LMConfig) -> None:
    """Raises InteropError, naming every part at fault, unless the model is one of the original's."""
    mixer, norm = config.mixer, config.norm
    faults = {
        f"residual {config.residual.kind!r} instead of 'plain'": config.residual.kind != "plain",
        f"ends {config.ends.kind!r} instead of 'identity'": config.ends.kind != "identity",
        "dropout": config.dropout != 0,
        "value residual": config.value_residual is not None,
        "learned positions": config.positions != "none",
        "a head of its own": config.head != "tied",
        "another norm than RMSNorm with an epsilon of 1e-06": norm != RMSNormConfig(eps=1e-6),
        f"mixer {mixer.kind!r} instead of 'attention'": not isinstance(mixer, AttentionConfig),
        f"channel mixer {config.mlp and config.mlp.kind!r} instead of 'swiglu'": not isinstance(
            config.mlp, SwiGLUConfig
        ),
        "different channel mixers before attention and before SwiGLU": config.before_mixer != config.before_mlp,
        "layers before attention that are no linear mHC with a clipped Sinkhorn": not _linear_mhc(config.before_mixer),
    }
    if isinstance(mixer, AttentionConfig):
        expected = AttentionConfig(
            heads=mixer.heads,
            rotary="interleaved",
            rotary_base=mixer.rotary_base,
            bias=False,
            dropout=mixer.dropout,
            init_std=mixer.init_std,
            scale_output=mixer.scale_output,
            implementation=mixer.implementation,
        )
        faults["attention that is not plain, interleaved and without biases"] = mixer != expected
    refuse("RLM-mHC", faults)


def _linear_mhc(part: Any) -> bool:
    return part is None or (isinstance(part, LinearMHCConfig) and isinstance(part.projection, ClippedSinkhornConfig))
