"""Checkpoints of the published TransformerScanModel (``transformer_scan``)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mhc_jax.interop import gpt
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import layer_count, shape_of, validated
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original, refuse
from mhc_jax.interop.rules import Rule, read, renamed, write
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.models import transformer_scan
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.transformer_scan import TransformerScanConfig
from mhc_jax.ops.prefix_scan import LEGACY, ScanForm
from mhc_jax.registry import register, unknown
from mhc_jax.tree import Shapes

_TABLES = {"embed.tokens": "T0.wte.weight", "embed.positions": "T0.wpe.weight", "head.weight": "T2_head.weight"}
_NETWORKS = {"aggregator": "T1", "reader": "T2"}
# Causal masks that transformers kept beside the parameters for as long as they were applied whatever was asked for.
_MASK = re.compile(r"T[12]\.blocks\.\d+\.attn\.(bias|masked_bias)")
# Modes of training, and what they compute: the scan, and the positions.
_MODES: dict[str, tuple[ScanForm, str]] = {
    "sequential": ("parallel", "legacy_mixed"),
    "blelloch": ("legacy_blelloch", "absolute"),
    "parallel": ("legacy_parallel", "absolute"),
}
# Fields that tensors do not show, with the published defaults; a width under 768 has heads of 32.
_FREE: dict[str, Any] = {
    "n_head": None,
    "chunk_size": 64,
    "train_mode": "sequential",
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "causal_aggregator": True,
}


@register(AXIS, "transformer_scan")
class TransformerScanOriginal(Original):
    """The model whose names begin with ``T0``, ``T1``, ``T2`` and ``T2_head``.

    A whole checkpoint is ``{"model": state_dict, "config": its fields}``. Hints are fields of the original's
    configuration, such as ``chunk_size``, ``n_head`` and ``train_mode``, and ``causal_aggregator=False`` for weights
    that were trained under a version of transformers whose blocks see both ways.
    """

    models = TransformerScanConfig

    @staticmethod
    def read(state_dict, hints):
        stored: Mapping[str, Any] = {}
        if isinstance(state_dict.get("model"), Mapping):
            stored, state_dict = fields("transformer_scan", "config", state_dict.get("config")), state_dict["model"]
        arrays = {name: x for name, x in as_numpy(state_dict).items() if not _MASK.fullmatch(name)}
        config = _config({name: x.shape for name, x in arrays.items()}, {**stored, **hints})
        shapes = torch_shapes(config)
        return config, from_torch(config, read("the transformer_scan weights", list(_rules(shapes)), shapes, arrays))

    @staticmethod
    def write(config, params):
        tensors = to_torch(config, params)
        faults = {"side embeddings": config.side_embedding, "a prefix embedding": config.prefix_embedding}
        faults["a tied head"] = config.head == "tied"
        faults[f"{config.outputs} outputs"] = config.outputs not in (None, config.vocab_size)
        faults["outputs of prefixes at the ends of chunks"] = config.boundary == "prefix"
        scan = config.scan if config.scan in LEGACY else "parallel"
        together = (scan, config.positions) in _MODES.values()
        faults[f"{config.positions} positions with scan {config.scan!r}"] = not together
        for name in _NETWORKS:
            part = getattr(config, name)
            found = gpt.stream_faults(part) | gpt.backbone_faults(part, bias=None)
            faults |= {f"{fault} in the {name}": there for fault, there in found.items()}
        refuse("transformer_scan", faults)
        biased = config.replace(**{name: gpt.with_biases(getattr(config, name)) for name in _NETWORKS})
        dtype = tensors["embed.tokens"].dtype
        zeros = {name: np.zeros(x, dtype) for name, x in torch_shapes(biased).items() if name not in tensors}
        tensors |= zeros
        return write(_rules(tensors), tensors)


def _rules(names: Mapping[str, Any]) -> Iterator[Rule]:
    for name in names:
        if name in _TABLES:
            yield renamed(name, _TABLES[name])
    for network, theirs in _NETWORKS.items():
        inside = [name.removeprefix(f"{network}.") for name in names if name.startswith(f"{network}.")]
        for rule in gpt.rules(inside, inputs_first=True):
            published = [f"{theirs}.{re.sub('^h[.]', 'blocks.', name)}" for name in rule.published]
            mirror = [f"{network}.{name}" for name in rule.mirror]
            yield Rule(tuple(mirror), tuple(published), rule.to_published, rule.to_mirror)


def _config(shapes: Shapes, given: Mapping[str, Any]) -> TransformerScanConfig:
    system = "transformer_scan"
    vocab_size, width = shape_of(system, shapes, _TABLES["embed.tokens"])
    positions, _ = shape_of(system, shapes, _TABLES["embed.positions"])
    told = {
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_positions": positions,
        "t1_layers": layer_count(shapes, "T1.blocks"),
        "t2_layers": layer_count(shapes, "T2.blocks"),
        "n_inner": shape_of(system, shapes, "T2.blocks.0.mlp.c_fc.weight")[1],
    }
    free = settle(system, given, told=told, free=_FREE)
    if free["train_mode"] not in _MODES:
        raise InteropError(f"{system}: {unknown('train_mode', free['train_mode'], _MODES)}")
    heads = max(1, width // (64 if width >= 768 else 32)) if free["n_head"] is None else free["n_head"]
    scan, mode_positions = _MODES[free["train_mode"]]
    original = transformer_scan("base", "original")
    mlp = original.reader.mlp
    assert isinstance(mlp, GeluMLPConfig)
    mlp = mlp.replace(hidden=0 if told["n_inner"] == 4 * width else told["n_inner"])
    networks = {
        name: part.replace(
            width=width,
            layers=told[layers],
            dropout=free["resid_pdrop"],
            mixer=part.mixer.replace(heads=heads, dropout=free["attn_pdrop"], causal=causal),
            mlp=mlp,
        )
        for name, part, layers, causal in (
            ("aggregator", original.aggregator, "t1_layers", free["causal_aggregator"]),
            ("reader", original.reader, "t2_layers", True),
        )
    }
    config = original.replace(
        **networks,
        vocab_size=vocab_size,
        max_len=positions,
        chunk=free["chunk_size"],
        positions=mode_positions,
        scan=scan,
        dropout=free["embd_pdrop"],
        output_dropout=free["resid_pdrop"],
    )
    return validated(system, config)
