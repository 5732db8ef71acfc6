"""Text from files, always as strings and never converted to other types: plain text, JSON lines, parquet.

A document comes in one piece, but for plain text, whose pieces are of bounded size where the tokenizer allows that.
"""

import codecs
import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from train.data.errors import DataError
from train.data.machine import machine_memory
from train.data.tokenizer import Tokenizer

BLOCK = 1 << 20
BATCH_ROWS = 1000
# Memory that the tokenizers library needs for each character that it encodes at once.
ENCODING_BYTES = 100
BATCH_PIECES = 4096
BATCH_CHARACTERS = 1 << 22
OTHER = "another may be named with text-column"
BYTE_ORDER_MARK = "\ufeff"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = {".txt": "text", ".jsonl": "JSON", ".json": "JSON", ".parquet": "parquet"}
READABLE = ".txt, .jsonl or .json (one object a line; also .gz, .zst) or .parquet"


class Piece(NamedTuple):
    """Text of a document, and whether the document ends behind it."""

    text: str
    ends: bool = True


# Length of text that is encoded independently of the rest, see Tokenizer.last_cut.
LastCut = Callable[[str], int]


def kind_of(name: str) -> str | None:
    """``"text"``, ``"JSON"`` or ``"parquet"`` by the ends of a file's name; None for what cannot be read."""
    suffixes = PurePosixPath(name.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return KINDS.get(suffixes[-1]) if suffixes else None


def encoded_pieces(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[tuple[Piece, list[int]]]:
    """Each piece and its ids, encoded so many at a time that the tokenizer's threads have enough to do."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if len(batch) == BATCH_PIECES or size >= BATCH_CHARACTERS:
            yield from zip(batch, tokenizer.encode_documents([piece.text for piece in batch]))
            batch, size = [], 0
    yield from zip(batch, tokenizer.encode_documents([piece.text for piece in batch]))


def read_pieces(path: Path, column: str, last_cut: LastCut, *, name: str = "") -> Iterator[Piece]:
    """The documents of one file in order.

    Args:
        path: path of the file.
        column: field of a JSON object, or column, that holds the text; a plain text is one document.
        last_cut: see :class:`train.data.tokenizer.Tokenizer`; decides the pieces of a plain text.
        name: name of the file, if its path does not end in it.

    Raises:
        DataError: the file cannot be read, or holds what is not UTF-8 or not text. It names the place.
    """
    kind = kind_of(name or path.name)
    if kind == "text":
        yield from in_pieces(read_blocks(path), last_cut)
    elif kind == "JSON":
        yield from (Piece(string_field(found, column, where)) for where, found in json_objects(path))
    elif kind == "parquet":
        yield from map(Piece, _parquet_rows(path, column))
    else:
        raise DataError(f"{path} cannot be read; expected {READABLE}")


def in_pieces(blocks: Iterable[str], last_cut: LastCut) -> Iterator[Piece]:
    """One document out of its consecutive parts, cut again where the tokenizer allows it.

    Raises:
        DataError: it allows no cut, and this machine's memory does not hold what encoding the whole takes.
    """
    held = ""
    for block in blocks:
        held += block
        if cut := last_cut(held):
            yield Piece(held[:cut], ends=False)
            held = held[cut:]
        elif len(held) * ENCODING_BYTES > machine_memory():
            raise DataError(
                f"a plain text of more than {len(held) / 1e6:,.0f} million characters is too large to be encoded as a "
                "whole, and it is not known where this tokenizer allows a cut; give documents (.jsonl, .parquet), or "
                "another tokenizer"
            )
    yield Piece(held)


def read_blocks(path: Path) -> Iterator[str]:
    """A plain text in parts of bounded size, without a byte-order mark, line ends as they are.

    Raises:
        DataError: it cannot be read, is not UTF-8, or holds NUL and so is no text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, begun = 0, False
    with _opened(path) as file:
        while True:
            data = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = offset - pending + error.start
                raise DataError(f"{path} is not UTF-8 text: byte {place} ({error.reason})") from None
            if (nul := data.find(b"\0")) >= 0:
                raise DataError(f"{path} is binary, not text: NUL at byte {offset + nul}")
            if text:
                yield text if begun else text.removeprefix(BYTE_ORDER_MARK)
                begun = True
            if not data:
                return
            offset += len(data)


def json_objects(path: Path) -> Iterator[tuple[str, Any]]:
    """The value on each line that is not blank, after the name of its place.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 or not JSON.
    """
    offset = 0
    with _opened(path) as file:
        # Lines of bytes, for JSON strings may hold characters that end a line of text.
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                place = f"line {number}, byte {offset + error.start}"
                raise DataError(f"{path} is not UTF-8 text: {place} ({error.reason})") from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix(BYTE_ORDER_MARK)
            if not text.strip():
                continue
            where = f"{path}: line {number}"
            try:
                yield where, json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({error})") from None


def string_field(record: Any, column: str, where: str, advice: str = OTHER) -> str:
    """The text in a field of a JSON object.

    Raises:
        DataError: there is none.
    """
    text = record.get(column) if isinstance(record, dict) else None
    if not isinstance(text, str):
        found = f", only {', '.join(map(repr, record))[:200]}; {advice}" if isinstance(record, dict) else ""
        raise DataError(f'{where} has no string in the field "{column}"{found}')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} holds half a surrogate pair, which is not text") from None
    return text


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet

    with _one_line_faults(path), pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if names.count(column) != 1:
            raise DataError(f"{path}: no column {column!r} among {', '.join(names)[:200]}; {OTHER}")
        found, row = file.schema_arrow.field(column).type, 0
        if not _holds_text(found):
            raise DataError(f"{path}: column {column!r} holds {found}, not text")
        for part in file.iter_batches(BATCH_ROWS, columns=[column]):
            for value in part.column(column):
                yield _text_of(value, f"{path}: row {row}")
                row += 1


def _holds_text(found) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(found):
        found = found.value_type
    # A file without rows may not know what they would hold.
    return any(
        is_kind(found) for is_kind in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    )


def _text_of(value, where: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: byte {error.start} ({error.reason})") from None
    if not isinstance(text, str):
        raise DataError(f"{where} is {text!r}, not text")
    return text


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if the end of its name says so."""
    codec = COMPRESSIONS.get(path.suffix.lower())
    with _one_line_faults(path):
        if codec is None:
            file = path.open("rb")
        else:
            import pyarrow

            file = io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), codec), BLOCK)
        with file:
            yield file


@contextlib.contextmanager
def _one_line_faults(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except DataError:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise DataError(f"{path} cannot be read ({reason})") from None
