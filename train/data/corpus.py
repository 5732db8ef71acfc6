"""Tokens of a corpus. Text becomes one array: each row encoded on its own, the end token after each."""

import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.config import DataConfig
from train.data import fineweb
from train.data.cache import cache_folder, cached_arrays
from train.data.errors import DataError
from train.data.files import sha256_json
from train.data.sources import find_source
from train.data.tokenizer import CHARS, Tokenizer, load_tokenizer
from train.data.tokens import Split, Tokens, check_ids, token_dtype

log = logging.getLogger(__name__)

# Changes whenever the same text and tokenizer would give other arrays.
PACKING_VERSION = 1
ENCODE_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens of each split, one flat array each.

    Attributes:
        train, validation: 1-D arrays of token ids, uint16 where the vocabulary is smaller than 65,536, else
            int32; read-only memory maps, or :class:`ShardedTokens` of them. Empty where a split is neither
            found nor asked for.
        train_bytes, validation_bytes: UTF-8 bytes of the text the tokens stand for. An end token stands
            for none, so bits per byte are bits per byte of text.
        tokenizer: what made the tokens.
        fingerprint: SHA-256 of the tokens of all splits and of the tokenizer.
        test: the test split, if there is one; ``max_eval_tokens`` cuts it too.
        test_bytes: its bytes.
        record: JSON-compatible: where the text comes from, versions, and SHA-256, rows, bytes and tokens of
            each whole split; of shards, SHA-256 of each, bytes and tokens that are used.
    """

    train: Tokens
    validation: Tokens
    train_bytes: int
    validation_bytes: int
    tokenizer: Tokenizer
    fingerprint: str
    test: Tokens | None = None
    test_bytes: int = 0
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


def load_corpus(config: DataConfig, *, needed: Sequence[str] = ("train", "validation")) -> Corpus:
    """Finds token shards, or text, which it encodes if the cache does not hold its tokens yet; and gives the tokens.

    Args:
        config: what to read, how to encode it, how much of it to use.
        needed: splits the source has to have; of text, others it has are loaded too.

    Raises:
        DataError: one line on whatever is missing or wrong: source, split, text, shard, tokenizer, ids.
    """
    config = with_characters(config, needed)
    tokenizer = load_tokenizer(config.tokenizer)
    load_splits = fineweb.load_splits if config.source == fineweb.NAME else _encoded_splits
    splits, record = load_splits(config, tokenizer, needed)
    nothing = Split(np.zeros(0, token_dtype(tokenizer.vocab_size)), 0, "")
    train, validation = (splits.get(name, nothing) for name in ("train", "validation"))
    test = splits.get("test")
    return Corpus(
        train=train.tokens,
        validation=validation.tokens,
        train_bytes=train.n_bytes,
        validation_bytes=validation.n_bytes,
        tokenizer=tokenizer,
        fingerprint=sha256_json([tokenizer.fingerprint, {name: split.digest for name, split in splits.items()}]),
        test=test.tokens if test else None,
        test_bytes=test.n_bytes if test else 0,
        record={"source": config.source, "tokenizer": tokenizer.name, **record},
    )


def with_characters(config: DataConfig, needed: Sequence[str] = ("train", "validation")) -> DataConfig:
    """Spells the tokenizer ``"chars"`` out: ``"chars:"`` and the characters of the whole text, sorted.

    What a run keeps must say which character an id means, wherever its text has gone.

    Raises:
        DataError: see :func:`load_corpus`.
    """
    if config.tokenizer != CHARS:
        return config
    rows, _ = find_source(config, needed).read()
    characters = sorted({character for texts in rows.values() for text in texts for character in text})
    return config.replace(tokenizer=f"{CHARS}:{''.join(characters)}")


def _encoded_splits(
    config: DataConfig, tokenizer: Tokenizer, needed: Sequence[str]
) -> tuple[dict[str, Split], dict[str, Any]]:
    """The splits of a source of text, and a JSON-compatible record of where they come from."""
    source = find_source(config, needed)

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

    folder = cache_folder(config.cache_dir)
    key = sha256_json([PACKING_VERSION, source.digest, tokenizer.fingerprint])
    arrays, record = cached_arrays(folder, key, make)
    limits = {"train": config.max_train_tokens, "validation": config.max_eval_tokens, "test": config.max_eval_tokens}
    splits = {}
    for split, tokens in arrays.items():
        check_ids(tokens, tokenizer.vocab_size, f"the {split} tokens of {source.name} under {folder}")
        n_bytes = record["splits"][split]["bytes"]
        if 0 < limits[split] < len(tokens):
            tokens = tokens[: limits[split]]
            n_bytes = _text_bytes(tokens, tokenizer)
        splits[split] = Split(tokens, n_bytes, hashlib.sha256(tokens).hexdigest())
    return splits, record


def pack(rows: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """One flat array of the ids of every row in order, each row (a blank one too) followed by the end token, if any."""
    dtype = token_dtype(tokenizer.vocab_size)
    end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    parts = [np.zeros(0, dtype)]
    for start in range(0, len(rows), ENCODE_ROWS):
        encoded = tokenizer.encode_documents(rows[start : start + ENCODE_ROWS])
        ids = itertools.chain.from_iterable((*row, *end) for row in encoded)
        parts.append(np.fromiter(ids, dtype))
    return np.concatenate(parts)


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
