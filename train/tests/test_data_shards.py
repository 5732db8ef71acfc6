import json
import os
import struct

import numpy as np
import pytest

from train.data import (
    DataError,
    ShardedTokens,
    check_ids,
    eval_batches,
    fineweb,
    load_corpus,
    load_tokenizer,
    train_batches,
    unigram_perplexity,
)
from train.data import tokens as tokens_module
from train.data.config import CorpusConfig
from train.data.fineweb import Manifest, ShardRecord, shard_name
from train.data.shards import read_shard, write_shard
from train.data.tokenizer import gpt2_token_bytes
from train.data.tokens import token_counts

TEXT = "Streams carry state through depth: naïve café, 日本語 🙂.\n"


def fill(folder, val=300, train=(700, 500, 30)):
    """Shards of the given lengths, and the tokens of each split."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    arrays = {0: [], 1: []}
    for number, length in enumerate((val, *train)):
        tokens = rng.integers(0, 50257, length, dtype=np.uint16)
        write_shard(folder / shard_name("train" if number else "validation", number), tokens)
        arrays[min(number, 1)].append(tokens)
    return np.concatenate(arrays[0]), np.concatenate(arrays[1])


@pytest.fixture
def config(tmp_path):
    return CorpusConfig(source="fineweb10b", path=str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"))


def refused(call, *parts):
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_shard_is_its_published_layout_to_the_byte(tmp_path):
    path = tmp_path / "shard.bin"
    write_shard(path, np.array([50256, 0, 258], np.uint16))
    assert path.read_bytes() == struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 50256, 0, 258)
    tokens = read_shard(path)
    assert tokens.tolist() == [50256, 0, 258]
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable
    assert os.listdir(tmp_path) == ["shard.bin"]


def test_a_shard_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    for tokens in (np.zeros(0, np.uint16), np.zeros(3, np.int32), np.zeros((2, 2), np.uint16)):
        with pytest.raises(ValueError, match="a shard holds"):
            write_shard(tmp_path / "shard.bin", tokens)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "ascontiguousarray", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "shard.bin", np.zeros(3, np.uint16))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["no token shard", "0 bytes"]),
        (b"abc", ["no token shard", "3 bytes"]),
        (struct.pack("<256i", 20240801, 1, 1, *[0] * 253) + b"ab", ["starts with 20240801, not 20240520"]),
        (struct.pack("<256i", 20240520, 2, 1, *[0] * 253) + b"ab", ["version 2"]),
        (struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + b"abcd", ["is cut short", "3 tokens", "6 bytes, and 4"]),
        (struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + b"abcde", ["is cut short"]),
        (struct.pack("<256i", 20240520, 1, 1, *[0] * 253) + b"abc", ["is too long"]),
        (struct.pack("<256i", 20240520, 1, -1, *[0] * 253) + b"ab", ["is too long"]),
        (struct.pack("<256i", 20240520, 1, 0, *[0] * 253), ["holds no tokens"]),
    ],
)
def test_bad_shards_are_refused_by_name(content, parts, config, tmp_path):
    fill(tmp_path / "shards")
    path = tmp_path / "shards" / "fineweb_train_000002.bin"
    path.write_bytes(content)
    refused(lambda: read_shard(path), str(path), *parts)
    refused(lambda: load_corpus(config), str(path), *parts)
    refused(lambda: read_shard(tmp_path / "absent.bin"), "absent.bin cannot be read")


def test_shards_read_as_one_array():
    whole = np.arange(10, 27, dtype=np.uint16)
    shards = ShardedTokens(np.split(whole, [5, 6, 12]), np.zeros(1))
    assert len(shards) == 17
    for start in range(18):
        for stop in range(18):
            window = shards[start:stop]
            np.testing.assert_array_equal(window, whole[start:stop])
            assert window.dtype == np.uint16
    np.testing.assert_array_equal(shards[:], whole)
    np.testing.assert_array_equal(shards[-3:99], whole[-3:])
    with pytest.raises(IndexError, match="steps of 1"):
        shards[::2]


def test_what_is_asked_of_shards_equals_what_is_asked_of_one_array(monkeypatch):
    whole = np.random.default_rng(0).integers(0, 9, 100, dtype=np.uint16)
    shards = ShardedTokens(np.split(whole, [40, 41]), np.bincount(whole, minlength=9))
    expected = unigram_perplexity(whole, whole[:30], 12)
    monkeypatch.setattr(tokens_module, "PIECE", 7)
    assert unigram_perplexity(whole, whole[:30], 12) == expected
    assert unigram_perplexity(shards, whole[:30], 12) == expected
    assert token_counts(shards, 12).tolist() == np.bincount(whole, minlength=12).tolist()
    check_ids(shards, 9, "tokens")
    high = int(np.argmax(whole == 8))
    refused(lambda: check_ids(shards, 8, "tokens"), f"tokens: token {high} is 8, outside the vocabulary of 8 ids")


def test_corpus_of_shards(config, tmp_path):
    validation, train = fill(tmp_path / "shards")
    corpus = load_corpus(config)
    np.testing.assert_array_equal(corpus.train[:], train)
    np.testing.assert_array_equal(corpus.validation[:], validation)
    assert (corpus.tokenizer.name, corpus.test) == ("gpt2", None)
    assert corpus.train_bytes == gpt2_token_bytes()[train].sum()
    assert corpus.record["splits"]["train"]["tokens"] == len(train)
    few = load_corpus(config.replace(train_shards=2))
    np.testing.assert_array_equal(few.train[:], train[:1200])
    assert few.fingerprint != corpus.fingerprint
    assert load_corpus(config.replace(train_shards=0)).fingerprint == corpus.fingerprint


def test_bytes_of_shards_are_those_of_the_text(config, tmp_path):
    tokenizer = load_tokenizer("gpt2")
    ids = np.array([50256, *tokenizer.encode(TEXT * 20)], np.uint16)
    (tmp_path / "shards").mkdir()
    for split, number in (("validation", 0), ("train", 1)):
        write_shard(tmp_path / "shards" / shard_name(split, number), ids)
    assert load_corpus(config).validation_bytes == len((TEXT * 20).encode())


@pytest.mark.parametrize("limit", [1, 699, 700, 701, 1230, 5000])
def test_cuts_are_those_of_one_array_and_open_no_further_shard(limit, config, tmp_path):
    _, train = fill(tmp_path / "shards")
    if limit <= 700:
        write_shard(tmp_path / "shards" / shard_name("train", 2), np.full(9, 60_000, np.uint16))
    cut = load_corpus(config.replace(max_train_tokens=limit))
    np.testing.assert_array_equal(cut.train[:], train[:limit])
    assert cut.train_bytes == gpt2_token_bytes()[train[:limit]].sum()
    assert cut.train.counts.sum() == len(cut.train)


def test_a_split_that_is_not_needed_is_not_opened(config, tmp_path):
    fill(tmp_path / "shards")
    (tmp_path / "shards" / shard_name("train", 1)).write_bytes(b"damaged")
    corpus = load_corpus(config, needed=("validation",))
    assert (len(corpus.train), len(corpus.validation)) == (0, 300)
    refused(lambda: load_corpus(config, needed=("test",)), "fineweb10b has no test split")


def test_a_shard_is_read_as_a_whole_only_once(config, tmp_path, monkeypatch):
    fill(tmp_path / "shards")
    before = load_corpus(config).fingerprint
    checked = []
    monkeypatch.setattr(fineweb, "check_ids", lambda tokens, vocab_size, where: checked.append(where))
    assert load_corpus(config).fingerprint == before
    assert checked == []
    path = tmp_path / "shards" / shard_name("train", 2)
    write_shard(path, np.arange(500, dtype=np.uint16))
    assert load_corpus(config).fingerprint != before
    assert checked == [str(path)]


def test_shards_of_one_time_are_told_apart(config, tmp_path):
    """By their paths, even if they are equally long, and by their lengths."""
    fill(tmp_path / "shards")
    path, other = (tmp_path / "shards" / shard_name("train", number) for number in (1, 2))

    def write(path, tokens):
        write_shard(path, np.array(tokens, np.uint16))
        os.utime(path, ns=(1, 1))

    write(path, [1] * 500)
    write(other, [2] * 500)
    counts = load_corpus(config.replace(train_shards=2)).train.counts
    assert (counts[1], counts[2]) == (500, 500)
    write(other, [3] * 400)
    assert load_corpus(config.replace(train_shards=2)).train.counts[3] == 400


def test_ids_that_are_not_gpt2s(config, tmp_path):
    fill(tmp_path / "shards")
    path = tmp_path / "shards" / shard_name("train", 1)
    write_shard(path, np.array([1, 2, 50257], np.uint16))
    refused(lambda: load_corpus(config), f"{path}: token 2 is 50257, outside the vocabulary of 50257 ids")


def test_missing_shards_and_folders(config, tmp_path):
    refused(lambda: load_corpus(config), "no such folder", "train.prepare_fineweb", "--data.path FOLDER")
    folder = tmp_path / "shards"
    folder.mkdir()
    refused(lambda: load_corpus(config), str(folder), "holds no fineweb_train_*.bin", "train.prepare_fineweb")
    fill(folder)
    (folder / shard_name("train", 2)).unlink()
    refused(lambda: load_corpus(config), "fineweb_train_000002.bin is missing")
    assert len(load_corpus(config.replace(train_shards=1)).train) == 700
    (folder / shard_name("validation", 0)).unlink()
    refused(lambda: load_corpus(config.replace(train_shards=1)), "holds no fineweb_val_*.bin")


def test_other_tokenizers_are_refused(config):
    refused(lambda: load_corpus(config.replace(tokenizer="bytes")), "tokens of gpt2, which bytes cannot read")
    refused(lambda: load_corpus(config.replace(tokenizer="chars")), "tokens of gpt2", "give --data.tokenizer gpt2")


def test_manifest_tells_damage_gaps_and_unfinished_folders(config, tmp_path):
    folder = tmp_path / "shards"
    fill(folder)
    names = [shard_name("validation", 0), *(shard_name("train", number) for number in (1, 2, 3))]
    digests = load_corpus(config).record["splits"]
    digests = [*digests["validation"]["sha256"], *digests["train"]["sha256"]]
    shards = [ShardRecord(name, 1, digest, {}) for name, digest in zip(names, digests, strict=True)]
    Manifest({}, shards, finished=True).write(folder)
    load_corpus(config)
    Manifest({}, shards).write(folder)
    refused(lambda: load_corpus(config), str(folder), "is not finished", "train.prepare_fineweb")
    Manifest({}, [*shards, ShardRecord(shard_name("train", 4), 1, "", {})], finished=True).write(folder)
    refused(lambda: load_corpus(config), "fineweb_train_000004.bin is missing")
    Manifest({}, shards, finished=True).write(folder)
    path = folder / names[2]
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    refused(lambda: load_corpus(config), str(path), "is damaged", "shards.json")
    for content in ("{", "[]", "{}", '{"finished": true, "settings": {}, "shards": [{}]}'):
        (folder / "shards.json").write_text(content)
        refused(lambda: load_corpus(config), "shards.json cannot be read")


def test_hub_is_asked_for_the_shards_that_are_needed(config, tmp_path, monkeypatch):
    import huggingface_hub

    fill(tmp_path / "shards")
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options["repo_type"], sorted(options["allow_patterns"])))
        return str(tmp_path / "shards")

    monkeypatch.setattr("train.data.hub._head", lambda *args: "commit")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    config = config.replace(path="")
    load_corpus(config.replace(train_shards=2))
    load_corpus(config.replace(train_shards=0), needed=("train",))
    first, second = ["fineweb_val_*.bin", shard_name("train", 1), shard_name("train", 2)], ["fineweb_train_*.bin"]
    assert asked == [("kjj0/fineweb10B-gpt2", "dataset", sorted(names)) for names in (first, second)]

    def unreachable(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route\nmore lines")

    monkeypatch.setattr("train.data.hub._head", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refused(lambda: load_corpus(config), "kjj0/fineweb10B-gpt2", "(no route)", "--data.path FOLDER")


@pytest.mark.parametrize("windows", ["packed", "random"])
def test_batches_of_shards_are_those_of_one_array_on_any_number_of_hosts(windows, config, tmp_path):
    validation, train = fill(tmp_path / "shards")
    config = config.replace(seq_len=16, batch_size=8, windows=windows)
    corpus = load_corpus(config)

    def take(tokens, **host):
        batches = train_batches(tokens, config, **host)
        return [next(batches) for _ in range(12)]

    whole = take(train)
    for hosts in (1, 2):
        parts = [take(corpus.train, host=host, hosts=hosts) for host in range(hosts)]
        for expected, *found in zip(whole, *parts):
            for name in ("inputs", "targets"):
                np.testing.assert_array_equal(np.concatenate([part[name] for part in found]), expected[name])
    for expected, found in zip(eval_batches(validation, config), eval_batches(corpus.validation, config), strict=True):
        np.testing.assert_array_equal(found["targets"], expected["targets"])

    moved = train_batches(corpus.train, config, host=1, hosts=2)
    whole_hosts = train_batches(corpus.train, config)
    for _ in range(5):
        next(whole_hosts)
    moved.set_state(json.loads(json.dumps(whole_hosts.get_state())))
    np.testing.assert_array_equal(next(moved)["inputs"], next(whole_hosts)["inputs"][4:])
