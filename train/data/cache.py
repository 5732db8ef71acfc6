"""Token arrays on disk, found again by what they were made from."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from train.data.errors import DataError

log = logging.getLogger(__name__)

Made = tuple[dict[str, np.ndarray], dict[str, Any]]


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/mhc_jax``, or ``~/.cache/mhc_jax``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mhc_jax"


def cached_arrays(folder: Path, key: str, make: Callable[[], Made]) -> Made:
    """The arrays (as read-only memory maps) and the record filed under ``key``, made and filed first if need be.

    Every file appears whole under its name or not at all, and the manifest, with the digest of every
    array, appears last; two processes may make the same entry at once. An entry that does not match
    its manifest is made again.

    Args:
        folder: of the cache; created if need be.
        key: of the entry; the same key must always stand for the same arrays.
        make: gives the arrays by name, and a JSON-compatible record.

    Raises:
        DataError: the folder cannot be written.
    """
    manifest = folder / f"{key}.json"
    try:
        return _load(folder, key, manifest)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        log.warning("token cache %s is damaged (%s) and is made again", manifest, error)
    arrays, record = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = {}
        for name, array in arrays.items():
            path = _array_path(folder, key, name)
            with _replacing(path) as file:
                np.save(file, array)
            digests[name] = _digest(path)
        with _replacing(manifest) as file:
            file.write(json.dumps({"arrays": digests, "record": record}, indent=2).encode() + b"\n")
    except OSError as error:
        raise DataError(f"cannot write the token cache {folder} ({error}); choose another: --data.cache_dir") from None
    return _load(folder, key, manifest)


def _array_path(folder: Path, key: str, name: str) -> Path:
    return folder / f"{key}-{name}.npy"


def _load(folder: Path, key: str, manifest: Path) -> Made:
    stored = json.loads(manifest.read_bytes())
    arrays = {}
    for name, digest in stored["arrays"].items():
        path = _array_path(folder, key, name)
        if _digest(path) != digest:
            raise ValueError(f"{path.name} does not match its digest")
        arrays[name] = np.load(path, mmap_mode="r")
    return arrays, stored["record"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` when the block ends, and is removed if it fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
