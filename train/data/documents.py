"""Documents one after another, from files or from the Hub, and their tokens from any point on."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.data.errors import DataError
from train.data.files import sha256_file
from train.data.hub import hub_revision
from train.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import IterableDataset

BATCH = 1000

# How `datasets` reads files of each kind.
_KINDS = {".jsonl": ("json", {}), ".parquet": ("parquet", {}), ".txt": ("text", {"sample_by": "document"})}


@dataclasses.dataclass(frozen=True)
class Documents:
    """Text that is found but not yet read.

    Attributes:
        name: what a person calls it.
        origin: JSON-compatible; the same origin always means the same documents in the same order.
        open: gives them as a stream of rows with a field ``text``.
    """

    name: str
    origin: dict[str, Any]
    open: Callable[[], "IterableDataset"]


def find_documents(source: str, subset: str, known_origin: dict[str, Any] | None = None) -> Documents:
    """The documents of a file, of a folder of files in the order of their names, or of a data set of the Hub.

    Args:
        source: path of a .jsonl or .parquet file with a field ``text``, of a .txt file, which is one document, or of
            a folder that holds files of one of these kinds; or the name of a data set.
        subset: of the data set; files have none.
        known_origin: of the same source when it was read before: a data set is read as it was then.

    Raises:
        DataError: no such file, folder or data set, or nothing in it that can be read.
    """
    path = Path(source).expanduser()
    if path.exists():
        return _local(source, sorted(path.iterdir()) if path.is_dir() else [path])
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or path.suffix in _KINDS:
        raise DataError(f"{source}: no such file or folder")
    return _hub(source, subset, (known_origin or {}).get("revision"))


def token_batches(
    documents: Documents, tokenizer: Tokenizer, state: dict[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any] | None, np.ndarray]]:
    """The tokens of some documents at a time, each document after an end token.

    Args:
        documents: what to read.
        tokenizer: of fewer than 65,536 ids.
        state: where to start; None for the beginning.

    Yields:
        The state before these documents, JSON-compatible, and their tokens: uint16, 1-D.

    Raises:
        DataError: they cannot be read, or one has no text.
    """
    with _one_line_faults(documents.name):
        stream = documents.open()
        if state is not None:
            stream.load_state_dict(state)
        rows = iter(stream)
        while texts := [_text(row) for row in itertools.islice(rows, BATCH)]:
            ids = itertools.chain.from_iterable((tokenizer.eos_id, *row) for row in tokenizer.encode_documents(texts))
            yield state, np.fromiter(ids, np.uint16)
            state = stream.state_dict()


def _local(source: str, files: list[Path]) -> Documents:
    files = [file for file in files if file.suffix in _KINDS]
    kinds = sorted({file.suffix for file in files})
    if len(kinds) != 1:
        raise DataError(f"{source}: expected {' or '.join(_KINDS)} files, found {' and '.join(kinds) or 'none'}")
    builder, options = _KINDS[kinds[0]]

    def load():
        return _stream(builder, data_files=[str(file) for file in files], **options)

    return Documents(source, {"files": {file.name: sha256_file(file) for file in files}}, load)


def _hub(source: str, subset: str, revision: str | None) -> Documents:
    advice = "give local files instead: --source FILE_OR_FOLDER"
    revision = revision or hub_revision(source, "dataset", advice)

    def load():
        return _stream(source, name=subset or None, revision=revision)

    return Documents(source, {"data set": source, "subset": subset, "revision": revision}, load)


def _stream(path: str, **options: Any) -> "IterableDataset":
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs it also raises
    return datasets.load_dataset(path, split="train", streaming=True, **options)


def _text(row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(f"a document has no string in the field 'text' but is {str(row)[:80]}")
    return text


@contextlib.contextmanager
def _one_line_faults(name: str) -> Iterator[None]:
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, pyarrow.ArrowInvalid, OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {str(error).strip().splitlines()[0]}") from None
