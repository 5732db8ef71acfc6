"""Text as its tokens come: no character before all of its bytes are there, and nothing of what ends it."""

from collections.abc import Iterable, Iterator, Sequence

from train.data import Tokenizer

_UNFINISHED = "\ufffd"  # what half a character is decoded to


def decoded(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Pieces of text whose concatenation is the text of all ids; a character of several tokens comes with its last."""
    seen: list[int] = []
    start = done = 0  # the text of seen[:done] is out; decoding begins at a token before, on which it may depend
    for token in ids:
        seen.append(token)
        piece = _since(tokenizer, seen, start, done)
        if piece and not piece.endswith(_UNFINISHED):
            yield piece
            start, done = done, len(seen)
    if rest := _since(tokenizer, seen, start, done):
        yield rest


def _since(tokenizer: Tokenizer, seen: list[int], start: int, done: int) -> str:
    before = tokenizer.decode(seen[start:done])
    return tokenizer.decode(seen[start:])[len(before) :]


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the texts that stop them, of which no part is given out."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)]
            return
        keep = max((_overlap(held, stop) for stop in stops), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
