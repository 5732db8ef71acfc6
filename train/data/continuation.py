"""Text from a model as its tokens come: no character before all of its bytes are there, nothing of what ends it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax.config import ConfigError
from mhc_jax.decode import stream
from mhc_jax.functional import Params
from mhc_jax.nn.model import ModelConfig
from mhc_jax.sampling import Sampling
from train.data.tokenizer import Tokenizer


def sample(
    model: ModelConfig, params: Params, tokenizer: Tokenizer, sampling: Sampling, *, prompt: str = "", seed: int = 0
) -> str:
    """``prompt`` and its continuation, in one piece; see :func:`texts`."""
    (found,) = texts(model, params, tokenizer, [prompt], sampling, seed=seed)
    return prompt + "".join(found)


def texts(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> list[Iterator[str]]:
    """The continuation of each prompt, in pieces as they are computed.

    All are computed together, and may be read in any order: what comes meanwhile waits. Each is what its prompt gives
    alone. A row of tokens ends as ``sampling`` says, and at the tokenizer's end-of-text token, which is no part of the
    text; the text ends before any of ``stop``, wherever tokens are cut. An empty prompt starts a new text, after the
    end-of-text token (of characters, after a line end).

    Raises:
        ConfigError: at once, for a prompt of no tokens, one that is not Unicode or holds ids outside the model's
            vocabulary, or sampling options out of range.
    """
    rows = [_ids(tokenizer, prompt) for prompt in prompts]
    lengths = [len(row) for row in rows]
    ids_BT = [row + [0] * (max(lengths) - len(row)) for row in rows]
    new = stream(
        model,
        params,
        jnp.asarray(ids_BT),
        sampling.replace(eos_id=tokenizer.eos_id, vocab_size=tokenizer.vocab_size),
        lengths_B=lengths if len({*lengths}) > 1 else None,
        key=jnp.stack([jax.random.key(seed)] * len(rows)),
    )
    copies = itertools.tee(map(np.asarray, new), len(rows))
    return [until(decoded(tokenizer, _row(copy, index, tokenizer.eos_id)), stop) for index, copy in enumerate(copies)]


def _ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the prompt is not Unicode text: character {error.start} is half of one") from None
    ids = tokenizer.encode(prompt) if prompt else [tokenizer.start_id]
    if not ids:
        raise ConfigError(f"tokenizer {tokenizer.name!r} makes no tokens of the prompt {prompt!r}; give another one")
    return ids


def _row(new: Iterable[np.ndarray], index: int, eos_id: int | None) -> Iterator[int]:
    """The new tokens of one row, less what ends it."""
    ids = (int(token_B[index]) for token_B in new)
    return itertools.takewhile(lambda token: token >= 0 and token != eos_id, ids)


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
