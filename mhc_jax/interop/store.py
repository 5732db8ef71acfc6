"""A model as a folder: ``config.json`` and ``model.safetensors`` with the PyTorch mirror's names and layouts.

Folders for transformers that carry the mirror as their code hold the same tensors, perhaps under ``lm.``, and the
record of the model inside their ``config.json``.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mhc_jax.config import ConfigError, parse_json, read_json
from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.torch_weights import check_finite, from_torch, to_torch
from mhc_jax.nn.model import ModelConfig
from mhc_jax.registry import shown
from mhc_jax.tree import listed, readable

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
DIGEST = "sha256"
# The model_type of a folder whose code is the mirror, and the field of its config.json that holds the model's record.
REMOTE_CODE = "mhc"
# Before the names of all tensors, once transformers has saved such a folder.
PREFIX = "lm."

# The dtypes of safetensors that NumPy has too; causal masks stored with old weights are integers.
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


def save(directory: str | os.PathLike[str], config: ModelConfig, params: Params) -> None:
    """Writes the model into ``directory``, which appears whole or not at all; an earlier export is replaced.

    Raises:
        ConfigError: ``params`` are not those of ``config``, or ``directory`` holds anything but an export.
    """
    config.validate()
    write_folder(directory, to_torch(config, params), config.to_json(), ours=_holds_model)


def load(directory: str | os.PathLike[str]) -> tuple[ModelConfig, Params]:
    """The model that :func:`save` wrote, or one in a folder for transformers whose code is the PyTorch mirror.

    Raises:
        ConfigError: a file is missing, damaged or foreign, or the weights do not fit the configuration.
    """
    directory = Path(directory)
    for path in (directory, directory / CONFIG, directory / (INDEX if (directory / INDEX).exists() else WEIGHTS)):
        if not path.exists():
            expected = f"an exported model is a folder with {CONFIG} and {WEIGHTS}, as train.export makes of a run"
            raise InteropError(f"{path} does not exist; {expected}")
    if is_huggingface(directory):
        raise InteropError(f"{directory} is in the format of transformers; read it by interop.load_huggingface")
    config = _read_config(directory / CONFIG)
    tensors = read_weights(directory)
    if tensors and all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): x for name, x in tensors.items()}
    try:
        return config, from_torch(config, tensors)
    except InteropError as error:
        raise InteropError(f"{directory / WEIGHTS}: {error}") from None


def _read_config(path: Path) -> ModelConfig:
    try:
        record = parse_json(path.read_bytes())
        if isinstance(record, dict) and record.get("model_type") == REMOTE_CODE:
            record = record.get(REMOTE_CODE)
        config = ModelConfig.from_dict(record)
        config.validate()
    except ConfigError as error:
        raise InteropError(f"{path}: {error}") from None
    return config


def is_huggingface(directory: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a model of an architecture of transformers: ``config.json`` names another model_type."""
    try:
        config = read_json(Path(directory, CONFIG))
    except (OSError, ConfigError):
        return False
    return isinstance(config, dict) and config.get("model_type", REMOTE_CODE) != REMOTE_CODE


def read_weights(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of ``model.safetensors``, or of the shards that its index names.

    Raises:
        InteropError: there is neither, or see :func:`read_tensors`.
    """
    if (directory / WEIGHTS).exists():
        return read_tensors(directory / WEIGHTS)
    if (directory / INDEX).exists():
        return _shards(directory)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    hint = f"; {pickled[0]} is a pickle, which is never read: save the model as safetensors" if pickled else ""
    raise InteropError(f"{directory}: neither {WEIGHTS} nor {INDEX} exists{hint}")


def _shards(directory: Path) -> dict[str, np.ndarray]:
    where = read_object(directory / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise InteropError(f"{directory / INDEX}: weight_map is missing")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file:
            raise InteropError(f"{directory / INDEX}: {shown(file)} is not the name of a file beside it")
        tensors |= read_tensors(directory / file)
    lost = sorted(where.keys() - tensors.keys())
    if lost:
        others = f", nor are {len(lost) - 1} others in theirs" if lost[1:] else ""
        raise InteropError(f"{directory / INDEX}: {readable(lost[0])} is not in {where[lost[0]]}{others}")
    return tensors


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InteropError: there is none.
    """
    try:
        found = read_json(path)
    except OSError:
        raise InteropError(f"{path} does not exist") from None
    except ConfigError as error:
        raise InteropError(str(error)) from None
    if not isinstance(found, dict):
        raise InteropError(f"{path}: not a JSON object")
    return found


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        InteropError: it is missing or something else, holds values that are not finite, or its tensors are not those of
            the digest that it carries.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (it is no dict)
            if odd := [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in _DTYPES]:
                raise InteropError(f"{path}: convert the weights to bfloat16 or float32 first: {listed(odd)}")
            digest = (file.metadata() or {}).get(DIGEST)
            tensors = {name: file.get_tensor(name) for name in dtypes}
    except (SafetensorError, OSError) as error:
        raise InteropError(f"{path} is not a safetensors file, or is truncated ({error})") from None
    if digest not in (None, tensors_digest(tensors)):
        raise InteropError(f"{path} is damaged: its tensors are not those of the digest in it; export the model again")
    try:
        check_finite(tensors)
    except InteropError as error:
        raise InteropError(f"{path}: {error}") from None
    return tensors


def tensors_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and values, independent of their order in the file."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def write_folder(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    config: str,
    *,
    ours: Callable[[Path], bool],
    name: str = CONFIG,
) -> None:
    """Writes the configuration and ``model.safetensors`` into a folder that appears whole or not at all.

    Args:
        directory: new, empty, or an earlier export, which is replaced.
        tensors: the weights.
        config: the text of the configuration.
        ours: whether a folder holds an earlier export.
        name: file of the configuration.

    Raises:
        InteropError: ``directory`` holds anything else or cannot be written, or a value is not finite.
    """
    directory = Path(directory).absolute()
    _check_replaceable(directory, ours, name)
    check_finite(tensors)
    try:
        _write(directory, tensors, config, name)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InteropError(f"cannot write {directory}: {reason}; make room, or choose another folder") from None


def _write(directory: Path, tensors: Mapping[str, np.ndarray], config: str, name: str) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        save_file(dict(tensors), new / WEIGHTS, metadata={"format": "pt", DIGEST: tensors_digest(tensors)})
        (new / name).write_text(config, encoding="utf-8")
        (new / WEIGHTS).chmod((new / name).stat().st_mode)  # safetensors keeps its files to their owner
        if directory.exists():
            directory.rename(old)
        new.rename(directory)


def _check_replaceable(directory: Path, ours: Callable[[Path], bool], name: str) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InteropError(f"{directory} is a file; choose the name of a folder")
    held = {path.name for path in directory.iterdir()}
    other = sorted(held - {name, WEIGHTS})
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
