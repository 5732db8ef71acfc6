"""Text to token arrays: each row encoded on its own, the end token after each, all rows in one array."""

import dataclasses
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.config import DataConfig
from train.data.cache import cached_arrays, default_cache_dir
from train.data.errors import DataError
from train.data.sources import find_source
from train.data.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

# Changes whenever the same text and tokenizer would give other arrays.
PACKING_VERSION = 1
ENCODE_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens of each split, one flat array each.

    Attributes:
        train, validation: 1-D arrays of token ids, uint16 where the vocabulary is smaller than 65,536, else
            int32; read-only memory maps. Empty where the source lacks a split that was not asked for.
        train_bytes, validation_bytes: UTF-8 bytes of the text the tokens stand for. An end token stands
            for none, so bits per byte are bits per byte of text.
        tokenizer: what made the tokens.
        fingerprint: SHA-256 of the tokens of all splits and of the tokenizer.
        test: the test split, if there is one; ``max_eval_tokens`` cuts it too.
        test_bytes: its bytes.
        record: JSON-compatible: where the text comes from, versions, and SHA-256, rows, bytes and tokens of
            each whole split.
    """

    train: np.ndarray
    validation: np.ndarray
    train_bytes: int
    validation_bytes: int
    tokenizer: Tokenizer
    fingerprint: str
    test: np.ndarray | None = None
    test_bytes: int = 0
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


def load_corpus(config: DataConfig, *, needed: Sequence[str] = ("train", "validation")) -> Corpus:
    """Finds the text, encodes it if the cache does not hold its tokens yet, and gives the tokens.

    Args:
        config: what to read, how to encode it, how much of it to use.
        needed: splits the source has to have; others it has are loaded too.

    Raises:
        DataError: one line on whatever is missing or wrong: source, split, text, tokenizer, ids.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    source = find_source(config, needed)
    key = _sha256_json([PACKING_VERSION, source.digest, tokenizer.fingerprint])

    def make():
        log.info("reading and encoding %s, once", source.name)
        start = time.perf_counter()
        rows, record = source.read()
        arrays, splits = {}, {}
        for split, texts in rows.items():
            arrays[split] = pack(texts, tokenizer)
            splits[split] = _split_record(texts, arrays[split])
            if splits[split]["bytes"] == 0:
                raise DataError(f"data.source {source.name}: the {split} split holds no text")
        log.info("encoded %s in %.1f s", source.name, time.perf_counter() - start)
        return arrays, {"splits": splits, **record}

    folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir()
    arrays, record = cached_arrays(folder, key, make)
    limits = {"train": config.max_train_tokens, "validation": config.max_eval_tokens, "test": config.max_eval_tokens}
    tokens: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for split, array in arrays.items():
        check_ids(array, tokenizer.vocab_size, f"the {split} tokens of {source.name} under {folder}")
        limit = limits[split]
        cut = 0 < limit < len(array)
        tokens[split] = array[:limit] if cut else array
        sizes[split] = _text_bytes(tokens[split], tokenizer) if cut else record["splits"][split]["bytes"]
    nothing = np.zeros(0, token_dtype(tokenizer.vocab_size))
    return Corpus(
        train=tokens.get("train", nothing),
        validation=tokens.get("validation", nothing),
        train_bytes=sizes.get("train", 0),
        validation_bytes=sizes.get("validation", 0),
        tokenizer=tokenizer,
        fingerprint=_sha256_json(
            [tokenizer.fingerprint, {split: hashlib.sha256(array).hexdigest() for split, array in tokens.items()}]
        ),
        test=tokens.get("test"),
        test_bytes=sizes.get("test", 0),
        record={"source": source.name, "tokenizer": tokenizer.name, **record},
    )


def pack(rows: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """One flat array of the ids of every row in order, each row (a blank one too) followed by the end token."""
    dtype = token_dtype(tokenizer.vocab_size)
    parts = [np.zeros(0, dtype)]
    for start in range(0, len(rows), ENCODE_ROWS):
        encoded = tokenizer.encode_batch(rows[start : start + ENCODE_ROWS])
        ids = itertools.chain.from_iterable((*row, tokenizer.eos_id) for row in encoded)
        parts.append(np.fromiter(ids, dtype))
    return np.concatenate(parts)


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that token arrays are kept in."""
    return np.dtype(np.uint16 if vocab_size < 65_536 else np.int32)


def check_ids(tokens: np.ndarray, vocab_size: int, where: str) -> None:
    """Raises :class:`DataError` unless every id lies in ``range(vocab_size)``; ``where`` names the tokens."""
    if len(tokens) == 0 or (tokens.min() >= 0 and tokens.max() < vocab_size):
        return
    position = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
    raise DataError(f"{where}: token {position} is {int(tokens[position])}, outside the vocabulary of {vocab_size} ids")


def unigram_perplexity(train_tokens: np.ndarray, validation_tokens: np.ndarray, vocab_size: int) -> float:
    """Perplexity on validation of the model that knows only how often each token occurs in training.

    Add-one smoothing: ``p(v) = (count(v) + 1) / (len(train_tokens) + vocab_size)``.

    Args:
        train_tokens: 1-D integer array.
        validation_tokens: 1-D integer array, not empty.
        vocab_size: all ids are below it.

    Raises:
        DataError: no validation tokens.
    """
    if len(validation_tokens) == 0:
        raise DataError("no validation tokens to measure the unigram model on")
    train_counts = np.bincount(train_tokens, minlength=vocab_size)
    log_p = np.log(train_counts + 1) - np.log(len(train_tokens) + vocab_size)
    counts = np.bincount(validation_tokens, minlength=vocab_size)
    return float(np.exp(-(counts @ log_p) / len(validation_tokens)))


def _split_record(rows: Sequence[str], tokens: np.ndarray) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for row in rows:
        data = row.encode()
        digest.update(f"{len(data)}\n".encode() + data)
        size += len(data)
    return {"sha256": digest.hexdigest(), "rows": len(rows), "bytes": size, "tokens": len(tokens)}


def _text_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text of ``tokens``; off by at most 3 where the last token ends inside a character."""
    return len(tokenizer.decode(tokens.tolist()).encode())


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
