"""A model as a folder: ``config.json`` and ``model.safetensors`` with the PyTorch mirror's names and layouts."""

import os
import tempfile
from pathlib import Path

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
    directory = Path(directory).absolute()
    config.validate()
    tensors = to_torch(config, params)
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        (new / CONFIG).write_text(config.to_json())
        if directory.exists():
            directory.rename(old)
        new.rename(directory)


def load(directory: str | os.PathLike[str]) -> tuple[LMConfig, Params]:
    """The model that :func:`save` wrote.

    Raises:
        ConfigError: a file is missing, damaged or foreign, or the weights do not fit the configuration.
    """
    directory = Path(directory)
    for path in (directory, directory / CONFIG, directory / WEIGHTS):
        if not path.exists():
            raise InteropError(f"{path} does not exist; an exported model is a folder with {CONFIG} and {WEIGHTS}")
    config = _read_config(directory / CONFIG)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InteropError(f"{directory / WEIGHTS} is not a safetensors file, or is truncated ({error})") from None
    try:
        return config, from_torch(config, tensors)
    except InteropError as error:
        raise InteropError(f"{directory / WEIGHTS}: {error}") from None


def _read_config(path: Path) -> LMConfig:
    try:
        config = LMConfig.from_json(path.read_text())
        config.validate()
    except (ConfigError, UnicodeDecodeError) as error:
        raise InteropError(f"{path}: {error}") from None
    return config


def _check_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InteropError(f"{directory} is a file; choose the name of a folder")
    held = {path.name for path in directory.iterdir()}
    other = sorted(held - {CONFIG, WEIGHTS})
    if other:
        raise InteropError(f"{directory} holds other files ({', '.join(other[:5])}); choose a new or empty folder")
    if held:
        try:
            _read_config(directory / CONFIG)
        except (InteropError, FileNotFoundError):
            raise InteropError(
                f"{directory} holds something else than an exported model; choose a new folder"
            ) from None
