"""Checkpoints of the published SHC code (``shc``), its transformer; see :mod:`mhc_jax.models.shc_original`."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mhc_jax.config import ConfigError, read_json
from mhc_jax.functional import Params
from mhc_jax.interop.hints import fields, settle
from mhc_jax.interop.infer import layer_count, shape_of, validated
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.names import torch_shapes
from mhc_jax.interop.original import AXIS, Original
from mhc_jax.interop.rules import Rule, read, renamed, write
from mhc_jax.interop.store import CONFIG, WEIGHTS, read_tensors, write_folder
from mhc_jax.interop.torch_weights import as_numpy, from_torch, to_torch
from mhc_jax.models.shc_original import LONGEST, ROUTES, SHCOriginalConfig
from mhc_jax.registry import register, shown
from mhc_jax.tree import Shapes

TOKENS, HEAD = "token_embed.embedding.weight", "lm_head.weight"

# The mirror's names, outside and inside a block, and the published ones.
_OUTSIDE = {"embed.tokens": TOKENS, "final_norm.weight": "final_norm.weight", "head.weight": HEAD}
_PARTS = {
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "norm_streams": "ln_stream",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.out_proj": "attention.o_proj",
    "mlp.gate_proj": "ffn.w_gate",
    "mlp.up_proj": "ffn.w_up",
    "mlp.down_proj": "ffn.w_down",
    "selector.in_proj": "rank_selector.rank_proj.0",
    "selector.out_proj": "rank_selector.rank_proj.2",
    "selector": "rank_selector",
    "expand": "stream_expander.expand_proj",
    "merge": "stream_merge",
    "code": "kv_compressor",
} | {f"routing.{name}.proj": f"routing.H_{name}.mixing_proj" for name in ROUTES}
_SKEW = {f"routing.{name}.skew": f"routing.H_{name}.cayley.params" for name in ROUTES}
# Constants that the original keeps with its weights and makes by itself.
_BUFFER = re.compile(r"layers\.\d+\..*\.(cos_cached|sin_cached|inv_freq|triu_row|triu_col|rank_values)")

# Fields of the original's SHCTransformerConfig that tensors do not show, with its defaults, and those that change
# nothing here.
_FREE: dict[str, Any] = {"n_heads": 12, "max_seq_len": 4096, "dropout": 0.1}
_UNREAD = {
    "attention_dropout", "use_flash_attention", "use_gradient_checkpointing", "compile_model", "compile_mode",
}  # fmt: skip


@register(AXIS, "shc")
class SHC(Original):
    """The transformer, with and without rank selection, with a tied head or a separate one.

    A whole checkpoint is ``{"model": state_dict, "config": the contents of config.json}``, or its trainer's
    ``{"model_state_dict": ...}``. Hints are fields of the original's ``SHCTransformerConfig``; heads are not visible in
    the tensors: 12 unless given.
    """

    models = SHCOriginalConfig

    @staticmethod
    def read(state_dict, hints):
        stored: Mapping[str, Any] = {}
        for name in ("model", "model_state_dict"):
            if isinstance(state_dict.get(name), Mapping):
                stored, state_dict = fields("shc", "config", state_dict.get("config")), state_dict[name]
        arrays = as_numpy(state_dict)
        rotary = any(name.endswith(".rope.inv_freq") for name in arrays)
        buffers = any(_BUFFER.fullmatch(name) for name in arrays)
        arrays = {name: x for name, x in arrays.items() if not _BUFFER.fullmatch(name)}
        tied = HEAD not in arrays or (TOKENS in arrays and np.array_equal(arrays[HEAD], arrays[TOKENS], equal_nan=True))
        if tied:
            arrays.pop(HEAD, None)
        told = _infer({name: x.shape for name, x in arrays.items()}, tied)
        config = _config(told, stored, hints, rotary if buffers else None)
        shapes = torch_shapes(config)
        return config, from_torch(config, read("the shc weights", list(_rules(shapes)), shapes, arrays))

    @staticmethod
    def write(config, params):
        tensors = to_torch(config, params)
        found = write(_rules(tensors), tensors)
        return {HEAD: found[TOKENS], **found, **_buffers(config)}


def load_shc(directory: str | os.PathLike[str], **hints: Any) -> tuple[SHCOriginalConfig, Params]:
    """The model in a folder of :func:`save_shc`, or in the original's with its weights saved as safetensors.

    Args:
        directory: holds ``config.json`` and ``model.safetensors``. The original writes ``model.pt``, a pickle, which is
            never read: ``from_original("shc", torch.load(file, weights_only=True))`` takes what it holds.
        hints: fields that replace those of ``config.json``.

    Raises:
        InteropError: a file is missing or damaged, or weights that do not fit.
    """
    directory = Path(directory)
    try:
        stored = read_json(directory / CONFIG)
    except OSError:
        raise InteropError(
            f"{directory / CONFIG} cannot be read; a folder of SHC holds {CONFIG} and {WEIGHTS}"
        ) from None
    except ConfigError as error:
        raise InteropError(str(error)) from None
    if not (directory / WEIGHTS).exists():
        raise InteropError(f"{directory / WEIGHTS} does not exist; save the model as safetensors")
    try:
        return SHC.read({"model": read_tensors(directory / WEIGHTS), "config": stored}, hints)
    except InteropError as error:
        raise InteropError(f"{directory}: {error}") from None


def save_shc(directory: str | os.PathLike[str], config: SHCOriginalConfig, params: Params) -> None:
    """Writes the original's ``config.json``, and its weights as safetensors; the folder appears whole or not at all.

    Constants that the original makes by itself are left out: it takes the tensors with ``strict=False``.

    Raises:
        ConfigError: another kind of model, ``params`` that are not those of ``config``, or a ``directory`` that holds
            anything but an earlier export.
    """
    if not isinstance(config, SHCOriginalConfig):
        raise InteropError(f"checkpoints of shc hold a 'shc_original', not a {config.kind!r}")
    config.validate()
    tensors = to_torch(config, params)
    text = json.dumps(_fields(config), indent=2) + "\n"
    write_folder(directory, write(_rules(tensors), tensors), text, ours=_holds_shc)


def _holds_shc(directory: Path) -> bool:
    try:
        stored = read_json(directory / CONFIG)
    except (OSError, ConfigError):
        return False
    return isinstance(stored, dict) and "factorization_rank" in stored


def _rules(names: Mapping[str, Any]) -> Iterator[Rule]:
    for name in names:
        if name in _OUTSIDE:
            yield renamed(name, _OUTSIDE[name])
            continue
        _, layer, inside = name.split(".", 2)
        part, _, leaf = inside.rpartition(".")
        yield renamed(name, f"layers.{layer}.{_SKEW.get(inside) or f'{_PARTS[part]}.{leaf}'}")


def _infer(shapes: Shapes, tied: bool) -> dict[str, Any]:
    """The fields of the original's configuration, inferred from the tensors."""
    vocab_size, width = shape_of("shc", shapes, TOKENS)
    streams, rank = shape_of("shc", shapes, "layers.0.kv_compressor.U")
    return {
        "vocab_size": vocab_size,
        "hidden_dim": width,
        "n_layers": layer_count(shapes),
        "ffn_dim": shape_of("shc", shapes, "layers.0.ffn.w_down.weight")[1],
        "n_streams": streams,
        "k_mixture": shape_of("shc", shapes, "layers.0.routing.H_pre.mixing_proj.weight")[0],
        "factorization_rank": rank,
        "use_adaptive_rank": "layers.0.rank_selector.layer_bias" in shapes,
        "tie_embeddings": tied,
    }


def _config(
    told: dict[str, Any], stored: Mapping[str, Any], hints: Mapping[str, Any], rotary: bool | None
) -> SHCOriginalConfig:
    """``rotary`` is None where the weights come without the constants that show it."""
    given = {**stored, **hints}
    if "ffn_dim" in given and given["ffn_dim"] is None:  # of the original's own choice
        del given["ffn_dim"]
    if rotary is None:
        rotary = given.get("use_rope", True)
        if not isinstance(rotary, bool):
            raise InteropError(f"shc: use_rope must be true or false, got {shown(rotary)}")
    free = settle("shc", given, told={**told, "use_rope": rotary}, free=_FREE, unread=_UNREAD)
    config = SHCOriginalConfig(
        vocab_size=told["vocab_size"],
        max_len=free["max_seq_len"],
        width=told["hidden_dim"],
        layers=told["n_layers"],
        heads=free["n_heads"],
        hidden=told["ffn_dim"],
        streams=told["n_streams"],
        components=told["k_mixture"],
        rank=told["factorization_rank"],
        adaptive_rank=told["use_adaptive_rank"],
        rotary=rotary,
        tied=told["tie_embeddings"],
        dropout=free["dropout"],
    )
    return validated("shc", config)


def _fields(config: SHCOriginalConfig) -> dict[str, Any]:
    """The contents of ``config.json``."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "ffn_dim": config.hidden_width,
        "max_seq_len": config.max_len,
        "n_streams": config.streams,
        "k_mixture": config.components,
        "factorization_rank": config.rank,
        "use_adaptive_rank": config.adaptive_rank,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "use_flash_attention": True,
        "use_rope": config.rotary,
        "tie_embeddings": config.tied,
        "use_gradient_checkpointing": config.execution.remat != "none",
        "compile_model": False,
        "compile_mode": "reduce-overhead",
    }


def _buffers(config: SHCOriginalConfig) -> dict[str, np.ndarray]:
    """The constants in the original's state_dict."""
    head = config.width // config.heads
    frequency = (1 / 10000 ** (np.arange(0, head, 2, dtype=np.float32) / head)).astype(np.float32)
    angles = np.tile(np.arange(LONGEST, dtype=np.float32)[:, None] * frequency, (1, 2))[None, None]
    row, column = np.triu_indices(config.streams, 1)
    inside: dict[str, np.ndarray] = {}
    if config.rotary:
        inside |= {"cos_cached": np.cos(angles), "sin_cached": np.sin(angles), "inv_freq": frequency}
        inside = {f"attention.rope.{name}": x for name, x in inside.items()}
    for name in ROUTES:
        inside |= {f"routing.H_{name}.cayley.triu_row": row, f"routing.H_{name}.cayley.triu_col": column}
    if config.adaptive_rank:
        inside["rank_selector.rank_values"] = np.arange(1, config.streams + 1, dtype=np.float32)
    return {f"layers.{layer}.{name}": x for layer in range(config.layers) for name, x in inside.items()}
