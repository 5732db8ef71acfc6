"""Folders of Hugging Face transformers: ``config.json`` and safetensors, in one file or in shards."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mhc_jax import registry
from mhc_jax.config import ConfigError, read_json
from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.original import AXIS, Original, check_language_model, from_original
from mhc_jax.interop.store import CONFIG, WEIGHTS, is_huggingface, read_tensors, write_folder
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.tree import readable

# Of a model that transformers does not have.
INSTEAD = "mhc_jax.save (train.export --format mhc_jax) writes any model; rlm_small_plain, for example, is a LLaMA"
INDEX = "model.safetensors.index.json"


def load_huggingface(directory: str | os.PathLike[str], **hints: Any) -> tuple[LMConfig, Params]:
    """The model in a folder that transformers wrote, of any type that :func:`save_huggingface` writes.

    Args:
        directory: holds ``config.json`` and ``model.safetensors``, or the shards that its index names.
        hints: fields that replace those of ``config.json``.

    Raises:
        InteropError: a file is missing or damaged, a model that is not supported, or weights that do not fit it.
    """
    directory = Path(directory)
    config = _read_json(directory / CONFIG)
    system = _system(config.get("model_type"), f"{directory / CONFIG}")
    try:
        return from_original(system, {"model": _tensors(directory), "config": config}, **hints)
    except InteropError as error:
        raise InteropError(f"{directory}: {error}") from None


def save_huggingface(directory: str | os.PathLike[str], config: ModelConfig, params: Params) -> None:
    """Writes a folder that ``transformers`` loads by ``from_pretrained``; it appears whole or not at all.

    Of the types that express the model it is the first one. Biases that GPT-2 has and the model lacks are written as
    zeros, and so are read back as parameters.

    Raises:
        ConfigError: ``params`` are not those of ``config``, a model that no type of transformers expresses, or a
            ``directory`` that holds anything but an earlier export.
    """
    config.validate()
    fields, tensors = _original(config).huggingface(config, params)
    write_folder(directory, tensors, json.dumps(fields, indent=2) + "\n", ours=is_huggingface)


def _types() -> dict[str, str]:
    """The published system of each type of models."""
    found = {registry.get(AXIS, name).model_type: name for name in registry.names(AXIS)}
    return {model_type: name for model_type, name in found.items() if model_type is not None}


def _original(config: ModelConfig) -> type[Original]:
    """The first published system of transformers that expresses the model.

    Raises:
        InteropError: there is none; the message says for each, shortly, why.
    """
    check_language_model(config)
    refused = []
    for model_type, name in _types().items():
        original = registry.get(AXIS, name)
        named = [fault for fault, applies in original.faults(config).items() if applies]
        if not named:
            return original
        refused.append(f"as {model_type}, it has {registry.listed(named, 4)}")
    raise InteropError(f"transformers cannot express this model: {'; '.join(refused)}; {INSTEAD}")


def _system(model_type: Any, where: str) -> str:
    """The published system that reads models of that type."""
    systems = _types()
    if not isinstance(model_type, str) or model_type not in systems:
        raise InteropError(
            f"{where}: model_type {registry.shown(model_type)} is not supported; known: {', '.join(sorted(systems))}"
        )
    return systems[model_type]


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    if (directory / WEIGHTS).exists():
        return read_tensors(directory / WEIGHTS)
    if (directory / INDEX).exists():
        return _shards(directory)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    hint = f"; {pickled[0]} is a pickle, which is never read: save the model as safetensors" if pickled else ""
    raise InteropError(f"neither {WEIGHTS} nor {INDEX} exists{hint}")


def _shards(directory: Path) -> dict[str, np.ndarray]:
    where = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise InteropError(f"{INDEX}: weight_map is missing")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file:
            raise InteropError(f"{INDEX}: {registry.shown(file)} is not the name of a file beside it")
        tensors |= read_tensors(directory / file)
    lost = sorted(where.keys() - tensors.keys())
    if lost:
        raise InteropError(
            f"{INDEX}: {readable(lost[0])} is not in {where[lost[0]]}, nor are {len(lost) - 1} others in theirs"
        )
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except OSError:
        raise InteropError(f"{path} does not exist") from None
    except ConfigError as error:
        raise InteropError(str(error)) from None
    if not isinstance(found, dict):
        raise InteropError(f"{path}: not a JSON object")
    return found
