"""A model as a folder: ``config.json`` and ``model.safetensors`` with the PyTorch mirror's names and layouts."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.torch_weights import from_torch, to_torch
from mhc_jax.nn.lm import LMConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(directory: str | os.PathLike[str], config: LMConfig, params: Params) -> None:
    """Writes the model into ``directory``, which appears whole or not at all; an earlier export is replaced.

    Raises:
        ConfigError: ``params`` are not those of ``config``, or ``directory`` holds anything but an export.
    """
    config.validate()
    write_folder(directory, to_torch(config, params), config.to_json(), ours=_holds_model)


def load(directory: str | os.PathLike[str]) -> tuple[LMConfig, Params]:
    """The model that :func:`save` wrote.

    Raises:
        ConfigError: a file is missing, damaged or foreign, or the weights do not fit the configuration.
    """
    directory = Path(directory)
    for path in (directory, directory / CONFIG, directory / WEIGHTS):
        if not path.exists():
            raise InteropError(f"{path} does not exist; an exported model is a folder with {CONFIG} and {WEIGHTS}")
    if is_huggingface(directory):
        raise InteropError(f"{directory} is in the format of transformers; read it by interop.load_huggingface")
    config = _read_config(directory / CONFIG)
    tensors = read_tensors(directory / WEIGHTS)
    try:
        return config, from_torch(config, tensors)
    except InteropError as error:
        raise InteropError(f"{directory / WEIGHTS}: {error}") from None


def _read_config(path: Path) -> LMConfig:
    try:
        config = LMConfig.from_json(path.read_text(encoding="utf-8"))
        config.validate()
    except (ConfigError, UnicodeDecodeError) as error:
        raise InteropError(f"{path}: {error}") from None
    return config


def is_huggingface(directory: str | os.PathLike[str]) -> bool:
    """Whether the folder's ``config.json`` names a ``model_type``, as no other of ours does."""
    try:
        config = json.loads(Path(directory, CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        InteropError: it is missing, damaged or something else.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InteropError(f"{path} is not a safetensors file, or is truncated ({error})") from None


def write_folder(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    config: str,
    *,
    ours: Callable[[Path], bool],
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into a folder that appears whole or not at all.

    Args:
        directory: new, empty, or an earlier export, which is replaced.
        tensors: the weights.
        config: the text of ``config.json``.
        ours: whether a folder holds an earlier export.

    Raises:
        InteropError: ``directory`` holds anything else.
    """
    directory = Path(directory).absolute()
    _check_replaceable(directory, ours)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        save_file(dict(tensors), new / WEIGHTS, metadata={"format": "pt"})
        (new / CONFIG).write_text(config, encoding="utf-8")
        if directory.exists():
            directory.rename(old)
        new.rename(directory)


def _check_replaceable(directory: Path, ours: Callable[[Path], bool]) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InteropError(f"{directory} is a file; choose the name of a folder")
    held = {path.name for path in directory.iterdir()}
    other = sorted(held - {CONFIG, WEIGHTS})
    if other:
        raise InteropError(f"{directory} holds other files ({', '.join(other[:5])}); choose a new or empty folder")
    if held and not ours(directory):
        raise InteropError(f"{directory} holds something else than an exported model; choose a new folder")


def _holds_model(directory: Path) -> bool:
    try:
        _read_config(directory / CONFIG)
    except (InteropError, FileNotFoundError):
        return False
    return True
