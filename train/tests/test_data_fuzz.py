"""Anything as a document, a file or a tokenizer: the same tokens by every way, or one line that says what is wrong."""

import copy
import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from train import prepare_fineweb
from train.data import DataError, load_corpus, load_tokenizer
from train.data.config import CorpusConfig
from train.data.shards import read_shard
from train.data.text import read_pieces
from train.tests.test_data_tokenizer import word_tokenizer

fuzzed = settings(derandomize=True, deadline=None, database=None)

PARTS = [
    "<|endoftext|>",
    "</s>",
    "\ufeff",
    "\r",
    "\n",
    "\r\n",
    "\x00",
    "\x1a",
    "\u2028",
    "\x85",
    " ",
    "\t",
    "🙂",
    "é",
    "2024-01-01",
]
characters = st.characters(exclude_categories=["Cs"])
texts = st.lists(st.sampled_from(PARTS) | st.text(characters, max_size=4), max_size=6).map("".join)


def one_line(call, *arguments):
    """What the call gives, or None where it refuses in one line."""
    try:
        return call(*arguments)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        return None


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@given(text=texts)
@settings(fuzzed, max_examples=200)
def test_decoding_inverts_encoding(name, text):
    tokenizer = load_cached(name)
    (ids,) = tokenizer.encode_documents([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id not in ids
    assert tokenizer.prefix_bytes(text, len(ids)) == len(text.encode())
    assert "".join(read_back(text, tokenizer)) == text


load_cached = functools.cache(load_tokenizer)


@pytest.fixture(scope="module")
def quick_tokenizers():
    """GPT-2's is loaded once, not for every example."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepare_fineweb, "load_tokenizer", load_cached)
        patched.setattr("train.data.corpus.load_tokenizer", load_cached)
        yield


def read_back(text, tokenizer):
    """``text`` cut where the tokenizer says so; the ids of the parts are those of the whole."""
    cut = tokenizer.last_cut(text)
    parts = [text[:cut], text[cut:]]
    ids = [i for row in tokenizer.encode_documents(parts) for i in row]
    assert ids == tokenizer.encode_documents([text])[0]
    return parts


def write(folder, documents):
    """The documents as a file and as folders of every kind; their sources by name."""
    rows = [json.dumps({"text": text, "n": i}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(documents)]
    half = len(rows) // 2
    for name in ("lines", "zipped", "parquet"):
        (folder / name).mkdir(parents=True)
    (folder / "lines.jsonl").write_text("".join(rows), encoding="utf-8", newline="")
    for i, part in enumerate((rows[:half], rows[half:])):
        (folder / "lines" / f"{i}.json").write_text("".join(part), encoding="utf-8", newline="")
        (folder / "zipped" / f"{i}.jsonl.gz").write_bytes(gzip.compress("".join(part).encode()))
    for i, part in enumerate((documents[:half], [], documents[half:])):
        table = pa.table({"text": pa.array(part, pa.string())})
        pyarrow.parquet.write_table(table, folder / "parquet" / f"{i}.parquet")
    return [folder / name for name in ("lines.jsonl", "lines", "zipped", "parquet")]


@given(documents=st.lists(texts, min_size=1, max_size=6))
@example(documents=["a", "b"])
@example(documents=["", "a<|endoftext|>b"] * 3)
@settings(fuzzed, max_examples=12)
def test_every_way_gives_the_same_tokens(documents, quick_tokenizers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    tokenizer = load_cached("gpt2")
    expected = [token for row in tokenizer.encode_documents(documents) for token in (tokenizer.eos_id, *row)]
    found = []
    for source in write(folder, documents):
        config = CorpusConfig(
            source=str(source), validation_fraction=0.5, cache_dir=str(folder / "cache" / source.name)
        )
        corpus = one_line(load_corpus, config)
        if corpus is not None:
            assert corpus.train_bytes + corpus.validation_bytes == len("".join(documents).encode())
            found.append([corpus.train.tolist(), corpus.validation.tolist()])
        else:
            # Nothing to divide, or a split of blank documents.
            assert len(set(documents)) == 1 or "" in documents
            found.append(None)
        out = folder / "shards" / source.name
        flags = prepare_fineweb.Flags(str(out), str(source), val_tokens=1, shard_tokens=4)
        if len(expected) > 1:
            prepare_fineweb.prepare(flags)
            shards = [out / "fineweb_val_000000.bin", *sorted(out.glob("fineweb_train_*.bin"))]
            assert np.concatenate([read_shard(path) for path in shards]).tolist() == expected
    assert found == found[:1] * 4


@given(text=texts)
@settings(fuzzed, max_examples=40)
def test_plain_text_by_every_way(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    (folder / "texts").mkdir()
    for path in (folder / "text.txt", folder / "texts" / "text.txt"):
        path.write_text(text, encoding="utf-8", newline="")
    found = []
    for source in (folder / "text.txt", folder / "texts"):
        corpus = one_line(load_corpus, CorpusConfig(str(source), tokenizer="bytes", cache_dir=str(folder / "cache")))
        found.append(corpus and [corpus.train.tolist(), corpus.validation.tolist()])
        if corpus is not None:
            whole = corpus.tokenizer.decode([*corpus.train.tolist(), *corpus.validation.tolist()])
            assert whole == text.removeprefix("\ufeff")
    assert found[0] == found[1]
    pieces = one_line(lambda: list(read_pieces(folder / "text.txt", "text", len)))
    assert (pieces is None) == ("\x00" in text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "id", ""]), inner, max_size=2),
    max_leaves=4,
)
NAMES = ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.zst"]


@pytest.mark.slow
@given(
    name=st.sampled_from(NAMES), rows=st.lists(JSON, max_size=3), junk=st.binary(max_size=8), place=st.integers(0, 200)
)
@settings(fuzzed, max_examples=300)
def test_any_bytes_are_text_or_one_line(name, rows, junk, place, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    data = "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    if name.endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pa.table({"text": ["a", "b"]}), folder / name)
        data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:place] + junk + data[place + len(junk) :])
    found = one_line(lambda: list(read_pieces(folder / name, "text", len)))
    assert found is None or all(isinstance(piece.text, str) and piece.text.encode() is not None for piece in found)


def tokenizer_of(kind):
    if kind == "words":
        return json.loads(word_tokenizer().to_str())
    return {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "</s>", "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"</s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
    }  # fmt: skip


def places_in(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


@pytest.mark.slow
@given(kind=st.sampled_from(["words", "bpe"]), data=st.data(), text=texts)
@settings(fuzzed, max_examples=300)
def test_any_tokenizer_file_is_one_or_one_line(kind, data, text, tmp_path_factory):
    content = copy.deepcopy(tokenizer_of(kind))
    place = data.draw(st.sampled_from(sorted(places_in(content), key=repr)))
    change = data.draw(JSON | st.sampled_from([-1, 2**31, 2**32, 2_000_000_000, "</s>", "ab", {"type": "Unigram"}]))
    if place:
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = change
    else:
        content = change
    file = Path(tmp_path_factory.getbasetemp()) / "tokenizer.json"
    file.write_text(json.dumps(content))
    tokenizer = one_line(load_tokenizer, str(file))
    if tokenizer is None:
        return
    assert tokenizer.vocab_size < 5000
    rows = one_line(tokenizer.encode_documents, [text, "ab a b"])
    if rows is not None:
        assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for row in rows for i in row)
        assert isinstance(tokenizer.decode(rows[0]), str)
        for count in range(len(rows[0]) + 1):
            assert 0 <= tokenizer.prefix_bytes(text, count) <= len(text.encode())
