"""Checkpoints of the published mHC-SSM code (``mhc_slm``)."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import layer_count
from mhc_jax.interop.keys import InteropError, account
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original
from mhc_jax.interop.torch_weights import as_numpy, check_floating, from_torch, to_torch
from mhc_jax.models.mhc_ssm import Variant, mhc_ssm
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import DiagonalSSMConfig
from mhc_jax.nn.norms import LayerNormConfig, NormConfig, RMSNormConfig
from mhc_jax.nn.projections import SinkhornConfig
from mhc_jax.nn.residual import PlainConfig, StaticMHCConfig
from mhc_jax.registry import register, shown
from mhc_jax.tree import Shapes

COMPILED = "_orig_mod."
TOKENS = "tok_emb.emb.weight"
TIED_HEAD = "lm_head.weight"

# The names of the mirror and the original differ only by these prefixes, outside and inside a block.
_OUTSIDE = {
    "embed.tokens": TOKENS,
    "embed.positions": "pos_emb.pos.weight",
    "ends.proj": "expand.proj",
    "ends.collapse_logits": "aggregate.w_logits",
    "final_norm": "norm_f",
}
_INSIDE = {
    "mixer.residual.inner.": "h",
    "mixer.residual.pre_logits": "hpre_logits",
    "mixer.residual.post_logits": "hpost_logits",
    "mixer.residual.res_logits": "hres_logits",
    "mixer.residual.norm": "ad_norm",
    "mixer.residual.down": "ad_down",
    "mixer.residual.up": "ad_up",
    "mixer.residual.gamma": "gamma",
    "mixer.norm": "ssm.norm",
    "mixer.branch.conv": "ssm.dwconv",
    "mixer.branch": "ssm",
}

# Fields of the original's ModelConfig: what the tensors cannot say, with its defaults; what they do
# say; and what its model stores but never reads.
_FREE: dict[str, Any] = {"sinkhorn_iters": 8, "sinkhorn_temp": 1.0, "dropout": 0.0, "adapter_dropout": 0.0}
_TOLD = {"vocab_size", "dim", "n_layers", "conv_kernel", "norm_type", "n_streams", "stream_adapters", "adapter_rank"}
_UNREAD = {"adaptive_routing", "route_hidden", "route_from"}
_NORMS: dict[str, NormConfig] = {"rms": RMSNormConfig(), "ln": LayerNormConfig()}


def original_name(torch_name: str) -> str:
    """The original's name of a tensor of the mirror."""
    head, table = "", _OUTSIDE
    if torch_name.startswith("blocks."):
        _, layer, torch_name = torch_name.split(".", 2)
        head, table = f"blocks.{layer}.", _INSIDE
    prefix = max((prefix for prefix in table if torch_name.startswith(prefix)), key=len)
    return head + table[prefix] + torch_name.removeprefix(prefix)


@register(AXIS, "mhc_ssm")
class MHCSSM(Original):
    """Baseline, static mHC and mHC with adapters, recognised by their tensors."""

    @staticmethod
    def read(state_dict, hints):
        whole = isinstance(state_dict.get("model"), Mapping)
        arrays = _without_prefix(as_numpy(state_dict["model"] if whole else state_dict))
        shapes = {name: value.shape for name, value in arrays.items()}
        told = _infer(shapes)
        stored = _stored(told, state_dict) if whole else {}
        config = _config(told, shapes, _check_hints(told, stored | dict(hints)))
        names = {name: original_name(name) for name in torch_shapes(config)}
        shapes.pop(TIED_HEAD, None)
        account("the mhc_ssm weights", {names[name]: shape for name, shape in torch_shapes(config).items()}, shapes)
        check_floating(arrays)
        if TIED_HEAD in arrays and not np.array_equal(arrays[TIED_HEAD], arrays[TOKENS]):
            raise InteropError(f"{TIED_HEAD} differs from {TOKENS}, but the two are one tied matrix")
        return config, from_torch(config, {name: arrays[original] for name, original in names.items()})

    @staticmethod
    def write(config, params):
        _check_expressible(config)
        state_dict = {original_name(name): value for name, value in to_torch(config, params).items()}
        return state_dict | {TIED_HEAD: state_dict[TOKENS]}


def _without_prefix(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drops the prefix that ``torch.compile`` leaves on every name."""
    compiled = all(name.startswith(COMPILED) for name in tensors)
    return {name.removeprefix(COMPILED): value for name, value in tensors.items()} if compiled else tensors


def _infer(shapes: Shapes) -> dict[str, Any]:
    """The fields of the original's configuration, inferred from the tensors."""
    vocab_size, dim = _shape(shapes, re.escape(TOKENS), "vocab_size and dim", rank=2)
    told = {
        "vocab_size": vocab_size,
        "dim": dim,
        "n_layers": layer_count(shapes, "blocks"),
        "conv_kernel": _shape(shapes, r"blocks\.\d+\.ssm\.dwconv\.weight", "conv_kernel", rank=3)[-1],
        "norm_type": "ln" if _any(shapes, r"norm_f\.bias|blocks\.\d+\.(ssm\.|ad_)norm\.bias") else "rms",
        "stream_adapters": _any(shapes, r"blocks\.\d+\.(ad_|gamma_)"),
    }
    if _any(shapes, r"expand\.|aggregate\.|blocks\.\d+\.h(pre|post|res)_logits"):
        pattern = r"blocks\.\d+\.h(pre|post)_logits|aggregate\.w_logits"
        told["n_streams"] = _shape(shapes, pattern, "n_streams", rank=1)[0]
    if told["stream_adapters"]:
        told["adapter_rank"] = _shape(shapes, r"blocks\.\d+\.ad_down\.bias", "adapter_rank", rank=1)[0]
    return told


def _any(shapes: Shapes, pattern: str) -> bool:
    return any(re.match(pattern, name) for name in shapes)


def _shape(shapes: Shapes, pattern: str, field: str, *, rank: int) -> tuple[int, ...]:
    """The shape of the first tensor of that name and rank."""
    for name, shape in shapes.items():
        if re.fullmatch(pattern, name) and len(shape) == rank:
            return shape
    readable = pattern.replace("\\d+", "*").replace("\\", "")
    raise InteropError(f"not mhc_ssm weights: {field} cannot be told, {readable} of rank {rank} is missing")


def _stored(told: dict[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration inside a whole checkpoint, less what its architecture does not use."""
    arch, tensors_are = checkpoint.get("arch"), "mhc" if "n_streams" in told else "baseline"
    if arch not in (None, tensors_are):
        raise InteropError(f"the checkpoint says arch {shown(arch)}, but its tensors are those of {tensors_are!r}")
    unused = (_TOLD - told.keys()) | _UNREAD
    if "n_streams" not in told:
        unused |= {"stream_adapters"}  # only streams have them
    return {
        name: value for name, value in fields("mhc_ssm", "cfg", checkpoint.get("cfg")).items() if name not in unused
    }


def _check_hints(told: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """The values of the free fields."""
    return settle("mhc_ssm", hints, told={name: told.get(name) for name in _TOLD}, free=_FREE, unread=_UNREAD)


def _config(told: dict[str, Any], shapes: Shapes, free: dict[str, Any]) -> LMConfig:
    max_len, _ = _shape(shapes, r"pos_emb\.pos\.weight", "the number of positions", rank=2)
    variant: Variant = "baseline"
    if "n_streams" in told:
        variant = "adapters" if told["stream_adapters"] else "mhc"
    config = mhc_ssm(
        variant,
        "original",
        vocab_size=told["vocab_size"],
        max_len=max_len,
        width=told["dim"],
        layers=told["n_layers"],
        dropout=free["dropout"],
        norm=_NORMS[told["norm_type"]],
    )
    config = config.replace(mixer=config.mixer.replace(conv_kernel=told["conv_kernel"]))
    if variant != "baseline":
        projection = config.residual.projection.replace(iters=free["sinkhorn_iters"], temperature=free["sinkhorn_temp"])
        config = config.replace(residual=config.residual.replace(streams=told["n_streams"], projection=projection))
    if config.adapters is not None:
        config = config.replace(
            adapters=config.adapters.replace(rank=told["adapter_rank"], dropout=free["adapter_dropout"])
        )
    config.validate()
    return config


def _check_expressible(config: LMConfig) -> None:
    """The original knows one residual topology, one projection and divided writes."""
    residual = config.residual
    faithful = isinstance(residual, PlainConfig) or (
        isinstance(residual, StaticMHCConfig)
        and isinstance(residual.projection, SinkhornConfig)
        and residual.projection.domain == "exp"
        and not residual.unit_writes
        and not residual.identity_mix
    )
    standard = config.positions == "learned" and config.head == "tied" and config.norm in _NORMS.values()
    if not faithful or not standard or not isinstance(config.mixer, DiagonalSSMConfig):
        raise InteropError(
            "the original mHC-SSM cannot express this model: it needs the mixer 'diagonal_ssm', learned positions, a "
            "tied head, the norm 'rms' or 'ln' at its defaults, and a residual that is 'plain', or 'static_mhc' with a "
            "Sinkhorn projection in the domain 'exp' and neither unit_writes nor identity_mix"
        )
