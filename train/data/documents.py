"""Streams of documents, from files or from the Hub, and of their tokens from any point on."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data.files import sha256_file
from train.data.hub import hub_file, hub_folder, hub_names, hub_revision
from train.data.layout import CARD, Splits, Wanted, find_splits, read_card
from train.data.sources import check_column, hub_advice, hub_id, is_hub_id, local_place, splits_of
from train.data.text import LastCut, encoded_pieces, read_pieces
from train.data.tokenizer import Tokenizer

INSTEAD = "give local files instead: --source FILE_OR_FOLDER"


# Where to begin: so many files read whole, and so many pieces of the next one.
Place = dict[str, int]
BEGINNING: Place = {"file": 0, "piece": 0}


@dataclasses.dataclass(frozen=True)
class Documents:
    """Text that is found but not yet read.

    Attributes:
        name: name used in messages.
        origin: JSON-compatible; the same origin always means the same documents in the same order.
        files: names, and what gives each file's path, having downloaded it if need be.
        column: field that holds the text.
    """

    name: str
    origin: dict[str, Any]
    files: list[tuple[str, Callable[[], Path]]]
    column: str


def find_documents(wanted: Wanted, known_origin: dict[str, Any] | None = None) -> Documents:
    """The training documents of a file, of a folder, or of a data set of the Hub, in the order of their files' names.

    Args:
        wanted: the request.
        known_origin: of the same source when it was read before: a data set is read as it was then.

    Raises:
        DataError: no such file, folder or data set, or nothing in it that can be read.
    """
    if is_hub_id(wanted.source):
        known = known_origin if known_origin and known_origin.get("data set") == wanted.source else {}
        return _hub(wanted, known.get("revision"))
    folder, splits = splits_of(wanted, local_place(wanted))
    paths = {name: folder / name for name in _training(wanted, splits)}
    origin = {"files": {name: sha256_file(path) for name, path in paths.items()}, **_column(wanted)}
    files = [(name, functools.partial(Path, path)) for name, path in paths.items()]
    return Documents(wanted.source, origin, files, wanted.column)


def token_pieces(
    documents: Documents, tokenizer: Tokenizer, start: Place = BEGINNING
) -> Iterator[tuple[Place, np.ndarray]]:
    """The tokens of one piece of a document after the other, the first piece of each after an end token.

    Args:
        documents: documents to read.
        tokenizer: tokenizer with fewer than 65,536 ids.
        start: the place of the first piece.

    Yields:
        The place of a piece, and its tokens: uint16, 1-D.

    Raises:
        DataError: they cannot be read, or one has no text.
    """
    for piece, ids in encoded_pieces(_placed(documents, tokenizer.last_cut, start), tokenizer):
        tokens = [tokenizer.eos_id, *ids] if piece.begins else ids
        yield {"file": piece.file, "piece": piece.number}, np.array(tokens, np.uint16)


class _Placed(NamedTuple):
    """A piece, whether a document begins with it, and its place."""

    text: str
    begins: bool
    file: int
    number: int


def _placed(documents: Documents, last_cut: LastCut, start: Place) -> Iterator[_Placed]:
    for file, (name, path) in enumerate(documents.files):
        if file < start["file"]:
            continue
        skipped = start["piece"] if file == start["file"] else 0
        begins = True
        for number, piece in enumerate(read_pieces(path(), documents.column, last_cut, name=name)):
            if number >= skipped:
                yield _Placed(piece.text, begins, file, number)
            begins = piece.ends


def _hub(wanted: Wanted, known_revision: str | None) -> Documents:
    advice = hub_advice(wanted, INSTEAD)
    repository, branch = hub_id(wanted.source)
    revision = known_revision or hub_revision(repository, "dataset", advice, branch)
    card = read_card(hub_folder(repository, "dataset", [CARD], advice, revision))
    splits = find_splits(wanted, hub_names(repository, "dataset", advice, revision), card)
    check_column(wanted, splits)
    files = [
        (name, functools.partial(hub_file, repository, "dataset", name, advice, revision))
        for name in _training(wanted, splits)
    ]
    origin = {"data set": wanted.source, "subset": wanted.subset, "revision": revision, **_column(wanted)}
    return Documents(wanted.source, origin, files, wanted.column)


def _training(wanted: Wanted, splits: Splits) -> list[str]:
    if "train" not in splits:
        raise wanted.fault(f"it holds no train split, only {' and '.join(splits)}")
    return splits["train"]


def _column(wanted: Wanted) -> dict[str, str]:
    """The entry for the column in the record of an origin; none for the usual column, as in older records."""
    return {} if wanted.column == "text" else {"column": wanted.column}
