"""Checkpoints of nanoGPT, and of its published variants with hyper-connections, static mHC and value residual."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from mhc_jax.interop import gpt
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, refuse
from mhc_jax.interop.rules import Arrays, Rule, read, renamed, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.models.gpt import Topology, nanogpt
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.projections import OrthostochasticConfig, SinkhornConfig
from mhc_jax.nn.residual import HyperConnectionsConfig, PlainConfig, StaticMHCConfig
from mhc_jax.ops.projections import SCHEDULE
from mhc_jax.registry import register
from mhc_jax.tree import Shapes

COMPILED = "_orig_mod."

# The branches are registered twice or three times over, and state_dict() lists a tensor under every name that it has.
_ALIASES = (
    (re.compile(r"(h\.\d+)\.(?:attn_branch|hc_attn\.branch)\.(?:norm|0)\."), r"\1.ln_1."),
    (re.compile(r"(h\.\d+)\.(?:attn_branch|hc_attn\.branch)\.(?:attn|1)\."), r"\1.attn."),
    (re.compile(r"(h\.\d+)\.hc_mlp\.branch\.0\."), r"\1.ln_2."),
    (re.compile(r"(h\.\d+)\.hc_mlp\.branch\.1\."), r"\1.mlp."),
)
_SHARED = {
    "ln_1": ("attn_branch.norm", "hc_attn.branch.norm"),
    "attn": ("attn_branch.attn", "hc_attn.branch.attn"),
    "ln_2": ("hc_mlp.branch.0",),
    "mlp": ("hc_mlp.branch.1",),
}

_SITES = {"mixer": "hc_attn", "mlp": "hc_mlp"}
_MHC = {
    "pre_logits": "H_pre_logits",
    "post_logits": "H_post_logits",
    "res_logits": "H_res_logits",
    "mix_logit": "H_res_alpha_logit",
}
# What an mHC site stores and never reads: the parameters of a hyper-connection.
_DEAD = re.compile(
    r"h\.\d+\.hc_(attn|mlp)\.(static_alpha|static_beta|dynamic_(alpha|beta)_(fn|scale)|norm\.gamma)",
)

# Fields of GPTConfig that the tensors cannot say, with its defaults; there is none for n_head.
_FREE: dict[str, Any] = {
    "n_head": None,
    "dropout": 0.0,
    "sinkhorn_iters": 10,
    "sinkhorn_tau": 0.05,
    "mhc_h_res_proj": "sinkhorn",
    "ns_steps": 5,
    "ns_eps": 1e-7,
    "ns_coeffs": (3.0, -3.2, 1.2),
    "mhc_residual_alpha": 0.01,
}
_TOLD = (
    *("block_size", "vocab_size", "n_layer", "n_embd", "bias", "v_residual", "v_residual_constrained"),
    *("hc_disable", "hc_num_streams", "hc_num_fracs", "mhc", "mhc_residual_identity_mix"),
)
_UNREAD = {"v_residual_lamb_lr"}


@register(AXIS, "nanogpt")
class NanoGPT(Original):
    """Plain, HC, static mHC (Sinkhorn, orthostochastic, identity mix), value residual: recognised by their tensors.

    A checkpoint is ``{"model": state_dict, "config": fields of GPTConfig}``, its names as they are, without
    ``transformer.``, or with the prefix of ``torch.compile``.
    """

    @staticmethod
    def read(state_dict, hints):
        whole = isinstance(state_dict.get("model"), Mapping)
        name = "model_args" if "model_args" in state_dict else "config"
        stored = fields("nanogpt", name, state_dict.get(name)) if whole else {}
        arrays = as_numpy(state_dict["model"] if whole else state_dict)
        arrays = gpt.untied("nanogpt", _unshared(gpt.without_prefix("nanogpt", arrays, [COMPILED, gpt.BODY])))
        told = _infer({name: x.shape for name, x in arrays.items()})
        if told.get("mhc"):
            arrays = {name: x for name, x in arrays.items() if not _DEAD.fullmatch(name)}
        config = _config(told, {name: x for name, x in stored.items() if name in {*_FREE, *_TOLD}} | dict(hints))
        shapes = torch_shapes(config)
        return config, from_torch(config, read("the nanogpt weights", list(_rules(config)), shapes, arrays))

    @staticmethod
    def write(config, params):
        tensors = to_torch(config, params)
        _check_expressible(config)
        found = write(_rules(config), tensors)
        if isinstance(config.residual, StaticMHCConfig):
            found |= _dead(config, found[gpt.TOKENS].dtype)
        return gpt.tied(_shared(found))


def _rules(config: LMConfig) -> Iterator[Rule]:
    shapes = torch_shapes(config)
    yield from gpt.rules(shapes, inputs_first=False)
    for name in shapes:
        match = re.fullmatch(r"blocks\.(\d+)\.(mixer|mlp)\.residual\.(.+)", name)
        if match:
            yield _residual_rule(name, f"h.{match[1]}.{_SITES[match[2]]}.", match[3], shapes[name])
        elif name.endswith(".values.lambdas"):
            attention = f"h.{name.split('.')[1]}.attn."
            assert config.value_residual is not None
            if config.value_residual.constrained:
                yield renamed(name, f"{attention}lamb_logits")
            else:
                names = f"{attention}lamb1", f"{attention}lamb2"
                yield Rule((name,), names, lambda x: (x[0], x[1]), lambda *x: (np.stack(x),))


def _residual_rule(name: str, site: str, leaf: str, shape: tuple[int, ...]) -> Rule:
    if leaf == "dynamic_beta_fn" and shape[-1] == 1:  # without fractions the published one is a vector
        return Rule((name,), (site + leaf,), lambda x: (x[..., 0],), lambda x: (x[..., None],))
    # H_res[s, t] leads from s to t in the published matrix.
    return renamed(name, site + _MHC.get(leaf, leaf), transposed=leaf == "res_logits")


def _unshared(arrays: Arrays) -> dict[str, np.ndarray]:
    """Every tensor once, under the name by which the optimizer knows it.

    Raises:
        InteropError: two names of one tensor with different values.
    """
    found: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        short = name
        for pattern, replacement in _ALIASES:
            short = pattern.sub(replacement, short)
        if short in found and not np.array_equal(found[short], x):
            raise InteropError(f"nanogpt: {name} differs from {short}, but the two are one tensor")
        found[short] = x
    return found


def _shared(arrays: Arrays) -> dict[str, np.ndarray]:
    """Inverse of :func:`_unshared`: all names, as the published ``load_state_dict`` expects them."""
    found = dict(arrays)
    for name, x in arrays.items():
        match = re.fullmatch(r"(h\.\d+)\.(ln_1|attn|ln_2|mlp)\.(.+)", name)
        if match:
            found |= {f"{match[1]}.{alias}.{match[3]}": x for alias in _SHARED[match[2]]}
    return found


def _infer(shapes: Shapes) -> dict[str, Any]:
    """The fields of GPTConfig, inferred from the tensors."""
    sizes = gpt.infer("nanogpt", shapes, inputs_first=False)
    told: dict[str, Any] = {
        "block_size": sizes["positions"],
        "vocab_size": sizes["vocab_size"],
        "n_layer": sizes["layers"],
        "n_embd": sizes["width"],
        "bias": "ln_f.bias" in shapes,
        "v_residual": any(re.fullmatch(r"h\.\d+\.attn\.lamb.*", name) for name in shapes),
        "hc_disable": not any(re.match(r"h\.\d+\.hc_", name) for name in shapes),
    }
    if told["v_residual"]:
        told["v_residual_constrained"] = any(name.endswith(".lamb_logits") for name in shapes)
    if not told["hc_disable"]:
        told["mhc"] = any(name.endswith(".H_res_logits") for name in shapes)
        told |= _mhc_sizes(shapes) if told["mhc"] else _hc_sizes(shapes)
    return told


def _mhc_sizes(shapes: Shapes) -> dict[str, Any]:
    streams = _first(shapes, "H_res_logits")[0]
    mix = any(name.endswith(".H_res_alpha_logit") for name in shapes)
    return {"hc_num_streams": streams, "hc_num_fracs": 1, "mhc_residual_identity_mix": mix}


def _hc_sizes(shapes: Shapes) -> dict[str, Any]:
    rows, columns = _first(shapes, "static_alpha")
    fractions = columns - rows  # (S F, (S + 1) F)
    if fractions < 1 or rows % fractions:
        raise InteropError(f"nanogpt: static_alpha of shape {(rows, columns)} is not that of a hyper-connection")
    return {"hc_num_streams": rows // fractions, "hc_num_fracs": fractions}


def _first(shapes: Shapes, leaf: str) -> tuple[int, ...]:
    for name, shape in shapes.items():
        if name.endswith(f".{leaf}") and len(shape) == 2:
            return shape
    raise InteropError(f"not nanogpt weights: h.*.hc_attn.{leaf} of rank 2 is missing")


def _config(told: dict[str, Any], hints: dict[str, Any]) -> LMConfig:
    # Fields of absent parts, e.g. the streams of a plain model, are neither stored nor read.
    unread = {*_UNREAD, *(name for name in _TOLD if name not in told)}
    free = settle("nanogpt", hints, told=told, free=_FREE, unread=unread)
    if free["n_head"] is None:
        raise InteropError("nanogpt: the tensors do not tell the number of heads; say n_head=...")
    value_residual: Literal["none", "free", "constrained"] = "none"
    if told["v_residual"]:
        value_residual = "constrained" if told["v_residual_constrained"] else "free"
    config = nanogpt(
        _topology(told, free),
        "original",
        heads=free["n_head"],
        value_residual=value_residual,
        attention_dropout=free["dropout"],
        dropout=free["dropout"],
        vocab_size=told["vocab_size"],
        max_len=told["block_size"],
        width=told["n_embd"],
        layers=told["n_layer"],
        norm=LayerNormConfig(bias=told["bias"]),
    )
    config = config.replace(
        residual=_residual(config.residual, told, free),
        mixer=config.mixer.replace(bias=told["bias"]),
        mlp=GeluMLPConfig(bias=told["bias"]),
    )
    config.validate()
    return config


def _topology(told: dict[str, Any], free: dict[str, Any]) -> Topology:
    if told["hc_disable"]:
        return "plain"
    if not told["mhc"]:
        return "hc"
    names: dict[str, Topology] = {"sinkhorn": "mhc", "orthostochastic": "mhc_orthostochastic"}
    if free["mhc_h_res_proj"] not in names:
        raise InteropError(f"nanogpt: mhc_h_res_proj={free['mhc_h_res_proj']!r} is not one of {', '.join(names)}")
    return names[free["mhc_h_res_proj"]]


def _residual(residual: Any, told: dict[str, Any], free: dict[str, Any]) -> Any:
    """The published form of the topology, with the sizes and settings of the checkpoint."""
    if isinstance(residual, PlainConfig):
        return residual
    residual = residual.replace(streams=told["hc_num_streams"])
    if isinstance(residual, HyperConnectionsConfig):
        return residual.replace(fractions=told["hc_num_fracs"], fraction_init="published")
    if told["mhc_residual_identity_mix"]:
        residual = residual.replace(identity_mix=min(max(free["mhc_residual_alpha"], 1e-4), 1 - 1e-4))
    if isinstance(residual.projection, OrthostochasticConfig):
        return residual.replace(projection=_newton_schulz(residual.projection, free))
    if free["sinkhorn_iters"] == 0:
        raise InteropError(
            "nanogpt: sinkhorn_iters=0 leaves H_res at n exp(logits / tau), which mixes by sums of any size and is no "
            "projection; convert with at least 1"
        )
    changes = {"iters": free["sinkhorn_iters"], "temperature": free["sinkhorn_tau"]}
    return residual.replace(projection=residual.projection.replace(**changes))


def _newton_schulz(projection: OrthostochasticConfig, free: dict[str, Any]) -> OrthostochasticConfig:
    coefficients, eps = free["ns_coeffs"], free["ns_eps"]
    if all(isinstance(x, int | float) for x in coefficients):
        steps = free["ns_steps"]
        return projection.replace(schedule="quintic", coefficients=tuple(coefficients), steps=steps, eps=eps)
    if any(isinstance(x, int | float) for x in coefficients) or tuple(map(tuple, coefficients)) != SCHEDULE:
        raise InteropError("nanogpt: ns_coeffs by step are supported only as the published schedule of eight")
    return projection.replace(schedule="eight", eps=eps)


def _dead(config: LMConfig, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The initial values of the parameters that an mHC site stores and never reads."""
    n, width = config.residual.streams, config.width
    found: dict[str, Any] = {}
    for layer in range(config.layers):
        for index, site in enumerate(_SITES.values()):
            own_stream = np.eye(n)[:, [(2 * layer + index) % n]]
            values = {
                "static_alpha": np.concatenate([own_stream, np.eye(n)], axis=1),
                "dynamic_alpha_fn": np.zeros((width, n + 1)),
                "dynamic_alpha_scale": np.array(0.01),
                "static_beta": np.ones(n),
                "dynamic_beta_fn": np.zeros(width),
                "dynamic_beta_scale": np.array(0.01),
                "norm.gamma": np.zeros(width),
            }
            found |= {f"h.{layer}.{site}.{leaf}": x.astype(dtype) for leaf, x in values.items()}
    return found


def _check_expressible(config: LMConfig) -> None:
    """Raises InteropError, naming every part at fault, unless the model is one of the published."""
    bias = isinstance(config.norm, LayerNormConfig) and config.norm.bias
    mixer, mlp, residual = config.mixer, config.mlp, config.residual
    streams = not isinstance(residual, PlainConfig)
    refuse(
        "the original nanoGPT",
        gpt.faults(config, bias=bias)
        | {
            f"residual {residual.kind!r} in another form than the published": not _published(residual),
            "an MLP of another width than four": isinstance(mlp, GeluMLPConfig)
            and mlp.hidden not in (0, 4 * config.width),
            "the tanh form of GELU": isinstance(mlp, GeluMLPConfig) and mlp.activation != "erf",
            f"ends {config.ends.kind!r} instead of the sum of copies": streams
            and config.ends != CopyEndsConfig(collapse="sum"),
            "its final norm after the sum of the streams": streams and not config.norm_streams,
            "several dropout rates": isinstance(mixer, AttentionConfig) and mixer.dropout != config.dropout,
        },
    )


def _published(residual: Any) -> bool:
    """Whether its mathematics is the published one; how it was initialised does not matter."""
    if isinstance(residual, HyperConnectionsConfig):
        kept = {"streams": residual.streams, "fractions": residual.fractions, "fraction_init": residual.fraction_init}
        return residual == HyperConnectionsConfig(mixed=False, **kept)
    if isinstance(residual, StaticMHCConfig):
        projection = residual.projection
        sinkhorn = isinstance(projection, SinkhornConfig) and projection.order == "columns_then_rows"
        squares = isinstance(projection, OrthostochasticConfig) and not projection.normalise
        return not residual.unit_writes and (sinkhorn or squares)
    return isinstance(residual, PlainConfig)
