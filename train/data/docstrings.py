"""The embedded corpus: prose that every installation already holds.

The docstrings of the standard library and of some of the project's own dependencies, read with
`ast`; nothing is imported or run. Two machines with the same versions have the same corpus.

`transformers` is left out on purpose: half of its docstrings repeat the other half, and parsing it
takes as long as all the rest.
"""

import ast
import contextlib
import dataclasses
import gc
import hashlib
import importlib.metadata
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.data.cache import cached_arrays
from train.data.errors import DataError
from train.data.files import sha256_json
from train.terminal.console import task

# Changes whenever the same files would give other docstrings.
READING_VERSION = 1

PACKAGES = (
    "datasets",
    "flax",
    "grain",
    "jax",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "rich",
    "safetensors",
    "scipy",
    "tokenizers",
    "tyro",
)
STATEMENT_FIELDS = ("body", "handlers", "cases", "orelse", "finalbody")
# Not every distributor of Python and of these packages ships them.
LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "site-packages", "dist-packages"})


def python_files() -> tuple[dict[str, Path], dict[str, str]]:
    """Python files of the corpus by a name that is the same on every machine, sorted, and versions by package.

    Raises:
        DataError: a package is not installed, or does not list its files.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = {
        f"python/{path.relative_to(library).as_posix()}": path
        for path in library.rglob("*.py")
        if path.relative_to(library).parts[0].removesuffix(".py") in sys.stdlib_module_names
        and LEFT_OUT.isdisjoint(path.relative_to(library).parts)
    }
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            raise DataError(f"the docstring corpus needs {package}: pip install {package}") from None
        files = [
            file
            for file in distribution.files or ()
            if file.suffix == ".py" and ".." not in file.parts and LEFT_OUT.isdisjoint(file.parts)
        ]
        if not files:
            raise DataError(f"the docstring corpus: {package} does not list its files; reinstall it with pip")
        found.update({f"{package}/{file.as_posix()}": Path(str(file.locate())) for file in files})
        versions[package] = distribution.version
    return dict(sorted(found.items())), versions


def docstrings_of(source: bytes) -> Iterator[str]:
    """The docstrings of one Python file in the order of its lines, with their indentation removed.

    Raises:
        SyntaxError, ValueError: ``source`` is not a file of this version of Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                # Escapes in a docstring may name half a surrogate pair, which no UTF-8 text can hold.
                yield text.encode(errors="replace").decode()
        # Definitions are statements, so expressions, most of the tree, need no visit.
        inner = [child for field in STATEMENT_FIELDS for child in getattr(node, field, ())]
        waiting.extend(reversed(inner))


@dataclasses.dataclass(frozen=True)
class Docstrings:
    """All docstrings of a corpus, in order.

    Attributes:
        names: names of the files with docstrings.
        counts: number of docstrings in each file, int64.
        ends: end of each docstring in ``text``, int64.
        text: UTF-8, uint8.
    """

    names: list[str]
    counts: np.ndarray
    ends: np.ndarray
    text: np.ndarray

    def of(self, chosen: np.ndarray) -> Iterator[str]:
        """The docstrings of the chosen files: bool, one for each name."""
        (places,) = np.nonzero(np.repeat(chosen, self.counts))
        for place in places:
            start = self.ends[place - 1] if place else 0
            yield self.text[start : self.ends[place]].tobytes().decode()


def cached_docstrings(files: dict[str, Path], digest: str, folder: Path) -> Docstrings:
    """The docstrings of ``files``, out of the cache in ``folder`` if it holds them.

    Args:
        digest: SHA-256 of the names and contents of ``files``.
    """

    def make():
        found = docstrings_by_file(files)[0]
        texts = [text.encode() for some in found.values() for text in some]
        arrays = {
            "counts": np.array([len(some) for some in found.values()], np.int64),
            "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
            "text": np.frombuffer(b"".join(texts), np.uint8),
        }
        return arrays, {"files": list(found)}

    # What of a file can be parsed, and how a docstring's indentation is removed, is up to the version of Python.
    key = sha256_json(["docstrings", READING_VERSION, platform.python_version(), digest])
    arrays, record = cached_arrays(folder, key, make)
    return Docstrings(record["files"], **arrays)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Syntax trees are many objects and no cycle: looking for one takes as long as parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def docstrings_by_file(files: dict[str, Path]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Docstrings by file, in order, each text only where it comes first; and a record of what was read."""
    seen: set[bytes] = set()
    found: dict[str, list[str]] = {}
    unreadable = []
    with _no_collection(), task("reading the docstrings of files", len(files), quiet=True) as work:
        for name, path in work.over(files.items()):
            try:
                texts = list(docstrings_of(path.read_bytes()))
            except (SyntaxError, ValueError):
                unreadable.append(name)
                continue
            fresh = []
            for text in texts:
                digest = hashlib.sha256(text.encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    fresh.append(text)
            if fresh:
                found[name] = fresh
    record = {"files": len(found), "docstrings": len(seen), "unreadable": unreadable}
    return found, record
