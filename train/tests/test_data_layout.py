"""Which files hold which split: as `datasets` finds them, and one line where that is not clear."""

import contextlib
import json

import datasets.data_files
import pytest

from mhc_jax.config import ConfigError
from train.data import DataError, load_corpus
from train.data import layout as layout_module
from train.data.config import CorpusConfig
from train.data.layout import Wanted, files_under, find_splits, read_card, wanted_patterns

WANTED = Wanted("corpus")


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n")


def refused(*parts, wanted=WANTED, names=(), card=()):
    with pytest.raises(DataError) as caught:
        find_splits(wanted, names, list(card))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 800
    for part in ("--data.source corpus", *parts):
        assert part in message, message


def test_words_for_splits_are_those_of_datasets():
    theirs = {str(split): tuple(words) for split, words in datasets.data_files.SPLIT_KEYWORDS.items()}
    assert theirs == layout_module._KEYWORDS


@pytest.mark.parametrize(
    "names",
    [
        ["b.jsonl", "a.jsonl"],
        ["a/b.jsonl", "c.jsonl.gz"],
        ["train.jsonl", "valid.jsonl", "test.jsonl"],
        ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation-00000-of-00001.jsonl"],
        ["my_training.data.jsonl", "dev.jsonl", "evaluation-3.jsonl"],
        ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
        ["train/a.jsonl", "train/deep/b.jsonl", "val/c.jsonl", "other/d.jsonl"],
        ["c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz"],
        ["train1.jsonl", "extra.jsonl"],
        ["trainer.jsonl", "contest.jsonl"],
        ["my-train/a.jsonl", "b.jsonl"],
        [".hidden/train.jsonl", "__pycache__/a.jsonl", "shown.jsonl"],
    ],
)
def test_splits_of_a_folder(names, tmp_path):
    make(tmp_path, *names)
    patterns = datasets.data_files.get_data_patterns(str(tmp_path))
    theirs = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(tmp_path))
    expected = {
        str(split): sorted(str(file)[len(str(tmp_path)) + 1 :] for file in files) for split, files in theirs.items()
    }
    assert find_splits(WANTED, files_under(tmp_path), read_card(tmp_path)) == expected
    assert find_splits(WANTED, reversed(files_under(tmp_path)), []) == expected


def test_folders_that_are_not_clear():
    refused("expected files of one kind", "found nothing")
    refused("found .csv, .md", names=["a.csv", "README.md"])
    refused("found JSON and text", names=["a.jsonl", "LICENSE.txt"])
    refused("train-test.jsonl names train and test; rename it", names=["train-test.jsonl"])
    refused("no subset 'x'", "leave --data.subset out", wanted=Wanted("corpus", "x"), names=["a.jsonl"])
    # What data sets say of themselves is no text.
    splits = find_splits(WANTED, ["a.jsonl", "dataset_infos.json", "sub/config.json", "shards.json"], [])
    assert splits == {"train": ["a.jsonl"]}


CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*.jsonl
  - split: dev
    path: [en/held/*.jsonl, "en/**/more*.jsonl"]
- config_name: de
  data_files: "de/*"
- config_name: fr
  data_dir: fr
- config_name: odd
  data_files:
    train_sft: odd/*.jsonl
---
# A corpus
"""
NAMES = [
    "de/a.jsonl",
    "de/deep/b.jsonl",
    "en/held/a.jsonl",
    "en/more.jsonl",
    "en/train-1.jsonl",
    "en/train-2.jsonl",
    "en/x/y/more2.jsonl",
    "fr/a-test.jsonl",
    "fr/a-train.jsonl",
    "odd/a.jsonl",
    "plain/train.jsonl",
]


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("en", {"train": NAMES[4:6], "validation": [NAMES[2], NAMES[3], NAMES[6]]}),
        ("de", {"train": NAMES[:1]}),
        ("fr", {"train": [NAMES[8]], "test": [NAMES[7]]}),
        ("plain", {"train": [NAMES[10]]}),
    ],
)
def test_subsets_of_a_card(subset, expected, tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    wanted, card = Wanted("corpus", subset), read_card(tmp_path)
    assert find_splits(wanted, NAMES, card) == expected
    # What is downloaded is enough for them.
    from huggingface_hub.utils import filter_repo_objects

    downloaded = list(filter_repo_objects(NAMES, allow_patterns=wanted_patterns(wanted, card)))
    assert find_splits(wanted, downloaded, card) == expected
    assert len(downloaded) < len(NAMES) / 2 + 1


def test_subsets_that_are_not_clear(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    card = read_card(tmp_path)
    refused("several subsets; choose one with --data.subset: en, de, fr, odd", names=NAMES, card=card)
    refused("none of its splits is named", "train_sft", wanted=Wanted("corpus", "odd"), names=NAMES, card=card)
    refused("no subset 'dee'; did you mean 'de'?; known: en", wanted=Wanted("corpus", "dee"), names=NAMES, card=card)
    for default in ({"default": True}, {"config_name": "default"}):
        chosen = [card[0], card[1] | default, *card[2:]]
        assert find_splits(WANTED, NAMES, chosen) == {"train": NAMES[:1]}
    assert find_splits(WANTED, NAMES, card[1:2]) == {"train": NAMES[:1]}


@pytest.mark.parametrize(
    "configs",
    [
        "7",
        "[7]",
        "[{}]",
        "[{config_name: 7}]",
        "{a: b}",
        "[{config_name: a, data_files: 7}]",
        "[{config_name: a, data_files: [{}]}]",
        "[{config_name: a, data_files: {train: {}}}]",
        "[{config_name: a, data_dir: []}]",
    ],
)
def test_cards_of_any_shape(configs, tmp_path):
    (tmp_path / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    with contextlib.suppress(DataError):
        assert find_splits(WANTED, ["train.jsonl"], read_card(tmp_path)) == {"train": ["train.jsonl"]}


@pytest.mark.parametrize("card", [b"---\n: [\n---\n", b"\xff", b"---\n- a\n---\n", b"no card", b"---\n---\n"])
def test_cards_that_are_none(card, tmp_path):
    (tmp_path / "README.md").write_bytes(card)
    with contextlib.suppress(DataError):
        assert read_card(tmp_path) == []


def test_data_set_of_the_hub(tmp_path, monkeypatch):
    """Its files come as a snapshot, of one commit, with no more than the subset in it."""
    import huggingface_hub

    commit, asked = tmp_path / "c0ffee", []
    make(commit, *NAMES)
    (commit / "README.md").write_text(CARD)

    def snapshot(repository, **options):
        asked.append((repository, options["repo_type"], options["revision"], options["allow_patterns"]))
        return str(commit)

    monkeypatch.setattr("train.data.hub._head", lambda *args: "commit")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    config = CorpusConfig(
        source="some-one/corpus.x@v1", subset="en", tokenizer="bytes", cache_dir=str(tmp_path / "cache")
    )
    corpus = load_corpus(config)
    assert corpus.tokenizer.decode(corpus.train.tolist()) == "en/train-1.jsonlen/train-2.jsonl"
    assert corpus.record["files"] == [NAMES[2], NAMES[3], NAMES[4], NAMES[5], NAMES[6]]
    assert [ask[:3] for ask in asked] == [("some-one/corpus.x", "dataset", r) for r in ("v1", "c0ffee")]
    assert asked[0][3] == ["README.md"]
    assert set(asked[1][3]) >= {"README.md", "en/train-*.jsonl", "en/held/*.jsonl"}
    assert not any(pattern.startswith(("*", "de", "fr")) for pattern in asked[1][3])
    local = config.replace(path=str(commit), cache_dir=str(tmp_path / "other"))
    assert load_corpus(local).fingerprint == corpus.fingerprint
    assert len(asked) == 2
    here = config.replace(source=str(commit))
    assert load_corpus(here).fingerprint == corpus.fingerprint


def test_data_set_that_cannot_be_had(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route\nmore lines")

    monkeypatch.setattr("train.data.hub._head", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError) as caught:
        load_corpus(CorpusConfig("someone/corpus"))
    message = str(caught.value)
    for part in ("'someone/corpus'", "(no route)", "nor is there a local", "--data.path FOLDER", "HF_HUB_OFFLINE=1"):
        assert part in message
    assert "\n" not in message


def test_data_set_that_is_cached_needs_no_network(monkeypatch, tmp_path):
    """A Hub that cannot be reached is asked once, and nothing that could wait for it is called."""
    import huggingface_hub

    make(tmp_path, "train.jsonl", "validation.jsonl")

    def unreachable(*args):
        raise huggingface_hub.errors.HTTPError("timed out")

    def cached(repository, *, local_files_only=False, **options):
        assert local_files_only
        return str(tmp_path)

    monkeypatch.setattr("train.data.hub._head", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    corpus = load_corpus(CorpusConfig("someone/corpus", tokenizer="bytes", cache_dir=str(tmp_path / "cache")))
    assert corpus.validation_bytes == len("validation.jsonl")
