import hashlib
import json
from pathlib import Path

import datasets
import pytest

from train.data import DataError, docstrings, load_corpus, sources
from train.data.config import CorpusConfig
from train.data.sources import WIKITEXT, find_source, held_out
from train.terminal import console
from train.tests.corpora import cache_files, flip_a_byte, truncate


def write_parquet(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        datasets.Dataset.from_dict({"text": rows}).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def documents(source):
    """The documents of each split, put together from their pieces, which must not depend on how they are cut."""
    found = {}
    for last_cut in (len, lambda text: 0, lambda text: len(text) // 2):
        whole = {}
        for split, pieces in source.splits.items():
            text, whole[split] = "", []
            for piece in pieces(last_cut):
                text += piece.text
                if piece.ends:
                    whole[split].append(text)
                    text = ""
            assert text == ""
        assert found in ({}, whole)
        found = whole
    return found


def read(source, **config):
    return documents(find_source(CorpusConfig(str(source), **config)))


def refused(*parts, **config):
    with pytest.raises(DataError) as caught:
        documents(find_source(CorpusConfig(**{name: str(value) for name, value in config.items()})))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_parquet_folder_by_path_and_by_name(tmp_path):
    rows = {"train": ["", " = Title = \n", " text \n"], "validation": [" more \n"], "test": [" last \n"]}
    folder = write_parquet(tmp_path / "wikitext", **rows)
    assert read(folder) == rows
    for name in WIKITEXT:
        assert read(name, path=str(folder)) == rows


def test_parquet_shards_are_read_in_order(tmp_path):
    folder = write_parquet(tmp_path, validation=["v"])
    for index, row in enumerate(["first", "second", "third"]):
        datasets.Dataset.from_dict({"text": [row]}).to_parquet(str(folder / f"train-0000{index}-of-00003.parquet"))
    assert read(folder)["train"] == ["first", "second", "third"]


def test_missing_split_is_named_when_it_is_needed(tmp_path):
    folder = write_parquet(tmp_path, validation=["v"], test=["t"])
    refused("holds no train split, only test and validation", source=folder)
    assert set(documents(find_source(CorpusConfig(str(folder)), needed=("validation",)))) == {
        "validation",
        "test",
    }


def test_bad_parquet(tmp_path):
    folder = write_parquet(tmp_path, validation=["v"])
    file = folder / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict({"content": ["a"], "id": [1]}).to_parquet(str(file))
    refused(file.name, "no column 'text'", "content, id", source=folder)
    datasets.Dataset.from_dict({"text": ["a", None]}).to_parquet(str(file))
    refused(file.name, "row 1 is None, not text", source=folder)
    datasets.Dataset.from_dict({"text": [1]}).to_parquet(str(file))
    refused(file.name, "column 'text' holds int64, not text", source=folder)
    file.write_bytes(b"PAR1 this is not parquet")
    refused(file.name, "cannot be read", source=folder)


def test_text_file_ends_in_validation(tmp_path):
    lines = [f"line {i}\n" for i in range(100)]
    file = tmp_path / "text.txt"
    file.write_text("\ufeff" + "".join(lines), encoding="utf-8")
    rows = read(file)
    assert [len(part) for part in rows.values()] == [1, 1]
    assert rows["train"][0] + rows["validation"][0] == "".join(lines)
    assert rows["validation"][0].startswith("line 95\n")


def test_validation_fraction(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i}\n" for i in range(100)))
    assert read(text, validation_fraction=0.25)["validation"][0].startswith("line 7")
    whole = text.read_text()
    # To the character, as nanoGPT cuts its Shakespeare.
    for tokenizer in ("chars", "chars:abc"):
        rows = read(text, validation_fraction=0.1, tokenizer=tokenizer)
        assert rows["train"] == [whole[: int(len(whole) * 0.9)]]
        assert rows["validation"] == [whole[int(len(whole) * 0.9) :]]
    lines = tmp_path / "documents.jsonl"
    lines.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(40)))
    assert len(read(lines, validation_fraction=0.25)["validation"]) == 10
    config = CorpusConfig(str(text))
    assert find_source(config).digest != find_source(config.replace(validation_fraction=0.06)).digest


def test_jsonl_documents_are_split_by_their_text(tmp_path):
    texts = [f"document {i} with \u2028 inside" for i in range(40)]
    file = tmp_path / "documents.jsonl"

    def split(texts):
        file.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts) + "\n")
        return read(file)

    rows = split(texts)
    # Those with the smallest SHA-256, in the order of the file: what runs have trained on stays apart.
    ranked = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert set(rows["validation"]) == set(ranked[:2])
    assert rows["train"] == [text for text in texts if text not in ranked[:2]]
    again = split(texts[::-1])
    assert set(again["validation"]) == set(rows["validation"])
    # A document and its copy are never on both sides.
    doubled = split(texts + texts)
    assert set(doubled["train"]).isdisjoint(doubled["validation"])


def test_held_out():
    def count(keys, fraction):
        return held_out((hashlib.sha256(key.encode()).digest() for key in keys), fraction).sum()

    assert count(map(str, range(1000)), 0.05) == 50
    assert count(["a", "b"], 0.05) == count(["a", "b"], 0.9) == 1
    assert count(["only"], 0.05) == 1
    assert count([], 0.05) == 0
    # A digest may end in zeros.
    assert held_out([b"a" * 31 + b"\0", b"b" * 32, b"a" * 31 + b"\0"], 0.5).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["holds no text"]),
        (b" \n\n", ["holds no text"]),
        (b"text\xff more", ["not UTF-8", "byte 4"]),
        (b"text\0 more", ["binary", "NUL at byte 4"]),
        (b"one line and no other", ["too short to split"]),
    ],
)
def test_bad_text(content, parts, tmp_path):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    refused("bad.txt", *parts, source=file)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"text": "a"}\n{"text": \n', ["line 2 is not JSON"]),
        ('{"text": "a"}\n\n{"body": "b"}\n', ["line 3", '"text"']),
        ('{"text": 7}\n', ["line 1", '"text"']),
        ('["text"]\n', ["line 1", '"text"']),
        ('{"text": "\\ud800"}\n', ["line 1", "surrogate"]),
        ('{"text": "a"}\n{"text": "a"}\n', ["two different documents"]),
    ],
)
def test_bad_jsonl(content, parts, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    refused("bad.jsonl", *parts, source=file)


def test_wrong_names_and_paths(tmp_path):
    refused("unknown --data.source 'docstring'", "did you mean 'docstrings'?", source="docstring")
    refused("did you mean 'wikitext-2-v1'?", source="wikitext2-v1")
    refused("no such file or folder", source=tmp_path / "absent.txt")
    refused("no such file or folder", source="absent.txt")
    refused("no such folder", source="wikitext-2-v1", path=tmp_path / "absent")
    refused("--data.path is for WikiText, fineweb10b and data sets", source="docstrings", path=tmp_path)
    other = tmp_path / "text.csv"
    other.write_text("a,b")
    refused("--data.source", "expected a file of .txt, .jsonl", source=other)
    refused("expected files of one kind", "found .csv", source=tmp_path)
    for source in ("docstrings", "wikitext-2-v1", other.rename(tmp_path / "text.txt")):
        refused(f"--data.source {source}", "leave --data.subset out", source=source, subset="part")
    for source in ("docstrings", other.with_suffix(".txt")):
        refused(f"--data.source {source}", "leave --data.text-column out", source=source, text_column="body")


def test_unreachable_hub_names_the_way_out(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route\nmore lines")

    monkeypatch.setattr("train.data.hub._head", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refused("Salesforce/wikitext", "(no route)", "--data.path FOLDER", source="wikitext-103-raw-v1")


def test_hub_snapshot_is_read_like_a_folder(tmp_path, monkeypatch):
    import huggingface_hub

    rows = {"train": ["a"], "validation": ["b"]}
    write_parquet(tmp_path / "wikitext-2-raw-v1", **rows)
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options["repo_type"], options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("train.data.hub._head", lambda *args: "commit")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert read("wikitext-2-raw-v1") == rows
    assert asked == [("Salesforce/wikitext", "dataset", ["wikitext-2-raw-v1/*.parquet"])]


def test_digest_follows_the_bytes(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("a\n" * 40)
    config = CorpusConfig(str(file))
    before = find_source(config).digest
    assert find_source(config).digest == before
    file.write_text("a\n" * 39 + "b\n")
    assert find_source(config).digest != before


def test_docstrings_are_found_in_the_order_of_their_lines():
    source = '''"""Module."""
class A:
    """  First line.

        Indented.
    Not.
    """
    async def f(self):
        "Half a pair: \\ud800."
        def g(): """Inner."""
        if self:
            def h(): r"""Conditional \\d."""
    x = """not one"""
try:
    def k(): """Tried."""
except ValueError:
    def k(): """Excepted."""
else:
    def k(): """Otherwise."""
def last(): b"""bytes"""
'''
    assert list(docstrings.docstrings_of(source.encode())) == [
        "Module.",
        "First line.\n\n    Indented.\nNot.",
        "Half a pair: ?.",
        "Inner.",
        "Conditional \\d.",
        "Tried.",
        "Excepted.",
        "Otherwise.",
    ]


def test_docstrings_are_kept_once_and_bad_files_recorded(tmp_path):
    contents = {"b.py": '"""Same."""', "a.py": '"""Same."""\ndef f(): """Own."""', "c.py": "def", "d.py": "x = 1"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    found, record = docstrings.docstrings_by_file({name: tmp_path / name for name in sorted(contents)})
    assert found == {"a.py": ["Same.", "Own."]}
    assert record == {"files": 1, "docstrings": 2, "unreadable": ["c.py"]}


def test_reading_docstrings_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0)
    files = {name: tmp_path / name for name in ("a.py", "b.py")}
    for path in files.values():
        path.write_text('"""Text."""')
    docstrings.docstrings_by_file(files)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"reading the docstrings of files: {n}/2" for n in (1, 2)]


def test_docstring_corpus_of_one_package(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", ("optax",))
    files, versions = docstrings.python_files()
    assert list(files) == sorted(files)
    assert versions.keys() == {"python", "optax"}
    assert {"python/json/decoder.py", "python/argparse.py", "optax/optax/__init__.py"} <= files.keys()
    assert not any("test" in name.split("/") or "site-packages" in name for name in files)
    # The whole standard library takes seconds to parse; the rest of the way needs only some of it.
    few = {name: path for name, path in files.items() if name.startswith(("python/json/", "optax/"))}
    monkeypatch.setattr(docstrings, "python_files", lambda: (few, versions))
    config = CorpusConfig(cache_dir=str(tmp_path))
    source = find_source(config)
    rows = documents(source)
    assert source.record == {"versions": versions}
    assert source.size == sum(path.stat().st_size for path in few.values())
    assert list(rows) == ["train", "validation"]
    # Whole files go to validation, those whose names have the smallest SHA-256.
    ranked = sorted(
        docstrings.docstrings_by_file(few)[0].items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()
    )
    assert rows["validation"] == [text for _, texts in sorted(ranked[: -(-len(ranked) // 20)]) for text in texts]
    everything = rows["train"] + rows["validation"]
    assert len(everything) == len(set(everything)) > 300
    assert any(text.startswith("Simple JSON <https://json.org> decoder") for text in everything)


@pytest.fixture
def few_docstrings(tmp_path, monkeypatch):
    """The docstring corpus of three files, cached, and the configuration that reads it."""
    files = {f"{name}.py": tmp_path / f"{name}.py" for name in "abc"}
    for path in files.values():
        path.write_text(f'"""Module {path.stem}."""\ndef f(): """Of {path.stem}: naïve."""', encoding="utf-8")
    monkeypatch.setattr(docstrings, "python_files", lambda: (files, {}))
    return CorpusConfig(cache_dir=str(tmp_path / "cache"), tokenizer="bytes")


def read_once(config, monkeypatch):
    """The corpus from what is cached, none of its files read."""
    with monkeypatch.context() as patched:
        patched.setattr(docstrings, "docstrings_by_file", None)
        return documents(find_source(config))


def test_docstrings_are_read_once_for_all_tokenizers_and_limits(few_docstrings, monkeypatch):
    config = few_docstrings
    assert len(load_corpus(config).train) == 48
    with monkeypatch.context() as patched:
        patched.setattr(docstrings, "docstrings_by_file", None)
        assert len(load_corpus(config.replace(max_train_tokens=5)).train) == 5
        assert load_corpus(config.replace(tokenizer="chars")).train_bytes == load_corpus(config).train_bytes
        more = documents(find_source(config.replace(validation_fraction=0.6)))
    assert sorted(len(rows) for rows in more.values()) == [2, 4]
    assert {*more["train"], *more["validation"]} == {
        text for n in "abc" for text in (f"Module {n}.", f"Of {n}: naïve.")
    }


def test_changed_files_have_other_docstrings(few_docstrings, tmp_path, monkeypatch):
    before = documents(find_source(few_docstrings))
    (tmp_path / "b.py").write_text('"""Changed."""')
    after = documents(find_source(few_docstrings))
    assert "Changed." in after["train"] + after["validation"]
    assert after != before
    assert read_once(few_docstrings, monkeypatch) == after
    monkeypatch.setattr(docstrings.platform, "python_version", lambda: "3.99.0")
    with pytest.raises(TypeError):  # the files would be read again
        read_once(few_docstrings, monkeypatch)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
@pytest.mark.parametrize("suffix", ["-text.npy", "-ends.npy", "-counts.npy", ".json"])
def test_damaged_cache_of_docstrings_is_made_again(damage, suffix, few_docstrings):
    before = documents(find_source(few_docstrings))
    (path,) = cache_files(few_docstrings, suffix)
    intact = path.read_bytes()
    damage(path)
    assert documents(find_source(few_docstrings)) == before
    assert path.read_bytes() == intact


def test_docstring_corpus_names_a_missing_package(monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", ("no-such-package-here",))
    refused("pip install no-such-package-here", source="docstrings")


@pytest.mark.slow
def test_whole_docstring_corpus(tmp_path):
    rows = {
        split: [piece.text for piece in read(len)]
        for split, read in find_source(CorpusConfig(cache_dir=str(tmp_path))).splits.items()
    }
    sizes = {split: sum(len(text.encode()) for text in texts) for split, texts in rows.items()}
    assert 9e6 < sum(sizes.values()) < 20e6
    assert 0.02 < sizes["validation"] / sum(sizes.values()) < 0.1
    assert docstrings.docstrings_by_file(docstrings.python_files()[0])[1]["unreadable"] == []


def test_a_digest_does_not_depend_on_the_order_in_which_files_are_found(tmp_path):
    files = {name: tmp_path / name for name in ("b", "a")}
    for name, file in files.items():
        file.write_text(name)
    first = sources._digests(files)
    assert sources._digests(dict(sorted(files.items()))) == first
    assert sources._digests({"c": files["b"], "a": files["a"]}) != first
