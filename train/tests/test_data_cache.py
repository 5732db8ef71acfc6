"""The cache of tokens: when it is used, when it is not, and what damages it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from train.data import (
    load_corpus,
)
from train.data.config import CorpusConfig
from train.tests.corpora import TEXT, cache_files, flip_a_byte, refused, text_config, truncate


@pytest.fixture
def config(tmp_path):
    return text_config(tmp_path)


def test_cache_is_used(config, monkeypatch):
    first = load_corpus(config)
    assert len(cache_files(config, ".json")) == 2
    with monkeypatch.context() as patched:
        patched.setattr("train.data.corpus.pack", None)
        again = load_corpus(config)
    assert again.fingerprint == first.fingerprint
    assert again.record == first.record
    assert isinstance(again.train, np.memmap)
    assert not again.train.flags.writeable


def two_words(file, *, swapped):
    """A tokenizer of two words, in one order or the other."""
    vocab = {"Line": 1, "of": 0} if swapped else {"Line": 0, "of": 1}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({**vocab, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["</s>"])
    backend.save(str(file))


def change_text(config):
    Path(config.source).write_text(TEXT + "One more line.\n", encoding="utf-8")
    return config


def change_tokenizer_under_its_name(config):
    two_words(config.tokenizer, swapped=True)
    return config


@pytest.mark.parametrize(
    "change",
    [
        change_text,
        change_tokenizer_under_its_name,
        lambda config: config.replace(tokenizer="bytes"),
        lambda config: config.replace(validation_fraction=0.5),
        lambda config: config.replace(max_train_tokens=10),
        lambda config: config.replace(max_eval_tokens=10),
    ],
    ids=["text", "tokenizer file", "tokenizer", "fraction", "train limit", "evaluation limit"],
)
def test_every_part_of_the_cache_key(change, config, tmp_path):
    two_words(tmp_path / "tokenizer.json", swapped=False)
    config = config.replace(tokenizer=str(tmp_path / "tokenizer.json"))
    load_corpus(config)
    changed = load_corpus(change(config))
    fresh = load_corpus(change(config).replace(cache_dir=str(tmp_path / "other cache")))
    for name in ("train", "validation"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(fresh, name))
    assert changed.fingerprint == fresh.fingerprint


def test_cache_of_another_version_of_packing(config, monkeypatch):
    load_corpus(config)
    monkeypatch.setattr("train.data.corpus.PACKING_VERSION", 0)
    load_corpus(config)
    assert len(cache_files(config, ".json")) == 4


def test_columns_of_one_file_have_caches_of_their_own(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}", "title": f"title {i}"}) + "\n" for i in range(9)))
    config = CorpusConfig(source=str(file), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    for column in ("text", "title"):
        corpus = load_corpus(config.replace(text_column=column))
        assert corpus.tokenizer.decode(corpus.train.tolist()).startswith(column)


def test_fingerprint_of_earlier_versions(config):
    """Runs keep it: one that was begun before goes on with today's text."""
    assert load_corpus(config).fingerprint == "0c73c606836dc29383ce349c152275e75dd76b25ee01e299a61703764a89cc1b"
    assert (
        load_corpus(config.replace(tokenizer="gpt2", max_eval_tokens=9)).fingerprint
        == "3885b479acfce3b34ab4a43b173d4467cd48df53a0e74a0976603e4852f1b13a"
    )


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
@pytest.mark.parametrize("suffix", ["-train.npy", "-validation.npy", ".json"])
def test_damaged_cache_is_made_again(damage, suffix, config):
    first = load_corpus(config)
    expected = np.array(first.train)
    path = cache_files(config, suffix)[0]
    intact = path.read_bytes()
    damage(path)
    again = load_corpus(config)
    np.testing.assert_array_equal(again.train, expected)
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == intact


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '{"sha256": "", "content": {"arrays": {}, "record": {}}}'])
def test_foreign_manifest_is_made_again(manifest, config):
    first = load_corpus(config)
    path = cache_files(config, ".json")[0]
    path.write_text(manifest)
    assert load_corpus(config).fingerprint == first.fingerprint


def test_failed_write_leaves_nothing_behind(config, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        refused(config, "cannot use the token cache", "No space left", "--data.cache-dir")
    assert os.listdir(config.cache_dir) == []
    assert len(load_corpus(config).train) > 0


def test_cache_folder_that_is_a_file(config, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    refused(config, "cannot use the token cache", "--data.cache-dir")


def test_default_cache_folder(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_corpus(config.replace(cache_dir=""))
    assert len(list((tmp_path / "xdg" / "mhc_jax").glob("*.json"))) == 2
