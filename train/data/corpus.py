"""Tokens of a corpus. Text becomes one array: each document encoded on its own, the end token after each."""

import dataclasses
import hashlib
import logging
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data import fineweb
from train.data.cache import cache_folder, cached_arrays
from train.data.config import CorpusConfig
from train.data.errors import DataError
from train.data.files import sha256_json
from train.data.sources import Source, find_source
from train.data.text import Piece, encoded_pieces
from train.data.tokenizer import CHARS, Tokenizer, load_tokenizer
from train.data.tokens import Split, Tokens, check_ids, token_dtype
from train.terminal.console import task

log = logging.getLogger(__name__)

# Of validation in WikiText-2 and in WikiText-103, raw and not.
WIKITEXT_ROWS = 3760
# Changes whenever the same text and tokenizer would give other arrays.
PACKING_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens of each split, one flat array each.

    Attributes:
        train, validation: 1-D arrays of token ids, uint16 where the vocabulary is smaller than 65,536, else
            int32; read-only memory maps, or :class:`ShardedTokens` of them. Empty where a split is neither
            found nor asked for.
        train_bytes, validation_bytes: UTF-8 bytes of the text the tokens stand for. An end token stands
            for none, so bits per byte are bits per byte of text.
        tokenizer: tokenizer of the tokens.
        fingerprint: SHA-256 of the tokens of all splits that are loaded and of the tokenizer.
        test: the test split, if it exists and is requested; ``max_eval_tokens`` also limits it.
        test_bytes: its bytes.
        record: JSON-compatible: files or versions that the text comes from, and documents, bytes and tokens that are
            used of each split; of shards, also SHA-256 of each.
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


def load_corpus(
    config: CorpusConfig, *, needed: Sequence[str] = ("train", "validation"), also: Sequence[str] = ()
) -> Corpus:
    """Finds token shards, or text, which it encodes if the cache does not hold its tokens yet; and gives the tokens.

    Args:
        config: the source, the tokenizer, and the number of tokens to use.
        needed: splits the source has to have.
        also: of text, splits that are loaded too if there are any.

    Raises:
        DataError: source, split, text, shard, tokenizer or ids are missing or wrong; one line says which.
    """
    config = with_characters(config, needed)
    tokenizer = load_tokenizer(config.tokenizer)
    if config.source == fineweb.NAME:
        splits, record = fineweb.load_splits(config, tokenizer, needed)
    else:
        splits, record = _encoded_splits(config, tokenizer, needed, also)
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


def with_characters(config: CorpusConfig, needed: Sequence[str] = ("train", "validation")) -> CorpusConfig:
    """Spells the tokenizer ``"chars"`` out: ``"chars:"`` and the characters of the whole text, sorted.

    What a run keeps must say which character an id means, wherever its text has gone.

    Raises:
        DataError: see :func:`load_corpus`.
    """
    if config.tokenizer != CHARS:
        return config
    source = find_source(config, needed)
    characters = {character for read in source.splits.values() for piece in read(len) for character in piece.text}
    return config.replace(tokenizer=f"{CHARS}:{''.join(sorted(characters))}")


def _encoded_splits(
    config: CorpusConfig, tokenizer: Tokenizer, needed: Sequence[str], also: Sequence[str]
) -> tuple[dict[str, Split], dict[str, Any]]:
    """The splits of a source of text, and a JSON-compatible record of where they come from."""
    source = find_source(config, needed)
    limits = {"train": config.max_train_tokens, "validation": config.max_eval_tokens, "test": config.max_eval_tokens}
    folder = cache_folder(config.cache_dir)
    splits, records = {}, {}
    for split in source.splits:
        if split not in (*needed, *also):
            continue
        tokens, records[split] = _encoded(source, split, tokenizer, limits[split], folder)
        check_ids(tokens, tokenizer.vocab_size, f"the {split} tokens of {source.name} under {folder}")
        splits[split] = Split(tokens, records[split]["bytes"], hashlib.sha256(tokens).hexdigest())
    if config.path and config.source.startswith("wikitext") and "validation" in splits:
        _check_wikitext(config, splits["validation"].tokens, records["validation"]["documents"], tokenizer)
    return splits, {"splits": records, **source.record}


def _check_wikitext(config: CorpusConfig, tokens: Tokens, rows: int, tokenizer: Tokenizer) -> None:
    """Whether a local folder can be the corpus of that name: a score on another one would bear the wrong name.

    Raises:
        DataError: it holds the form in which rare words are ``<unk>``, and the other one is asked for.
    """
    if "raw" in config.source and "<unk>" in tokenizer.decode(tokens[:20_000].tolist()):
        other = config.source.replace("-raw", "")
        raise DataError(
            f"--data.path {config.path} holds <unk> for rare words, which {config.source} has not; "
            f"give --data.source {other}, or another folder"
        )
    if not config.max_eval_tokens and rows != WIKITEXT_ROWS:
        log.warning("warning: %s rows of validation under %s; WikiText has %s", f"{rows:,}", config.path, WIKITEXT_ROWS)


def _encoded(
    source: Source, split: str, tokenizer: Tokenizer, limit: int, folder: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """The first ``limit`` tokens of a split, or all, out of the cache; and their record."""

    def make():
        what = f"the {split} split of {source.name} with {tokenizer.name}"
        log.info("encoding %s, once: %.1f MB of files", what, source.size / 1e6)
        start = time.perf_counter()
        with task(f"encoding the {split} split", spell=lambda size: f"{size / 1e6:.1f} MB", quiet=True) as work:
            pieces = work.over(source.splits[split](tokenizer.last_cut), size=lambda piece: len(piece.text))
            tokens, record = pack(pieces, tokenizer, limit=limit, folder=folder)
        if record["bytes"] == 0:
            raise DataError(f"--data.source {source.name}: the {split} split holds no text")
        log.info("encoded %s: %s tokens in %.1f s", what, f"{len(tokens):,}", time.perf_counter() - start)
        return {split: tokens}, record

    key = sha256_json([PACKING_VERSION, source.digest, split, limit, tokenizer.fingerprint])
    arrays, record = cached_arrays(folder, key, make)
    return arrays[split], record


def pack(
    pieces: Iterable[Piece], tokenizer: Tokenizer, *, limit: int = 0, folder: Path | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """One flat array of the ids of all documents in order, each (a blank one too) followed by the end token, if any.

    Args:
        pieces: of the documents; no more of them are read than are needed.
        tokenizer: tokenizer to encode them with.
        limit: number of ids to produce; 0 for all.
        folder: folder of the ids until the array, a memory map, is no longer used.

    Returns:
        1-D, uint16 or int32; and how many ``documents`` (the last one cut off, perhaps), ``bytes`` of UTF-8 and
        ``tokens`` there are. An end token stands for no bytes, a last token for whole characters.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    total = n_bytes = documents = 0
    with tempfile.TemporaryFile(dir=folder) as file:
        for piece, ids in encoded_pieces(pieces, tokenizer):
            documents += piece.ends
            if piece.ends and tokenizer.eos_id is not None:
                ids.append(tokenizer.eos_id)
            if 0 < limit < total + len(ids):
                del ids[limit - total :]
                n_bytes += tokenizer.prefix_bytes(piece.text, len(ids))
            else:
                n_bytes += len(piece.text.encode())
            file.write(np.array(ids, dtype).tobytes())
            total += len(ids)
            if 0 < limit <= total:
                break
        file.flush()
        tokens = np.memmap(file, dtype, mode="r", shape=(total,)) if total else np.zeros(0, dtype)
    return tokens, {"documents": documents, "bytes": n_bytes, "tokens": total}
