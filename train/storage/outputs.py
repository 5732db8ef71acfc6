"""Checks of output paths before the work, so that obstacles are found early; and reports that every program reads."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError


def check_file(flag: str, path: str | Path) -> Path:
    """The path of a file that can be written, its folder still to be made if need be. Nothing is left on disk.

    Raises:
        ConfigError: it cannot; the line names ``flag``.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise ConfigError(f"{flag} {path} is a folder; name a file in it")
        if path.exists():
            path.open("ab").close()
        else:
            _check_holds_files(path.parent)
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written ({error.strerror}); choose another {flag}") from None
    return path


def check_folder(flag: str, path: str | Path, new: Iterable[str] = ()) -> Path:
    """The path of a folder that files can be written to, still to be made if need be. Nothing is left on disk.

    Args:
        new: names of files that it must not hold yet.

    Raises:
        ConfigError: they cannot, or it holds one; the line names ``flag``.
    """
    path = Path(path).expanduser()
    try:
        _check_holds_files(path)
        taken = [name for name in new if (path / name).exists()]
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written to ({error.strerror}); choose another {flag}") from None
    if taken:
        raise ConfigError(f"{flag} {path} already holds {' and '.join(taken)}; choose another folder")
    return path


def json_text(report: Any, indent: int | None = 1) -> str:
    """JSON as its standard has it, in which a number that is not finite is null; a line if ``indent`` is None."""
    return json.dumps(_finite(report), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_holds_files(folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
