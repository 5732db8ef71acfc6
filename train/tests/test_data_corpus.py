import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from train.data import (
    DataError,
    check_ids,
    load_corpus,
    load_tokenizer,
    pack,
    unigram_perplexity,
    with_characters,
)
from train.data.config import CorpusConfig
from train.data.text import Piece, read_pieces
from train.data.tokens import token_dtype
from train.tests.corpora import TEXT, cache_files, refused, text_config
from train.tests.test_data_tokenizer import unigram_tokenizer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MHC_JAX_SHARED", ROOT.parent / "shared"))
REAL_WIKITEXT = SHARED / "data" / "wikitext-2-v1"


@pytest.fixture
def config(tmp_path):
    return text_config(tmp_path)


def packed(rows, tokenizer, **options):
    return pack(map(Piece, rows), tokenizer, **options)


def test_packing_puts_the_end_token_after_every_document():
    tokenizer = load_tokenizer("bytes")
    tokens, record = packed(["", "ab", "", "c\n"], tokenizer)
    assert tokens.tolist() == [256, 97, 98, 256, 256, 99, 10, 256]
    assert record == {"documents": 4, "bytes": 4, "tokens": 8}
    assert pack([Piece("ab", ends=False), Piece("c")], tokenizer)[0].tolist() == [97, 98, 99, 256]
    assert packed([], tokenizer)[0].shape == (0,)
    assert packed(["", "ab"], load_tokenizer("chars:ab"))[0].tolist() == [0, 1]


def test_packing_does_not_depend_on_how_documents_are_grouped(monkeypatch):
    tokenizer = load_tokenizer("gpt2")
    rows = [f"row {i} \n" if i % 3 else "" for i in range(20)]
    expected = [token for row in rows for token in [*tokenizer.encode(row), 50256]]
    for pieces, characters in ((7, 1000), (1000, 20)):
        monkeypatch.setattr("train.data.text.BATCH_PIECES", pieces)
        monkeypatch.setattr("train.data.text.BATCH_CHARACTERS", characters)
        tokens, _ = packed(rows, tokenizer)
        assert tokens.tolist() == expected
        assert tokens.dtype == np.uint16


def test_packing_reads_no_more_than_is_wanted(monkeypatch):
    monkeypatch.setattr("train.data.text.BATCH_PIECES", 2)
    rows = iter(["ab", "cd", "ef", "gh", "ij"])
    tokens, record = packed(rows, load_tokenizer("bytes"), limit=4)
    assert (tokens.tolist(), record["bytes"]) == ([97, 98, 256, 99], 3)
    assert list(rows) == ["ef", "gh", "ij"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, np.uint16), (65_535, np.uint16), (65_536, np.int32)])
def test_token_dtype(vocab_size, dtype):
    assert token_dtype(vocab_size) == dtype


def test_corpus_of_a_text_file(config):
    corpus = load_corpus(config)
    text = [corpus.tokenizer.decode(split.tolist()) for split in (corpus.train, corpus.validation)]
    assert "".join(text) == TEXT
    assert [corpus.train_bytes, corpus.validation_bytes] == [len(part.encode()) for part in text]
    assert len(corpus.train) == corpus.train_bytes + 1
    assert corpus.test is None
    assert corpus.record["splits"]["train"]["bytes"] == corpus.train_bytes
    assert corpus.record["tokenizer"] == "bytes"


def test_corpus_of_characters(config):
    corpus = load_corpus(config.replace(tokenizer="chars", validation_fraction=0.1))
    assert corpus.tokenizer.vocab_size == len(set(TEXT))
    whole = np.concatenate([corpus.train, corpus.validation])
    # No end token, and the ids are places in the sorted characters.
    assert whole.tolist() == [sorted(set(TEXT)).index(character) for character in TEXT]
    assert len(corpus.train) == int(len(TEXT) * 0.9)
    assert corpus.train_bytes + corpus.validation_bytes == len(TEXT.encode())
    spelled = with_characters(config.replace(tokenizer="chars"))
    assert spelled.tokenizer == "chars:" + "".join(sorted(set(TEXT)))
    assert with_characters(spelled) is spelled
    assert with_characters(config) is config
    refused(config.replace(tokenizer="chars:Line"), "is not among the 4 characters")


def test_shakespeare_by_characters_is_nanogpts(tmp_path):
    real = SHARED / "data" / "tinyshakespeare" / "input.txt"
    if not real.is_file():
        pytest.skip("the text is not here")
    config = CorpusConfig(source=str(real), tokenizer="chars", validation_fraction=0.1, cache_dir=str(tmp_path))
    corpus = load_corpus(config)
    assert (corpus.tokenizer.vocab_size, len(corpus.train), len(corpus.validation)) == (65, 1_003_854, 111_540)
    assert corpus.train[:10].tolist() == [18, 47, 56, 57, 58, 1, 15, 47, 58, 47]  # "First Citi"


def test_cuts(config):
    whole = load_corpus(config)
    cut = load_corpus(config.replace(max_train_tokens=1000, max_eval_tokens=10**9))
    np.testing.assert_array_equal(cut.train, whole.train[:1000])
    assert cut.train_bytes == 1000
    assert cut.validation_bytes == whole.validation_bytes
    assert cut.fingerprint != whole.fingerprint


@pytest.mark.parametrize("flag", ["max_train_tokens", "max_eval_tokens"])
def test_a_limit_below_one_window_is_refused_before_anything_is_kept(flag, config):
    limited = config.replace(**{flag: config.seq_len})
    with pytest.raises(DataError, match=f"^--data.{flag.replace('_', '-')} {config.seq_len} does not fill one window"):
        limited.load()
    assert not Path(config.cache_dir).exists()


SPELLED_OUT = [f"document {i}: naïve <|endoftext|></s> 日本語\n" if i % 2 else f"{i} plain 🙂 \n" for i in range(40)]


@pytest.mark.parametrize("name", ["gpt2", "bytes", "chars", "unigram"])
def test_bytes_are_counted_alike_whole_and_cut(name, tmp_path):
    if name == "unigram":
        unigram_tokenizer(tmp_path / "tokenizer.json")
        name = str(tmp_path)
    tmp_path.joinpath("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SPELLED_OUT))
    config = CorpusConfig(source=str(tmp_path / "text.jsonl"), tokenizer=name, cache_dir=str(tmp_path / "cache"))
    whole = load_corpus(config.replace(validation_fraction=0.5))
    tokenizer, tokens = whole.tokenizer, whole.validation
    if tokenizer.eos_id is not None:
        assert (tokens == tokenizer.eos_id).sum() == 20  # one for each document, spelled out or not
    assert whole.train_bytes + whole.validation_bytes == len("".join(SPELLED_OUT).encode())
    counts = []
    for limit in (1, 7, len(tokens) // 2, len(tokens) - 1, len(tokens), len(tokens) + 1):
        cut = load_corpus(config.replace(validation_fraction=0.5, max_eval_tokens=limit))
        np.testing.assert_array_equal(cut.validation, tokens[:limit])
        counts.append(cut.validation_bytes)
    assert counts == sorted(counts)
    assert counts[0] <= 20  # a word or two
    assert counts[-3:] == [whole.validation_bytes] * 3 or tokenizer.eos_id is None
    assert counts[-2:] == [whole.validation_bytes] * 2
    assert counts[2] == pytest.approx(whole.validation_bytes / 2, rel=0.2)


def test_splits_not_asked_for(tmp_path):
    import datasets

    for split in ("validation", "test"):
        datasets.Dataset.from_dict({"text": [f"the {split} row"]}).to_parquet(str(tmp_path / f"{split}-0.parquet"))
    config = CorpusConfig(source=str(tmp_path), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    refused(config, "holds no train split")
    assert load_corpus(config, needed=("validation",)).test is None
    assert [file.name.partition("-")[2] for file in cache_files(config, ".npy")] == ["validation.npy"]
    corpus = load_corpus(config, needed=("validation",), also=("test",))
    assert (len(corpus.train), corpus.train_bytes) == (0, 0)
    assert corpus.test is not None
    assert corpus.tokenizer.decode(corpus.test.tolist()) == "the test row"
    assert corpus.test_bytes == 12


def test_blank_split_is_refused(tmp_path):
    import datasets

    for split, rows in {"train": ["text"], "validation": ["", ""]}.items():
        datasets.Dataset.from_dict({"text": rows}).to_parquet(str(tmp_path / f"{split}-0.parquet"))
    config = CorpusConfig(source=str(tmp_path), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    refused(config, "the validation split holds no text")


@pytest.mark.slow
def test_two_processes_fill_one_cache(config):
    program = (
        "import sys; from train.data import CorpusConfig, load_corpus; sys.stdin.readline();"
        "print(load_corpus(CorpusConfig.from_json(sys.argv[1])).fingerprint)"
    )
    command = [sys.executable, "-c", program, config.to_json()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    workers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    answers = [worker.communicate("go\n", timeout=120)[0].strip() for worker in workers]
    assert answers == [load_corpus(config).fingerprint] * 2
    assert not [name for name in os.listdir(config.cache_dir) if name.startswith(".")]


def test_ids_outside_the_vocabulary(config):
    check_ids(np.array([0, 256]), 257, "tokens")
    with pytest.raises(DataError, match="^tokens: token 2 is 300, outside the vocabulary of 257 ids$"):
        check_ids(np.array([0, 5, 300, 999], np.uint16), 257, "tokens")
    with pytest.raises(DataError, match="token 1 is -1,"):
        check_ids(np.array([0, -1], np.int32), 257, "tokens")
    # A cache whose digests agree but whose ids do not fit, as a foreign tool would leave it.
    load_corpus(config)
    (path,) = cache_files(config, "-train.npy")
    manifest = path.with_name(path.name.replace("-train.npy", ".json"))
    np.save(path, np.full(50, 60_000, np.uint16))
    stored = json.loads(manifest.read_text())
    stored["content"]["arrays"]["train"] = hashlib.sha256(path.read_bytes()).hexdigest()
    stored["sha256"] = hashlib.sha256(json.dumps(stored["content"], sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(stored))
    refused(config, "the train tokens", "token 0 is 60000", config.cache_dir)


def test_unigram_perplexity():
    # By hand: p = (3/6, 2/6, 1/6) after train 0, 0, 1; validation 0, 1, 2.
    value = unigram_perplexity(np.array([0, 0, 1], np.uint16), np.array([0, 1, 2], np.uint16), 3)
    assert value == pytest.approx(36 ** (1 / 3), rel=1e-12)
    assert unigram_perplexity(np.zeros(0, np.int32), np.array([1]), 50) == pytest.approx(50)
    with pytest.raises(DataError, match="no validation tokens"):
        unigram_perplexity(np.array([1]), np.zeros(0, np.int32), 50)


ROWS = ["", " = Robert <unk> = \n", "", " Robert <unk> is an English film actor . \n"] * 3


def wikitext_folder(folder, rows=ROWS):
    import datasets

    for split in ("train", "validation"):
        datasets.Dataset.from_dict({"text": rows}).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def test_wikitext_by_the_original_recipe(tmp_path):
    tokenizer = load_tokenizer("gpt2")
    path, cache = str(wikitext_folder(tmp_path)), str(tmp_path / "cache")
    corpus = load_corpus(CorpusConfig(source="wikitext-2-v1", path=path, cache_dir=cache))
    assert corpus.train.tolist() == [token for row in ROWS for token in [*tokenizer.encode(row), 50256]]
    assert corpus.train_bytes == sum(len(row.encode()) for row in ROWS)

    if REAL_WIKITEXT.is_dir():
        validation = read_pieces(REAL_WIKITEXT / "validation-00000-of-00001.parquet", "text", len)
        assert len(pack(validation, tokenizer)[0]) == 259_821


@pytest.mark.slow
def test_wikitext_token_count_against_the_published_file(tmp_path):
    """The published file has " \\n", two tokens, where the data set has an empty row, and no end tokens."""
    tokenizer = load_tokenizer("gpt2")
    published = {wikitext_folder(tmp_path): sum(len(tokenizer.encode(row or " \n")) for row in ROWS)}
    if REAL_WIKITEXT.is_dir():
        published[REAL_WIKITEXT] = 2_448_382
    for folder, count in published.items():
        config = CorpusConfig(source="wikitext-2-v1", path=str(folder), cache_dir=str(tmp_path / "cache"))
        rows = [piece.text for piece in read_pieces(folder / "train-00000-of-00001.parquet", "text", len)]
        assert len(load_corpus(config).train) == count - 2 * rows.count("") + len(rows)


def test_gpt2_counts_published_for_wikitext_2_raw():
    """The raw test split joined as perplexities are usually reported on it."""
    tokenizer = load_tokenizer("gpt2")
    joined = tokenizer.encode(" = A title = \n\n\n A sentence . \n")
    assert tokenizer.decode(joined) == " = A title = \n\n\n A sentence . \n"

    real = SHARED / "data" / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet"
    if real.is_file():
        import datasets

        rows = datasets.load_dataset("parquet", data_files=[str(real)], split="train", streaming=True)
        assert len(tokenizer.encode("\n\n".join(row["text"] for row in rows))) == 287_644


def test_gpt2_equals_the_published_tokenizer_file():
    tokenizer = load_tokenizer("gpt2")
    texts = ["Hello world", " \n\n\tdef f(x):\n    return x**2  # naïve 日本語 🙂", "I'll we've 1234567 <|endoftext|>"]
    ids = tokenizer.encode_documents(texts)
    assert ids[0] == [15496, 995]
    assert tokenizer.encode(texts[2])[-1] == 50256

    real = SHARED / "data" / "gpt2" / "tokenizer.json"
    if real.is_file():
        published = load_tokenizer(str(real))
        assert published.encode_documents(texts) == ids
        assert published.encode(texts[2]) == tokenizer.encode(texts[2])
        assert (published.vocab_size, published.eos_id) == (50257, 50256)


def test_a_folder_that_cannot_be_the_named_corpus_is_noticed(tmp_path, caplog):
    for name in ("train", "validation", "test"):
        rows = datasets.Dataset.from_dict({"text": ["a <unk> word\n", "and more\n"]})
        rows.to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    config = CorpusConfig("wikitext-2-raw-v1", path=str(tmp_path), tokenizer="bytes", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="holds <unk> for rare words.*give --data.source wikitext-2-v1"):
        load_corpus(config)
    with caplog.at_level("WARNING", logger="train"):
        load_corpus(config.replace(source="wikitext-2-v1"))
    assert "2 rows of validation under" in caplog.text
