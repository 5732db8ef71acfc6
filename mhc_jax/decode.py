"""Decoding with a cache: a prompt at once, then one token after another in constant time each.

Past ``max_len`` a model whose mixers carry a state of fixed size goes on with that state, at the last learned position;
one whose memory is full sees the last ``max_len`` tokens, as nanoGPT does, computed anew for every token.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mhc_jax.config import ConfigError, check_name
from mhc_jax.functional import Params, bind, check_params, checked_tokens, precision
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.sampling import Sampling, sample_token

Cache = dict[str, Any]

# Tokens of a prompt that :func:`stream` reads at once; the rest of it one by one.
PIECE = 16


def init_cache(
    config: ModelConfig, params: Params, batch: int, *, max_len: int | None = None, start_B: ArrayLike | None = None
) -> Cache:
    """The cache before the first token.

    Args:
        config, params: the model.
        batch: B.
        max_len: tokens that it has room for; ``config.max_len`` if omitted.
        start_B: for rows of unequal length that end together, the column of each row's first token; what lies before
            it is padding that no token sees.

    Returns:
        ``{"state": of the model, "column": of the next token, "capacity": max_len, "start_B": as given}``.
    """
    max_len = config.max_len if max_len is None else max_len
    return {
        "state": bind(config, params).init_state(batch, max_len),
        "column": jnp.zeros((), jnp.int32),
        "capacity": jnp.asarray(max_len, jnp.int32),
        "start_B": None if start_B is None else jnp.asarray(start_B, jnp.int32),
    }


def extend(config: ModelConfig, params: Params, tokens_BT: ArrayLike, cache: Cache) -> tuple[jax.Array, Cache]:
    """Logits (B, T, V) of tokens that follow those in ``cache``, and the cache after them; a prompt or one token.

    Raises:
        ConfigError: parameters that are not the model's, tokens that are not (B, T) integers inside the vocabulary or
            longer than ``config.max_len``, or a cache that is known to have no room for them.
    """
    tokens_BT = jnp.asarray(checked_tokens(config, tokens_BT))
    end = cache["column"] + tokens_BT.shape[1]
    if not isinstance(end, jax.core.Tracer) and end > cache["capacity"] and not _goes_on(config, params):
        raise ConfigError(f"a cache of {cache['capacity']} tokens cannot hold {end}; give init_cache a larger max_len")
    model, hidden_BTD, cache = _advance(config, params, tokens_BT, cache)
    with precision(config):
        return model.logits(hidden_BTD), cache


def _advance(config, params, tokens_BT, cache):
    """The bound model, its hidden states for the tokens, and the cache after them."""
    T, start_B = tokens_BT.shape[1], cache["start_B"]
    scope = Scope(_positions(cache["column"] + jnp.arange(T), start_B), column=cache["column"], start_B=start_B)
    model = bind(config, params)
    with precision(config):
        hidden_BTD, state = model(tokens_BT, cache["state"], scope)
    return model, hidden_BTD, cache | {"state": state, "column": cache["column"] + T}


def _positions(columns_T, start_B):
    """Counted from each row's first token, (B, T); (1, T) where all rows begin at column 0."""
    return columns_T[None] if start_B is None else jnp.maximum(columns_T - start_B[:, None], 0)


def generate(
    config: ModelConfig,
    params: Params,
    prompt_BT: ArrayLike,
    *,
    max_new_tokens: int,
    lengths_B: ArrayLike | None = None,
    key: jax.Array | None = None,
    **sampling: Any,
) -> jax.Array:
    """Continues every prompt by ``max_new_tokens`` tokens, also beyond ``config.max_len``.

    Args:
        config, params: the model.
        prompt_BT: token ids (B, T).
        max_new_tokens: how many.
        lengths_B: how many tokens of each row are its prompt, 1 to T; what follows them is not looked at. All T if
            omitted. At temperature 0 every row gives what it gives alone.
        key: randomness; needed unless ``temperature`` is 0.
        sampling: fields of :class:`Sampling`.

    Returns:
        Prompts and continuations, (B, T + max_new_tokens): those of row b are its first ``lengths_B[b] +
        max_new_tokens`` tokens, and what follows them is 0.

    Raises:
        ConfigError: parameters that are not the model's, an empty prompt, ids outside the vocabulary, or options out
            of range.
    """
    options = _options(sampling)
    prompt_BT, start_B, key = _checked(config, params, prompt_BT, lengths_B, key, options)
    whole = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
    if not whole or not 1 <= max_new_tokens < 2**31:
        raise ConfigError(f"max_new_tokens must be a whole number from 1 to {2**31 - 1}, got {max_new_tokens}")
    new_BT = _generate(config, params, prompt_BT, start_B, key, int(max_new_tokens), options)
    text_BT = jnp.concatenate([prompt_BT, new_BT.astype(prompt_BT.dtype)], axis=1)
    return text_BT if start_B is None else _flush_left(text_BT, start_B)


def stream(
    config: ModelConfig,
    params: Params,
    prompt_BT: ArrayLike,
    *,
    lengths_B: ArrayLike | None = None,
    key: jax.Array | None = None,
    **sampling: Any,
) -> Iterator[jax.Array]:
    """The new tokens (B,) of :func:`generate`, one after another as they are computed, without end.

    Raises:
        ConfigError: as :func:`generate`, at once.
    """
    options = _options(sampling)
    prompt_BT, start_B, key = _checked(config, params, prompt_BT, lengths_B, key, options)
    return _stream(config, params, prompt_BT, start_B, key, options)


def _options(sampling: dict[str, Any]) -> Sampling:
    fields = {field.name for field in dataclasses.fields(Sampling)}
    for name in sampling:
        check_name("sampling option", name, fields)
    return Sampling(**sampling)


def _stream(config, params, prompt_BT, start_B, key, sampling):
    by_step, prompt_BT, start_B = _split(config, params, prompt_BT, start_B, sys.maxsize)
    token_B, cache = _first_by_pieces(config, params, prompt_BT, start_B, key, sampling)
    yield token_B
    tokens, window = [token_B], None
    for index in itertools.count(1):
        if index < by_step:
            token_B, cache = _next(config, params, token_B, cache, key, index, sampling)
            if by_step < sys.maxsize:
                tokens.append(token_B)
        else:
            if window is None:
                window = *_window(config, prompt_BT, jnp.stack(tokens, axis=1), start_B), cache["seen_BV"]
            window, token_B = _slid(config, params, window, key, index, sampling)
        yield token_B


def _checked(config, params, prompt_BT, lengths_B, key, sampling):
    """Prompts that end together, where they start, and the key. Raises ConfigError, see :func:`generate`."""
    check_params(config, params)
    config.check_next_token()
    prompt_BT = jnp.asarray(checked_tokens(config.replace(max_len=sys.maxsize), prompt_BT))
    sampling.validate()
    for name, least, most in (("eos_id", 0, config.vocab_size - 1), ("vocab_size", 1, config.vocab_size)):
        value = getattr(sampling, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} must lie in {least}..{most} for this model, got {value}")
    if key is None and sampling.temperature > 0:
        raise ConfigError("sampling needs a key (or temperature 0)")
    key = jax.random.key(0) if key is None else key  # unused: the most likely token is taken
    if lengths_B is None:
        return prompt_BT, None, key
    B, T = prompt_BT.shape
    lengths_B = np.asarray(lengths_B)
    fits = lengths_B.shape == (B,) and np.issubdtype(lengths_B.dtype, np.integer)
    if not fits or lengths_B.min() < 1 or lengths_B.max() > T:
        raise ConfigError(f"lengths_B must be {B} whole numbers from 1 to {T}, one for each prompt")
    start_B = T - jnp.asarray(lengths_B, jnp.int32)
    columns_BT = jnp.maximum(jnp.arange(T) - start_B[:, None], 0)
    return jnp.take_along_axis(prompt_BT, columns_BT, axis=1), start_B, key


def _flush_left(text_BT, start_B):
    """Rows that begin together, with zeros after them."""
    columns_BT = jnp.arange(text_BT.shape[1]) + start_B[:, None]
    text_BT = jnp.take_along_axis(text_BT, columns_BT, axis=1, mode="clip")
    return jnp.where(columns_BT < text_BT.shape[1], text_BT, 0)


def _split(config, params, prompt_BT, start_B, count):
    """How many of so many tokens are computed one by one from the cache, and the part of the prompts that is seen."""
    if _goes_on(config, params):
        return count, prompt_BT, start_B
    cut = max(prompt_BT.shape[1] - config.max_len, 0)
    start_B = None if start_B is None else jnp.maximum(start_B - cut, 0)
    prompt_BT = prompt_BT[:, cut:]
    return min(count, config.max_len - prompt_BT.shape[1] + 1), prompt_BT, start_B


def _goes_on(config: ModelConfig, params: Params) -> bool:
    """Whether the model's state is of one size, however long the text."""

    def shapes(max_len):
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: bind(config, params).init_state(1, max_len)))

    return shapes(1) == shapes(2)


def _draw(logits_BV, seen_BV, key, index, sampling):
    """Token number ``index`` of the continuation."""
    if seen_BV is not None:
        factor_BV = jnp.where(logits_BV > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        logits_BV = jnp.where(seen_BV, logits_BV * factor_BV, logits_BV)
    return sample_token(
        logits_BV[:, : sampling.vocab_size],
        jax.random.fold_in(key, index),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )


def _seen(config, text_BT, start_B, sampling):
    """Which tokens the texts hold, (B, V); None where nobody asks."""
    if sampling.repetition_penalty == 1:
        return None
    B, T = text_BT.shape
    real_BT = jnp.ones((B, T), bool) if start_B is None else jnp.arange(T) >= start_B[:, None]
    return jnp.zeros((B, config.vocab_size), bool).at[jnp.arange(B)[:, None], text_BT].max(real_BT)


def _with(seen_BV, token_B):
    return None if seen_BV is None else seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)


def _ended(token_B, next_B, index, sampling):
    """``next_B``, or the end again; what ends in the prompt, before token number 0, does not end the continuation."""
    if sampling.eos_id is None:
        return next_B
    return jnp.where((token_B == sampling.eos_id) & (index > 0), sampling.eos_id, next_B)


def _last_logits(config, model, hidden_BTD):
    """Logits (B, V) after the last token."""
    with precision(config):
        return model.logits(hidden_BTD[:, -1:])[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _first(config, params, prompt_BT, start_B, key, capacity, sampling):
    """The first token after the prompt, and the cache after the prompt."""
    cache = init_cache(config, params, prompt_BT.shape[0], max_len=capacity, start_B=start_B)
    model, hidden_BTD, cache = _advance(config, params, prompt_BT, cache)
    seen_BV = _seen(config, prompt_BT, start_B, sampling)
    token_B = _draw(_last_logits(config, model, hidden_BTD), seen_BV, key, 0, sampling)
    return token_B, cache | {"seen_BV": _with(seen_BV, token_B)}


def _first_by_pieces(config, params, prompt_BT, start_B, key, sampling):
    """:func:`_first` by programs that are compiled once for prompts of all lengths, where rows are equally long."""
    if start_B is not None:
        return _first(config, params, prompt_BT, start_B, key, config.max_len, sampling)
    prompt_BT = np.asarray(prompt_BT, np.int32)
    B, T = prompt_BT.shape
    token_B, cache = None, init_cache(config, params, B)
    seen_BV = _seen(config, prompt_BT, None, sampling)
    whole = (T - 1) // PIECE * PIECE
    for start in range(0, whole, PIECE):
        cache = _after(config, params, prompt_BT[:, start : start + PIECE], cache)
    for place in range(whole, T):  # each draws a token, of which the last one alone counts
        token_B, cache = _next(config, params, prompt_BT[:, place], cache | {"seen_BV": seen_BV}, key, 0, sampling)
    return token_B, cache


@functools.partial(jax.jit, static_argnums=0)
def _after(config, params, tokens_BT, cache):
    """The cache after these tokens."""
    return _advance(config, params, tokens_BT, cache)[2]


@functools.partial(jax.jit, static_argnums=(0, 6))
def _next(config, params, token_B, cache, key, index, sampling):
    """The token after ``token_B``, and the cache after ``token_B``."""
    model, hidden_B1D, cache = _advance(config, params, token_B[:, None], cache)
    seen_BV = cache["seen_BV"]
    next_B = _draw(_last_logits(config, model, hidden_B1D), seen_BV, key, index, sampling)
    next_B = _ended(token_B, next_B, index, sampling)
    return next_B, cache | {"seen_BV": _with(seen_BV, next_B)}


def _window(config, prompt_BT, new_BT, start_B):
    """The last ``max_len`` tokens, and where they start."""
    text_BT = jnp.concatenate([prompt_BT, new_BT.astype(prompt_BT.dtype)], axis=1)
    cut = text_BT.shape[1] - config.max_len
    return text_BT[:, cut:], None if start_B is None else jnp.maximum(start_B - cut, 0)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _slid(config, params, window, key, index, sampling):
    """The window moved on by the token after it, and that token."""
    window_BT, start_B, seen_BV = window
    columns_T = jnp.arange(window_BT.shape[1])
    padding = None if start_B is None else (columns_T < start_B[:, None]).astype(jnp.int32)
    model = bind(config, params)
    with precision(config):
        hidden_BTD, _ = model(window_BT, None, Scope(_positions(columns_T, start_B), segments_BT=padding))
    next_B = _draw(_last_logits(config, model, hidden_BTD), seen_BV, key, index, sampling)
    next_B = _ended(window_BT[:, -1], next_B, index, sampling).astype(window_BT.dtype)
    start_B = None if start_B is None else jnp.maximum(start_B - 1, 0)
    window_BT = jnp.concatenate([window_BT[:, 1:], next_B[:, None]], axis=1)
    return (window_BT, start_B, _with(seen_BV, next_B)), next_B


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _generate(config, params, prompt_BT, start_B, key, count, sampling):
    by_step, prompt_BT, start_B = _split(config, params, prompt_BT, start_B, count)
    capacity = prompt_BT.shape[1] + by_step - 1  # the last token is not read any more
    first_B, cache = _first(config, params, prompt_BT, start_B, key, capacity, sampling)

    def from_cache(carry, index):
        token_B, cache = carry
        following = _next(config, params, token_B, cache, key, index, sampling)
        return following, following[0]

    (_, cache), next_TB = jax.lax.scan(from_cache, (first_B, cache), jnp.arange(1, by_step))
    new_BT = jnp.concatenate([first_B[None], next_TB]).T
    if by_step == count:
        return new_BT

    def from_window(window, index):
        return _slid(config, params, window, key, index, sampling)

    window = *_window(config, prompt_BT, new_BT, start_B), cache["seen_BV"]
    _, slid_TB = jax.lax.scan(from_window, window, jnp.arange(by_step, count))
    return jnp.concatenate([new_BT.astype(slid_TB.dtype), slid_TB.T], axis=1)
