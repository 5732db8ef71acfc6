"""Where text comes from. Each source is a set of splits, each a list of rows (documents, or lines of WikiText)."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mhc_jax.registry import did_you_mean
from train.config import DataConfig
from train.data import docstrings, fineweb
from train.data.errors import DataError
from train.data.files import sha256_file, sha256_json
from train.data.hub import hub_folder
from train.data.tokenizer import CHARS

WIKITEXT = ("wikitext-2-v1", "wikitext-2-raw-v1", "wikitext-103-v1", "wikitext-103-raw-v1")
WIKITEXT_REPOSITORY = "Salesforce/wikitext"
NAMED = ("docstrings", fineweb.NAME, *WIKITEXT)
SPLITS = ("train", "validation", "test")
READ_ROWS = 10_000

Rows = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Text that is found but not yet read.

    Attributes:
        name: as in ``DataConfig.source``.
        digest: SHA-256 of the bytes it is read from, and of how they are split.
        read: gives the rows of each split, and a JSON-compatible record of where they come from.
    """

    name: str
    digest: str
    read: Callable[[], tuple[Rows, dict[str, Any]]]


def find_source(config: DataConfig, needed: Sequence[str] = ("train", "validation")) -> Source:
    """The source that ``config`` names, with its files found and hashed.

    Args:
        config: ``source``, ``path``, ``validation_fraction`` and ``tokenizer`` are read.
        needed: splits it has to have.

    Raises:
        DataError: there is no such source, file, folder or split, or the Hub is needed and cannot be reached.
    """
    name = config.source
    if name == fineweb.NAME:
        raise DataError(f"data.source {name} holds tokens of gpt2, not text; set data.tokenizer to gpt2")
    if config.path and name not in WIKITEXT:
        raise DataError(
            f"data.path is for WikiText and {fineweb.NAME}, not for data.source {name!r}; "
            "give the path itself as data.source"
        )
    if name == "docstrings":
        return _docstrings(config.validation_fraction)
    if name in WIKITEXT:
        return _parquet(name, _wikitext_folder(name, config.path), needed)
    path = Path(name).expanduser()
    if path.is_dir():
        return _parquet(name, path, needed)
    if path.is_file():
        if path.suffix not in _SPLITTERS:
            raise DataError(f"data.source {name}: expected a .txt or .jsonl file, or a folder of parquet files")
        return _file(path, config)
    if "/" in name or path.suffix:
        raise DataError(f"data.source {name}: no such file or folder")
    raise DataError(
        f"unknown data.source {name!r}{did_you_mean(name, NAMED)}; known: {', '.join(NAMED)}, "
        "or the path of a .txt or .jsonl file or of a folder of parquet files"
    )


def validation_keys(keys: Iterable[str], fraction: float) -> set[str]:
    """The share of ``keys`` that goes to validation: those with the smallest SHA-256, in whatever order they come.

    Equal keys stay together. At least one key goes to validation and, of two or more, at least one does not.
    """
    ranked = sorted({hashlib.sha256(key.encode()).digest(): key for key in keys}.items())
    count = min(math.ceil(len(ranked) * fraction), max(len(ranked) - 1, 1))
    return {key for _, key in ranked[:count]}


def _docstrings(fraction: float) -> Source:
    files, versions = docstrings.python_files()

    def read():
        by_file, record = docstrings.docstrings_by_file(files)
        held_out = validation_keys(by_file, fraction)
        rows: Rows = {"train": [], "validation": []}
        for name, texts in by_file.items():
            rows["validation" if name in held_out else "train"] += texts
        return rows, {"versions": versions, **record}

    return Source("docstrings", sha256_json([_digest(files), fraction]), read)


def _wikitext_folder(name: str, path: str) -> Path:
    if path:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.path {path}: no such folder")
        return folder
    advice = f"give the folder that holds its parquet files: --data.path FOLDER ({name})"
    return hub_folder(WIKITEXT_REPOSITORY, "dataset", [f"{name}/*.parquet"], advice) / name


def _parquet(name: str, folder: Path, needed: Sequence[str]) -> Source:
    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in SPLITS}
    for split in needed:
        if not files[split]:
            raise DataError(f"data.source {name}: {folder} holds no {split}-*.parquet; add the {split} split's files")

    def read():
        rows = {split: _parquet_rows(found) for split, found in files.items() if found}
        return rows, {"files": [path.name for found in files.values() for path in found]}

    return Source(name, _digest({path.name: path for found in files.values() for path in found}), read)


def _parquet_rows(files: list[Path]) -> list[str]:
    import datasets
    import pyarrow

    rows: list[str] = []
    for file in files:
        try:
            table = datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True)
            for part in table.with_format("arrow").iter(batch_size=READ_ROWS):
                if "text" not in part.column_names:
                    raise DataError(f"{file}: no column 'text' among {', '.join(part.column_names)}")
                rows += part["text"].to_pylist()
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is not a parquet file that can be read ({str(error).splitlines()[0]})") from None
    for index, row in enumerate(rows):
        if not isinstance(row, str):
            raise DataError(f"{files[0].parent}: row {index} of {files[0].name.split('-')[0]} is {row!r}, not text")
    return rows


def _file(path: Path, config: DataConfig) -> Source:
    split = _SPLITTERS[path.suffix]

    def read():
        return split(path, _text(path), config), {"files": [path.name]}

    digest = sha256_json([_digest({path.name: path}), config.validation_fraction])
    return Source(config.source, digest, read)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} ({error.reason})") from None
    if (nul := data.find(b"\0")) >= 0:
        raise DataError(f"{path} is binary, not text: NUL at byte {nul}")
    if not text.strip():
        raise DataError(f"{path} holds no text")
    return text.removeprefix("\ufeff")


def _split_text(path: Path, text: str, config: DataConfig) -> Rows:
    """One document: its end, from the first line that starts in it, is for validation.

    Characters may be torn from their line, and are where the original's Shakespeare is cut.
    """
    cut = math.floor(len(text) * (1 - config.validation_fraction))
    if config.tokenizer.partition(":")[0] != CHARS:
        cut = text.rfind("\n", 0, cut) + 1
    if cut == 0:
        raise DataError(f"{path} is too short to split into training and validation lines")
    return {"train": [text[:cut]], "validation": [text[cut:]]}


def _split_jsonl(path: Path, text: str, config: DataConfig) -> Rows:
    """One document a line, in the field ``text``; blank lines are skipped."""
    documents = []
    # Not splitlines(), which also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error})") from None
        document = record.get("text") if isinstance(record, dict) else None
        if not isinstance(document, str):
            raise DataError(f'{path}: line {number} has no string in the field "text"')
        try:
            document.encode()
        except UnicodeEncodeError:
            raise DataError(f"{path}: line {number} holds half a surrogate pair, which is not text") from None
        documents.append(document)
    held_out = validation_keys(documents, config.validation_fraction)
    rows = {
        "train": [document for document in documents if document not in held_out],
        "validation": [document for document in documents if document in held_out],
    }
    if not rows["train"]:
        raise DataError(f"{path}: needs at least two different documents, to train on and to validate with")
    return rows


_SPLITTERS: dict[str, Callable[[Path, str, DataConfig], Rows]] = {".txt": _split_text, ".jsonl": _split_jsonl}


def _digest(files: dict[str, Path]) -> str:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        try:
            total.update(f"{name}\0{sha256_file(path)}\n".encode())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
    return total.hexdigest()
