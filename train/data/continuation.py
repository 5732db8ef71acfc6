"""Text from a model as its tokens come: no character before all of its bytes are there, nothing of what ends it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.config import ConfigError
from mhc_jax.decode import stream
from mhc_jax.functional import Params
from mhc_jax.nn.model import ModelConfig
from train.data.tokenizer import Tokenizer


def sample(model: ModelConfig, params: Params, tokenizer: Tokenizer, *, prompt: str = "", **options: Any) -> str:
    """``prompt`` and its continuation, in one piece; see :func:`pieces`."""
    return prompt + "".join(pieces(model, params, tokenizer, prompt=prompt, **options))


def pieces(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    prompt: str = "",
    tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The continuation of ``prompt`` by at most ``tokens`` tokens, in pieces as they are computed.

    It ends at the end-of-text token, and before any of the texts in ``stop``. An empty prompt starts a new text, after
    the end-of-text token (of characters, after a line end).

    Raises:
        ConfigError: at once, for a prompt of no tokens, one that is not Unicode or holds ids outside the model's
            vocabulary, or sampling options out of range.
    """
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, got {tokens}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the prompt is not Unicode text: character {error.start} is half of one") from None
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.start_id]
    if not ids:
        raise ConfigError(f"tokenizer {tokenizer.name!r} makes no tokens of the prompt {prompt!r}; give another one")
    new = stream(
        model,
        params,
        jnp.asarray([ids]),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        key=jax.random.key(seed),
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
    )
    ids = (int(token_B[0]) for token_B in itertools.islice(new, tokens))
    return until(decoded(tokenizer, itertools.takewhile(lambda token: token != tokenizer.eos_id, ids)), stop)


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
