"""Flat arrays of token ids, whole or in shards, and their operations."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from train.data.errors import DataError

PIECE = 1 << 24


class ShardedTokens:
    """Token arrays that read as one, in their order, and are never joined in memory.

    ``len()`` and slices are those of ``np.concatenate(shards)``.

    Args:
        shards: 1-D integer arrays of one dtype, usually memory maps; at least one.
        counts: number of occurrences of each id, shape (V,), which takes reading all tokens.
    """

    def __init__(self, shards: Sequence[np.ndarray], counts: np.ndarray):
        self.counts = counts
        self._shards = tuple(shards)
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, step = window.indices(len(self))
        if step != 1:
            raise IndexError(f"tokens in shards are read in steps of 1, not {step}")
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right")
        pieces = []
        for shard, end in zip(self._shards[first : last + 1], self._ends[first : last + 1]):
            begin = end - len(shard)
            pieces.append(shard[max(start - begin, 0) : max(stop - begin, 0)])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self._shards[0][:0]])


Tokens = np.ndarray | ShardedTokens


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a corpus.

    Attributes:
        tokens: all of it that is to be used.
        n_bytes: UTF-8 bytes of the text they stand for.
        digest: SHA-256 that changes with any of them.
    """

    tokens: Tokens
    n_bytes: int
    digest: str


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that token arrays are kept in."""
    return np.dtype(np.uint16 if vocab_size < 65_536 else np.int32)


def check_ids(tokens: Tokens, vocab_size: int, where: str) -> None:
    """Raises :class:`DataError` unless every id lies in ``range(vocab_size)``; ``where`` names the tokens."""
    for start, piece in _pieces(tokens):
        if piece.min() >= 0 and piece.max() < vocab_size:
            continue
        position = int(np.argmax((piece < 0) | (piece >= vocab_size)))
        raise DataError(
            f"{where}: token {start + position} is {int(piece[position])}, outside the vocabulary of {vocab_size} ids"
        )


def token_counts(tokens: Tokens, vocab_size: int) -> np.ndarray:
    """Number of occurrences of each id, int64 of shape (vocab_size,). All ids are below ``vocab_size``."""
    if isinstance(tokens, ShardedTokens):
        return np.pad(tokens.counts, (0, vocab_size - len(tokens.counts)))
    counts = np.zeros(vocab_size, np.int64)
    for _, piece in _pieces(tokens):
        counts += np.bincount(piece, minlength=vocab_size)
    return counts


def unigram_perplexity(train_tokens: Tokens, validation_tokens: Tokens, vocab_size: int) -> float:
    """Perplexity on validation of the model that knows only how often each token occurs in training.

    Add-one smoothing: ``p(v) = (count(v) + 1) / (len(train_tokens) + vocab_size)``.

    Args:
        train_tokens: 1-D, integer.
        validation_tokens: 1-D, integer, not empty.
        vocab_size: all ids are below it.

    Raises:
        DataError: no validation tokens.
    """
    if len(validation_tokens) == 0:
        raise DataError("no validation tokens to measure the unigram model on")
    log_p = np.log(token_counts(train_tokens, vocab_size) + 1) - np.log(len(train_tokens) + vocab_size)
    return float(np.exp(-(token_counts(validation_tokens, vocab_size) @ log_p) / len(validation_tokens)))


def _pieces(tokens: Tokens) -> Iterator[tuple[int, np.ndarray]]:
    """So much at a time that copies of a piece fit any memory; each with the position where it starts."""
    for start in range(0, len(tokens), PIECE):
        yield start, tokens[start : start + PIECE]
