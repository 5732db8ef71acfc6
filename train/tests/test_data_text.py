"""Text out of files of every kind: the same strings whatever they lie in, and one line for what is none."""

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from train.data import DataError, load_tokenizer
from train.data import text as text_module
from train.data.text import in_pieces, kind_of, read_blocks, read_pieces

DOCUMENTS = [
    "",
    "plain",
    "\ufeffmark inside \ufeff",
    "2024-01-01",
    "a\r\nb\rc\n",
    "\x00\x1f\x85\u2028",
    "naïve 日本語 🙂",
    "3",
]


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def lines(documents, **fields):
    return "".join(json.dumps({"text": text, **fields}) + "\n" for text in documents).encode()


def write_parquet(path, documents, kind=None):
    column = pa.array(documents, kind or pa.string())
    pyarrow.parquet.write_table(pa.table({"id": range(len(documents)), "text": column}), path, row_group_size=3)


def texts(path, column="text"):
    return [piece.text for piece in read_pieces(path, column, len)]


def refused(path, *parts, column="text"):
    with pytest.raises(DataError) as caught:
        texts(path, column)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in (path.name, *parts):
        assert part in message, message


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("a.jsonl", bytes),
        ("a.json", lambda data: b"\xef\xbb\xbf" + data),
        ("a.jsonl", lambda data: data.replace(b"\n", b"\r\n\r\n ")),
        ("a.jsonl", lambda data: data.rstrip(b"\n")),
        ("a.json.gz", gzip.compress),
        ("a.jsonl.gz", lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:])),
        ("a.jsonl.zst", zstd),
        ("A.JSON.ZST", lambda data: zstd(data[:50]) + zstd(data[50:])),
    ],
)
def test_lines_of_json(name, encode, tmp_path):
    (tmp_path / name).write_bytes(encode(lines(DOCUMENTS)))
    assert texts(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(kind, tmp_path):
    write_parquet(tmp_path / "a.parquet", DOCUMENTS, kind)
    assert texts(tmp_path / "a.parquet") == DOCUMENTS


@pytest.mark.parametrize("kind", [pa.string(), pa.null(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_without_rows(kind, tmp_path):
    write_parquet(tmp_path / "a.parquet", [], kind)
    assert texts(tmp_path / "a.parquet") == []


@pytest.mark.parametrize(
    ("values", "kind", "parts"),
    [
        ([1], None, ["column 'text' holds int64, not text"]),
        ([datetime.date(2024, 1, 1)], None, ["column 'text' holds date32"]),
        ([["a"]], None, ["column 'text' holds list"]),
        ([b"a"], None, ["column 'text' holds binary"]),
        (["a", None], None, ["row 1 is None, not text"]),
        ([None], pa.null(), ["row 0 is None, not text"]),
    ],
)
def test_parquet_of_what_is_not_text(values, kind, parts, tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": pa.array(values, kind)}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", *parts)
    refused(tmp_path / "a.parquet", "no column 'body' among text", column="body")


def test_parquet_that_is_not_utf8(tmp_path):
    bad = pa.array([b"fine", b"ab\xff"], pa.binary()).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "row 1 is not UTF-8 text: byte 2")


def test_other_fields_may_be_anything(tmp_path):
    rows = [{"text": "a", "x": 1}, {"x": "2024-01-01", "text": "b"}, {"text": "c", "x": [{}], "y": None}, {"text": "d"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(tmp_path / "a.jsonl") == ["a", "b", "c", "d"]
    refused(tmp_path / "a.jsonl", "line 1 has no string in the field \"x\", only 'text', 'x'", column="x")


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_plain_text_keeps_its_line_ends_and_loses_its_mark(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK", block)
    text = "a\r\nb\rc\n\u2028 \ufeff日本語 🙂\x85 \x0c"
    encode = {"a.txt": bytes, "a.txt.gz": gzip.compress, "a.txt.zst": zstd}[name]
    for mark in ("", "\ufeff"):
        (tmp_path / name).write_bytes(encode((mark + text).encode()))
        assert "".join(read_blocks(tmp_path / name)) == text
    assert [piece.ends for piece in read_pieces(tmp_path / name, "text", lambda text: 0)] == [True]
    (tmp_path / name).write_bytes(encode(b""))
    assert texts(tmp_path / name) == [""]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"text\xff more", "is not UTF-8 text: byte 4"),
        ("日本".encode()[:-1], "is not UTF-8 text: byte 3"),
        ("日本".encode()[:-1] + b"abc", "is not UTF-8 text: byte 3"),
        (b"\xef\xbb\xbfab\xc3(", "is not UTF-8 text: byte 5"),
        ("text".encode("utf-16"), "is not UTF-8 text: byte 0"),
        (b"\xed\xa0\x80", "is not UTF-8 text: byte 0"),
        (b"text\0 more", "is binary, not text: NUL at byte 4"),
    ],
)
def test_bytes_that_are_no_text_are_found(data, fault, block, tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK", block)
    (tmp_path / "a.txt").write_bytes(data)
    refused(tmp_path / "a.txt", fault)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', ["is not UTF-8 text: line 2, byte 24"]),
        (b'{"text": "a\x01"}\n', ["line 1 is not JSON"]),
        (b"[" * 100_000 + b"\n", ["line 1 is not JSON"]),
        (b'{"text": ' + b"1" * 5000 + b"}\n", ["line 1 is not JSON"]),
        (b'\n\n["text"]\n', ['line 3 has no string in the field "text"']),
        (b'{"text": "\\ud800"}\n', ["line 1 holds half a surrogate pair"]),
        (b'{"text": null}\n', ['line 1 has no string in the field "text"']),
        ('{"text": "a"}\n'.encode("utf-16"), ["not UTF-8"]),
    ],
)
def test_lines_that_are_not_json_of_text(data, parts, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(data)
    refused(tmp_path / "a.jsonl", *parts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    refused(tmp_path / "a.jsonl.gz", *parts)


@pytest.mark.parametrize(("name", "encode"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_damaged_compression(name, encode, tmp_path):
    whole = encode(lines([str(i) * 50 for i in range(1000)]))
    for data in (whole[:-4], whole[: len(whole) // 2], b"garbage garbage", whole[:3]):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "cannot be read")


def test_files_that_cannot_be_read(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"):
        refused(tmp_path / name, "cannot be read", "No such file")
    (tmp_path / "a.parquet").write_bytes(b"")
    refused(tmp_path / "a.parquet", "cannot be read")
    refused(tmp_path / "a.csv", "expected .txt, .jsonl")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("b/a.TXT.gz", "text"),
        ("a.txt.zst", "text"),
        ("a.jsonl", "JSON"),
        ("a.json", "JSON"),
        ("c4-train.00000-of-01024.json.gz", "JSON"),
        ("a.jsonl.zst", "JSON"),
        ("train-00000-of-00001.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.csv", None),
        ("txt", None),
        (".txt", None),
        ("", None),
    ],
)
def test_kinds_of_files(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize("name", ["gpt2", "bytes", "chars: abcdefghijklmnopqrstuvwxyz\n'"])
def test_a_text_in_pieces_has_the_ids_of_the_whole(name):
    tokenizer = load_tokenizer(name)
    text = "it's   the end\n\n \n of 's lines  \n" + "word " * 20 + "\n" * 5 + "x" * 50
    (whole,) = tokenizer.encode_documents([text])
    for size in (1, 2, 3, 10, 1000):
        pieces = list(in_pieces((text[at : at + size] for at in range(0, len(text), size)), tokenizer.last_cut))
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert [i for ids in tokenizer.encode_documents([piece.text for piece in pieces]) for i in ids] == whole
        assert size > 10 or len(pieces) > 10
