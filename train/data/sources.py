"""Sources of text. Each source is a set of splits, each a stream of documents (or of lines, as in WikiText)."""

import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mhc_jax.registry import did_you_mean
from train.data import docstrings, fineweb
from train.data.cache import cache_folder
from train.data.config import CorpusConfig
from train.data.errors import DataError
from train.data.files import sha256_file, sha256_json
from train.data.hub import hub_folder
from train.data.layout import CARD, Splits, Wanted, files_under, find_splits, read_card, wanted_patterns
from train.data.text import KINDS, LastCut, Piece, in_pieces, kind_of, read_blocks, read_pieces
from train.data.tokenizer import CHARS

WIKITEXT = ("wikitext-2-v1", "wikitext-2-raw-v1", "wikitext-103-v1", "wikitext-103-raw-v1")
WIKITEXT_REPOSITORY = "Salesforce/wikitext"
NAMED = ("docstrings", fineweb.NAME, *WIKITEXT)
# OWNER/NAME, or OWNER/NAME@REVISION.
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)

Read = Callable[[LastCut], Iterator[Piece]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Text that is found but not yet read.

    Attributes:
        name: see ``CorpusConfig.source``.
        digest: SHA-256 of the bytes it is read from, and of how they are split.
        splits: each gives the documents of a split, in pieces that may be cut as its argument says (see
            :class:`train.data.tokenizer.Tokenizer`), as often as it is called.
        record: JSON-compatible: files or versions that the text comes from.
        size: bytes of the files.
    """

    name: str
    digest: str
    splits: Mapping[str, Read]
    record: dict[str, Any]
    size: int


def find_source(
    config: CorpusConfig, needed: Sequence[str] = ("train", "validation"), *, flags: str = Wanted.flags
) -> Source:
    """The source that ``config`` names, with its files found and hashed.

    Args:
        config: ``source``, ``path``, ``subset``, ``text_column``, ``validation_fraction`` and ``tokenizer`` are read.
        needed: splits it has to have; of a source that has no validation split, training documents become one.
        flags: prefix of the flags that give ``config``.

    Raises:
        DataError: there is no such source, file, folder or split, or the Hub is needed and cannot be reached.
    """
    name = config.source
    wanted = Wanted(name, config.subset, config.text_column, flags)
    if name == fineweb.NAME:
        raise DataError(f"--data.source {name} holds tokens of gpt2, not text; give --data.tokenizer gpt2")
    if name in NAMED and config.subset:
        raise wanted.fault(f"it has no subsets; leave --data.subset out, got {config.subset!r}")
    on_hub = is_hub_id(name)
    if config.path and name not in WIKITEXT and not on_hub:
        raise DataError(
            f"--data.path is for WikiText, {fineweb.NAME} and data sets of the Hub, not for --data.source {name}; "
            "give the path itself as --data.source"
        )
    if name == "docstrings":
        if config.text_column != "text":
            raise wanted.fault(f"it has no columns; leave --data.text-column out, got {config.text_column!r}")
        return _docstrings(config)
    if name in WIKITEXT:
        return _files(config, wanted, needed, _given(config.path) or _wikitext_folder(name))
    if on_hub:
        return _files(config, wanted, needed, _given(config.path) or _hub_folder(wanted))
    return _files(config, wanted, needed, local_place(wanted))


def is_hub_id(source: str) -> bool:
    """Whether ``source`` can only be a data set of the Hub: there is no such file, and it is not named like one."""
    return bool(HUB_ID.fullmatch(source)) and not Path(source).exists() and kind_of(source) is None


def local_place(wanted: Wanted) -> Path:
    """The file or folder that is wanted.

    Raises:
        DataError: there is none, or a file of a kind that cannot be read.
    """
    path = Path(wanted.source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if kind_of(path.name) is None:
            raise wanted.fault(f"expected a file of {', '.join(KINDS)}, or a folder of them")
        if wanted.subset:
            raise wanted.fault(f"a file has no subsets; leave {wanted.flags}subset out")
        return path
    if "/" in wanted.source or path.suffix:
        raise wanted.fault("no such file or folder")
    raise DataError(
        f"unknown {wanted.flags}source {wanted.source!r}{did_you_mean(wanted.source, NAMED)}; "
        f"known: {', '.join(NAMED)}, the path of a file or folder of text, or OWNER/NAME of a data set of the Hub"
    )


def splits_of(wanted: Wanted, place: Path) -> tuple[Path, Splits]:
    """The folder of a file or folder, and the names in it of the files of each split.

    Raises:
        DataError: see :func:`train.data.layout.find_splits`; or a column of what has none.
    """
    if place.is_file():
        folder, splits = place.parent, {"train": [place.name]}
    else:
        folder, splits = place, find_splits(wanted, files_under(place), read_card(place))
    check_column(wanted, splits)
    return folder, splits


def check_column(wanted: Wanted, splits: Splits) -> None:
    """Raises :class:`DataError` if a column is wanted of plain text."""
    if wanted.column != "text" and any(kind_of(name) == "text" for names in splits.values() for name in names):
        raise wanted.fault(f"plain text has no columns; leave {wanted.flags}text-column out, got {wanted.column!r}")


def held_out(keys: Iterable[bytes], fraction: float) -> np.ndarray:
    """Booleans in the order of the keys: true for keys that go to validation.

    Those whose SHA-256 are the smallest, so that it does not depend on the order, and equal keys stay together. At
    least one goes to validation and, of two or more different ones, at least one does not.

    Args:
        keys: SHA-256 of each.
    """
    digests = np.frombuffer(b"".join(keys), "V32")
    unique, places = np.unique(digests, return_inverse=True)
    count = min(math.ceil(len(unique) * fraction), max(len(unique) - 1, 1))
    return places.reshape(-1) < count


def _docstrings(config: CorpusConfig) -> Source:
    files, versions = docstrings.python_files()
    digest, fraction = _digests(files), config.validation_fraction

    @functools.cache
    def found() -> docstrings.Docstrings:
        return docstrings.cached_docstrings(files, digest, cache_folder(config.cache_dir))

    def read(validation: bool, last_cut: LastCut) -> Iterator[Piece]:
        away = held_out((hashlib.sha256(name.encode()).digest() for name in found().names), fraction)
        return map(Piece, found().of(away == validation))

    splits = {"train": functools.partial(read, False), "validation": functools.partial(read, True)}
    size = sum(path.stat().st_size for path in files.values())
    return Source("docstrings", sha256_json([digest, fraction]), splits, {"versions": versions}, size)


def _given(path: str) -> Path | None:
    """The folder that ``CorpusConfig.path`` names."""
    folder = Path(path).expanduser()
    if path and not folder.is_dir():
        raise DataError(f"--data.path {path}: no such folder")
    return folder if path else None


def _wikitext_folder(name: str) -> Path:
    advice = f"give the folder that holds its parquet files: --data.path FOLDER ({name})"
    return hub_folder(WIKITEXT_REPOSITORY, "dataset", [f"{name}/*.parquet"], advice) / name


def _hub_folder(wanted: Wanted) -> Path:
    """The local copy of a data set of the Hub: its card and all files of the subset."""
    repository, revision = hub_id(wanted.source)
    advice = hub_advice(wanted, f"give the folder of a local copy: {wanted.flags}path FOLDER")
    card = hub_folder(repository, "dataset", [CARD], advice, revision)
    patterns = [CARD, *wanted_patterns(wanted, read_card(card))]
    # As its card was read, though the data set may change meanwhile: snapshots are named by their commit.
    return hub_folder(repository, "dataset", patterns, advice, card.name)


def hub_id(source: str) -> tuple[str, str | None]:
    """Repository and revision of what :func:`is_hub_id`."""
    repository, _, revision = source.partition("@")
    return repository, revision or None


def hub_advice(wanted: Wanted, instead: str) -> str:
    """Advice for when the Hub does not provide a data set."""
    fetch = "fetch it where the Hub can be reached; HF_HUB_OFFLINE=1 then takes it from that cache at once"
    return f"nor is there a local {wanted.source}; {instead}, or {fetch}"


def _files(config: CorpusConfig, wanted: Wanted, needed: Sequence[str], place: Path) -> Source:
    folder, names = splits_of(wanted, place)
    missing = [split for split in needed if split not in names]
    if missing and (missing != ["validation"] or "train" not in names):
        raise wanted.fault(f"{place} holds no {missing[0]} split, only {' and '.join(names)}; add its files")
    paths = {split: [folder / name for name in some] for split, some in names.items()}
    splits: dict[str, Read] = {split: functools.partial(_chained, some, wanted.column) for split, some in paths.items()}
    how: Any = wanted.column
    if "validation" not in names and "train" in names:
        how = [how, config.validation_fraction]
        alone = len(paths["train"]) == 1 and kind_of(names["train"][0]) == "text"
        divided = _divided_text if alone else _divided_documents
        splits |= divided(wanted, config, paths["train"])
    files = {name: folder / name for some in names.values() for name in some}
    size = sum(path.stat().st_size for path in files.values())
    return Source(wanted.source, sha256_json([_digests(files), names, how]), splits, {"files": sorted(files)}, size)


def _chained(paths: list[Path], column: str, last_cut: LastCut) -> Iterator[Piece]:
    return itertools.chain.from_iterable(read_pieces(path, column, last_cut) for path in paths)


def _divided_documents(wanted: Wanted, config: CorpusConfig, paths: list[Path]) -> dict[str, Read]:
    """A share of the documents is for validation."""

    @functools.cache
    def away() -> np.ndarray:
        mask = held_out(_document_digests(_chained(paths, wanted.column, len)), config.validation_fraction)
        if mask.all():
            raise wanted.fault("it needs at least two different documents, to train on and to validate with")
        return mask

    def read(validation: bool, last_cut: LastCut) -> Iterator[Piece]:
        documents = iter(away())
        is_away = next(documents)
        for piece in _chained(paths, wanted.column, last_cut):
            if is_away == validation:
                yield piece
            if piece.ends:
                is_away = next(documents, None)

    return {"train": functools.partial(read, False), "validation": functools.partial(read, True)}


def _document_digests(pieces: Iterable[Piece]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.text.encode())
        if piece.ends:
            yield digest.digest()
            digest = hashlib.sha256()


def _divided_text(wanted: Wanted, config: CorpusConfig, paths: list[Path]) -> dict[str, Read]:
    """The end of the one document, from the first line that starts in it, is for validation.

    Characters may be torn from their line, and are where the original's Shakespeare is cut.
    """
    (path,) = paths

    @functools.cache
    def cut() -> int:
        length, blank = 0, True
        for block in read_blocks(path):
            length, blank = length + len(block), blank and not block.strip()
        if blank:
            raise DataError(f"{path} holds no text")
        cut = math.floor(length * (1 - config.validation_fraction))
        if config.tokenizer.partition(":")[0] != CHARS:
            cut = _last_line(read_blocks(path), cut)
        if cut == 0:
            raise DataError(f"{path} is too short to split into training and validation lines")
        return cut

    def train(last_cut: LastCut) -> Iterator[Piece]:
        return in_pieces(_between(read_blocks(path), 0, cut()), last_cut)

    def validation(last_cut: LastCut) -> Iterator[Piece]:
        return in_pieces(_between(read_blocks(path), cut(), math.inf), last_cut)

    return {"train": train, "validation": validation}


def _between(blocks: Iterable[str], start: float, stop: float) -> Iterator[str]:
    """The characters from ``start`` to ``stop`` of consecutive parts of a text."""
    at = 0
    for block in blocks:
        if at >= stop:
            return
        begin, end = (int(min(max(place - at, 0), len(block))) for place in (start, stop))
        if begin < end:
            yield block[begin:end]
        at += len(block)


def _last_line(blocks: Iterable[str], stop: int) -> int:
    """The start of the last line that starts at or before ``stop``; 0 for the first line."""
    at = found = 0
    for block in _between(blocks, 0, stop):
        if (newline := block.rfind("\n")) >= 0:
            found = at + newline + 1
        at += len(block)
    return found


def _digests(files: Mapping[str, Path]) -> str:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        try:
            # The same bytes in every locale, which may have taken a name for another one.
            total.update(f"{name}\0{sha256_file(path)}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
    return total.hexdigest()
