"""The common parts of GPT-2 and nanoGPT checkpoints: names, one fused attention matrix, a tied head."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from mhc_jax.interop.infer import layer_count, shape_of
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.rules import Arrays, Rule, fused, renamed
from mhc_jax.nn.backbone import BackboneConfig
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.tree import Shapes

BODY, HEAD, TOKENS = "transformer.", "lm_head.weight", "wte.weight"

# Causal masks that older versions stored beside the parameters.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

# The mirror's names, outside and inside a block, less ".weight" and ".bias".
_OUTSIDE = {"final_norm": "ln_f"}
_INSIDE = {
    "mixer.norm": "ln_1",
    "mixer.branch.out_proj": "attn.c_proj",
    "mlp.norm": "ln_2",
    "mlp.branch.up_proj": "mlp.c_fc",
    "mlp.branch.down_proj": "mlp.c_proj",
}
_TABLES = {"embed.tokens": TOKENS, "embed.positions": "wpe.weight"}
Backbone = TypeVar("Backbone", bound=BackboneConfig)
_FUSED = ("q_proj", "k_proj", "v_proj")


def rules(names: Iterable[str], *, inputs_first: bool) -> Iterator[Rule]:
    """The translation of embeddings, norms, attention and MLP; published names are without ``transformer.``.

    Args:
        names: names in the mirror; names of other parts are ignored.
        inputs_first: matrices are stored (in, out), as GPT-2's Conv1D does.
    """
    for name in names:
        head, inside = _block(name)
        layer, _, leaf = inside.rpartition(".")
        if name in _TABLES:
            yield renamed(name, _TABLES[name])
        elif not head and layer in _OUTSIDE:
            yield renamed(name, f"{_OUTSIDE[layer]}.{leaf}")
        elif head and layer in _INSIDE:
            matrix = ".branch." in layer and leaf == "weight"
            yield renamed(name, f"h.{head}.{_INSIDE[layer]}.{leaf}", transposed=inputs_first and matrix)
        elif head and layer == "mixer.branch.q_proj":
            parts = [f"blocks.{head}.mixer.branch.{part}.{leaf}" for part in _FUSED]
            yield fused(parts, f"h.{head}.attn.c_attn.{leaf}", transposed=inputs_first and leaf == "weight")


def _block(name: str) -> tuple[str, str]:
    """The block's number, as text, and the name inside the block; no number outside."""
    if not name.startswith("blocks."):
        return "", name
    _, number, inside = name.split(".", 2)
    return number, inside


def without_prefix(system: str, tensors: Mapping[str, Any], prefixes: Iterable[str]) -> dict[str, Any]:
    """Names without the prefixes, each taken off where it stands, in order.

    Raises:
        InteropError: two tensors end up with one name.
    """
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        short = name
        for prefix in prefixes:
            short = short.removeprefix(prefix)
        if short in found:
            raise InteropError(f"{system}: {short} occurs twice, with and without a prefix")
        found[short] = value
    return found


def infer(system: str, shapes: Shapes, *, inputs_first: bool) -> dict[str, int]:
    """``vocab_size``, ``positions``, ``width``, ``layers`` and ``hidden`` width of the MLP, inferred from the tensors.

    Raises:
        InteropError: a tensor that is needed for it is missing or of another rank.
    """
    vocab_size, width = shape_of(system, shapes, TOKENS)
    positions, _ = shape_of(system, shapes, "wpe.weight")
    layers = layer_count(shapes, "h")
    hidden = shape_of(system, shapes, "h.0.mlp.c_fc.weight")[1 if inputs_first else 0]
    return {"vocab_size": vocab_size, "positions": positions, "width": width, "layers": layers, "hidden": hidden}


def untied(system: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """The parameters without causal masks and output head, which must equal the token table if it is there.

    Raises:
        InteropError: it does not.
    """
    rest = {name: x for name, x in arrays.items() if name != HEAD and not _MASK.fullmatch(name)}
    if HEAD in arrays and TOKENS in arrays and not np.array_equal(arrays[HEAD], arrays[TOKENS]):
        raise InteropError(f"{system}: {HEAD} differs from {TOKENS}; here the two are one tied matrix")
    return rest


def tied(arrays: Arrays) -> dict[str, np.ndarray]:
    """Inverse of :func:`untied`, with ``transformer.`` before all names but the head's."""
    return {BODY + name: x for name, x in arrays.items()} | {HEAD: arrays[TOKENS]}


def faults(config: LMConfig, *, bias: bool | None) -> dict[str, bool]:
    """Reasons why a model is not a GPT, regardless of its residual topology, and whether each applies.

    Args:
        config: the model.
        bias: whether norms, attention and MLP are to have biases; None where either will do.
    """
    return backbone_faults(config, bias=bias) | {
        "no learned positions": config.positions != "learned",
        "a head of its own": config.head != "tied",
        "attention that is not causal": not config.mixer.causal,
    }


def stream_faults(config: BackboneConfig) -> dict[str, bool]:
    """Reasons why a backbone is not one of a single stream, and whether each applies."""
    return {
        f"residual {config.residual.kind!r} instead of 'plain'": config.residual.kind != "plain",
        f"ends {config.ends.kind!r} instead of 'identity'": config.ends.kind != "identity",
        "value residual": config.value_residual is not None,
    }


def backbone_faults(config: BackboneConfig, *, bias: bool | None) -> dict[str, bool]:
    """:func:`faults` of what lies between embedding and head, but for the direction of its attention."""
    mixer, mlp, norm, without = config.mixer, config.mlp, config.norm, "without" if bias else "with"

    def unlike(biased: bool) -> bool:
        return bias is not None and biased != bias

    return {
        f"mixer {mixer.kind!r} instead of 'attention'": not isinstance(mixer, AttentionConfig),
        f"attention {without} biases": isinstance(mixer, AttentionConfig) and unlike(mixer.bias),
        "three views": mixer.views != 1,
        "no MLP": mlp is None,
        f"MLP {mlp and mlp.kind!r} instead of 'gelu_mlp'": not isinstance(mlp, GeluMLPConfig | None),
        f"an MLP {without} biases": isinstance(mlp, GeluMLPConfig) and unlike(mlp.bias),
        f"norm {norm.kind!r} instead of 'ln'": not isinstance(norm, LayerNormConfig),
        f"LayerNorm {without} bias": isinstance(norm, LayerNormConfig) and unlike(norm.bias),
        "norms with another epsilon than 1e-05": isinstance(norm, LayerNormConfig) and norm.eps != 1e-5,
        "stream adapters": config.adapters is not None,
        "channel mixers before attention or the MLP": config.before_mixer is not None or config.before_mlp is not None,
    } | (_newer(mixer) if isinstance(mixer, AttentionConfig) else {})


def _newer(mixer: AttentionConfig) -> dict[str, bool]:
    """Attention features that GPT-2 lacks."""
    return {
        "rotary positions": mixer.rotary != "none",
        f"{mixer.groups} heads of keys": mixer.groups != mixer.heads,
        f"heads of width {mixer.head_width}": mixer.head_width is not None,
        "normalised queries and keys": mixer.qk_norm is not None,
    }


def zero_biases(config: LMConfig, tensors: Arrays) -> dict[str, np.ndarray]:
    """The biases that GPT-2 has and this model has not."""
    biased, dtype = with_biases(config), tensors["embed.tokens"].dtype
    return {name: np.zeros(shape, dtype) for name, shape in torch_shapes(biased).items() if name not in tensors}


def with_biases(config: Backbone) -> Backbone:
    """The backbone with all biases of GPT-2."""
    assert config.mlp is not None  # refused otherwise
    parts = {"mixer": config.mixer.replace(bias=True), "mlp": config.mlp.replace(bias=True)}
    return config.replace(norm=config.norm.with_bias(), **parts)
