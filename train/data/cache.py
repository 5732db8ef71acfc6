"""Arrays of tokens, or of text, on disk, found again by what they were made from."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.data.errors import DataError
from train.data.files import replacing, sha256_file, sha256_json

log = logging.getLogger(__name__)

Made = tuple[dict[str, np.ndarray], dict[str, Any]]


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/mhc_jax``, or ``~/.cache/mhc_jax``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mhc_jax"


def cache_folder(cache_dir: str) -> Path:
    """The folder that ``CorpusConfig.cache_dir`` names."""
    return Path(cache_dir).expanduser() if cache_dir else default_cache_dir()


def cached_arrays(folder: Path, key: str, make: Callable[[], Made]) -> Made:
    """The arrays (as read-only memory maps) and the record filed under ``key``, made and filed first if need be.

    Every file appears whole under its name or not at all, and the manifest, with the digest of every
    array and its own, appears last; two processes may make the same entry at once. An entry that
    does not match its digests is made again.

    Args:
        folder: folder of the cache; created if necessary.
        key: key of the entry; the same key must always stand for the same arrays.
        make: gives the arrays by name, and a JSON-compatible record.

    Raises:
        DataError: the folder cannot be read or written.
    """
    manifest = folder / f"{key}.json"
    with _clear_errors(folder):
        try:
            return _load(folder, key, manifest)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("cache %s is damaged (%s) and is made again", manifest, error)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # better refused now than when the arrays are made
            pass
    arrays, record = make()
    with _clear_errors(folder):
        digests = {}
        for name, array in arrays.items():
            path = _array_path(folder, key, name)
            with replacing(path) as file:
                np.save(file, array)
            digests[name] = sha256_file(path)
        content = {"arrays": digests, "record": record}
        with replacing(manifest) as file:
            file.write(json.dumps({"sha256": sha256_json(content), "content": content}, indent=2).encode())
        return _load(folder, key, manifest)


@contextlib.contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot use the token cache {folder} ({error}); choose another: --data.cache-dir") from None


def _array_path(folder: Path, key: str, name: str) -> Path:
    return folder / f"{key}-{name}.npy"


def _load(folder: Path, key: str, manifest: Path) -> Made:
    stored = json.loads(manifest.read_bytes())
    content = stored["content"]
    if stored["sha256"] != sha256_json(content):
        raise ValueError("it does not match its own digest")
    arrays = {}
    for name, digest in content["arrays"].items():
        path = _array_path(folder, key, name)
        if sha256_file(path) != digest:
            raise ValueError(f"{path.name} does not match its digest")
        arrays[name] = np.load(path, mmap_mode="r")
    return arrays, content["record"]
