"""Folders of Hugging Face transformers: ``config.json`` and safetensors, in one file or in shards."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mhc_jax import registry
from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.original import AXIS, Original, check_language_model, from_original
from mhc_jax.interop.store import CONFIG, REMOTE_CODE, is_huggingface, load, read_object, read_weights, write_folder
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.model import ModelConfig

# Of a model that transformers does not have.
INSTEAD = "train.export --format huggingface writes such a model with its code, and mhc_jax.save for this project"


def load_huggingface(directory: str | os.PathLike[str], **hints: Any) -> tuple[LMConfig, Params]:
    """The model in a folder that transformers wrote, of any type that :func:`save_huggingface` writes.

    Args:
        directory: holds ``config.json`` and ``model.safetensors``, or the shards that its index names.
        hints: fields that replace those of ``config.json``.

    Raises:
        InteropError: a file is missing or damaged, a model that is not supported, or weights that do not fit it.
    """
    directory = Path(directory)
    config = read_object(directory / CONFIG)
    if config.get("model_type") == REMOTE_CODE and not hints:
        return load(directory)
    system = _system(config.get("model_type"), f"{directory / CONFIG}")
    tensors = read_weights(directory)
    try:
        return from_original(system, {"model": tensors, "config": config}, **hints)
    except InteropError as error:
        raise InteropError(f"{directory}: {error}") from None


def save_huggingface(directory: str | os.PathLike[str], config: ModelConfig, params: Params) -> None:
    """Writes a folder that ``transformers`` loads by ``from_pretrained``; it appears whole or not at all.

    Of the types that express the model it is the first one; ``gla`` and ``gated_deltanet`` take an ``import fla``
    (flash-linear-attention) before. Biases that GPT-2 has and the model lacks are written as zeros, and so are read
    back as parameters.

    Raises:
        ConfigError: ``params`` are not those of ``config``, a model that no type of transformers expresses, or a
            ``directory`` that holds anything but an earlier export.
    """
    config.validate()
    check_language_model(config)
    types = _types()
    model_type, refused = _first(types, config)
    if model_type is None:
        raise InteropError(f"transformers cannot express this model: {refused}; {INSTEAD}")
    original: type[Original] = registry.get(AXIS, types[model_type])
    fields, tensors = original.huggingface(config, params)
    write_folder(directory, tensors, json.dumps(fields, indent=2) + "\n", ours=is_huggingface)


def native_type(config: ModelConfig) -> tuple[str | None, str]:
    """The first type of transformers itself that expresses the model; or None, and for each type shortly why not."""
    own = {model_type: name for model_type, name in _types().items() if registry.get(AXIS, name).package is None}
    return _first(own, config)


def _first(types: Mapping[str, str], config: ModelConfig) -> tuple[str | None, str]:
    """The first of these types that expresses the model; or None, and for each type shortly why not."""
    if not isinstance(config, LMConfig):
        return None, "it is no language model of one stack"
    refused = []
    for model_type, name in types.items():
        faults = registry.get(AXIS, name).faults(config)
        named = [fault for fault, applies in faults.items() if applies]
        if not named:
            return model_type, ""
        refused.append(f"as {model_type}, it has {registry.listed(named, 4)}")
    return None, "; ".join(refused)


def _types() -> dict[str, str]:
    """The published system of each type of models."""
    found = {registry.get(AXIS, name).model_type: name for name in registry.names(AXIS)}
    return {model_type: name for model_type, name in found.items() if model_type is not None}


def _system(model_type: Any, where: str) -> str:
    """The published system that reads models of that type."""
    systems = _types()
    if not isinstance(model_type, str) or model_type not in systems:
        raise InteropError(
            f"{where}: model_type {registry.shown(model_type)} is not supported; known: {', '.join(sorted(systems))}"
        )
    return systems[model_type]
