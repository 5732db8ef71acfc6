"""Decoding with a cache: the prompt at once, then one token after another, each in constant time.

Beyond ``max_len``, a model whose mixers carry a state of fixed size continues with that state, at the last learned
position. Any other model sees only the last ``max_len`` tokens, recomputed for every new token, as in nanoGPT.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, bind, check_params, checked_tokens, precision
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.sampling import Sampling, before_the_first, draw

Cache = dict[str, Any]

# Prompt tokens that :func:`stream` reads at once; the remainder is read one by one.
PIECE = 16


def init_cache(
    config: ModelConfig, params: Params, batch: int, *, max_len: int | None = None, start_B: ArrayLike | None = None
) -> Cache:
    """The cache before the first token.

    Args:
        config, params: the model.
        batch: B.
        max_len: capacity in tokens; ``config.max_len`` if omitted.
        start_B: for rows of unequal length that end together, the column of each row's first token; columns
            before it are padding that no token sees.

    Returns:
        ``{"state": of the model, "column": of the next token, "capacity": max_len, "start_B": as given}``, arrays of
        its own that may be donated to a compiled :func:`extend`, which then writes where they are.

    Raises:
        ConfigError: parameters that are not the model's, or sizes or columns that are none.
    """
    max_len = config.max_len if max_len is None else max_len
    for name, size in (("batch", batch), ("max_len", max_len)):
        if not isinstance(size, int | np.integer) or size < 1:
            raise ConfigError(f"{name} must be a whole number, at least 1, got {size!r}")
    start_B = None if start_B is None else jnp.array(start_B)
    if start_B is not None and not (start_B.shape == (batch,) and jnp.issubdtype(start_B.dtype, jnp.integer)):
        raise ConfigError(f"start_B must be {batch} whole numbers, got shape {start_B.shape} and dtype {start_B.dtype}")
    return {
        "state": bind(config, params).init_state(batch, max_len),
        "column": jnp.zeros((), jnp.int32),
        "capacity": jnp.asarray(max_len, jnp.int32),
        "start_B": None if start_B is None else start_B.astype(jnp.int32),
    }


def extend(config: ModelConfig, params: Params, tokens_BT: ArrayLike, cache: Cache) -> tuple[jax.Array, Cache]:
    """Logits (B, T, V) for tokens that follow those in ``cache``, a prompt or one token, and the cache after them.

    Raises:
        ConfigError: parameters that are not the model's, tokens that are not (B, T) integers inside the vocabulary or
            longer than ``config.max_len``, or a cache of other rows or known to have no room for them.
    """
    tokens_BT = jnp.asarray(checked_tokens(config, tokens_BT))
    end = cache["column"] + tokens_BT.shape[1]
    if not isinstance(end, jax.core.Tracer) and end > cache["capacity"] and not goes_on(config, params):
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
    """Positions counted from the first token of each row, (B, T); (1, T) if all rows begin at column 0."""
    return columns_T[None] if start_B is None else jnp.maximum(columns_T - start_B[:, None], 0)


def generate(
    config: ModelConfig,
    params: Params,
    prompt_BT: ArrayLike,
    sampling: Sampling | None = None,
    *,
    lengths_B: ArrayLike | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Continues every prompt by ``max_new_tokens`` tokens or up to a stop, also beyond ``config.max_len``.

    Args:
        config, params: the model.
        prompt_BT: token ids (B, T). T may exceed ``config.max_len``; see :mod:`mhc_jax.decode` for what is then seen.
        sampling: options for drawing; see :class:`Sampling`.
        lengths_B: number of prompt tokens in each row, 1 to T; all T if omitted. The tokens after them are ignored. At
            temperature 0, or with one key per row, the result of a row does not depend on the other rows.
        key: one key for all rows, or (B,) keys, one for each row; needed unless ``temperature`` is 0.
        options: fields of ``sampling`` to change, as in ``generate(config, params, prompt, temperature=0.7, key=key)``.

    Returns:
        Prompts and continuations, (B, T + max_new_tokens). A row has its prompt, then its new tokens, a stop sequence
        included, then 0 (after an end, up to ``max_new_tokens``, ``eos_id`` if there is one). The lengths of the texts
        are a result of :func:`generate_with_lengths`.

    Raises:
        ConfigError: parameters that are not the model's, an empty prompt, ids outside the vocabulary, or options out
            of range.
    """
    return generate_with_lengths(config, params, prompt_BT, sampling, lengths_B=lengths_B, key=key, **options)[0]


def generate_with_lengths(
    config: ModelConfig,
    params: Params,
    prompt_BT: ArrayLike,
    sampling: Sampling | None = None,
    *,
    lengths_B: ArrayLike | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """The result of :func:`generate`, and the number of tokens of each row, (B,): its prompt and its new tokens.

    The tokens of a stop sequence count, later ones do not. Decoding ends as soon as all rows have ended.
    """
    sampling = _settled(sampling, options)
    prompt_BT, start_B, key = _checked(config, params, prompt_BT, lengths_B, key, sampling)
    new_BT, count_B = _generate(config, params, prompt_BT, start_B, key, sampling)
    text_BT, length_B = jnp.concatenate([prompt_BT, new_BT.astype(prompt_BT.dtype)], axis=1), prompt_BT.shape[1]
    if start_B is not None:
        text_BT, length_B = _flush_left(text_BT, start_B), length_B - start_B
    return text_BT, length_B + count_B


def stream(
    config: ModelConfig,
    params: Params,
    prompt_BT: ArrayLike,
    sampling: Sampling | None = None,
    *,
    lengths_B: ArrayLike | None = None,
    key: jax.Array | None = None,
    **options: Any,
) -> Iterator[jax.Array]:
    """The new tokens (B,) of :func:`generate`, one after another as they are computed; -1 for a row that has ended.

    Raises:
        ConfigError: as :func:`generate`, at once.
    """
    sampling = _settled(sampling, options)
    prompt_BT, start_B, key = _checked(config, params, prompt_BT, lengths_B, key, sampling)
    return _stream(config, params, prompt_BT, start_B, key, sampling)


def _settled(sampling: Sampling | None, options: dict[str, Any]) -> Sampling:
    """The options as one record. Raises ConfigError, see :func:`generate`."""
    sampling = Sampling.from_dict((sampling or Sampling()).to_dict() | options)
    sampling.validate()
    return sampling


def _stream(config, params, prompt_BT, start_B, key, sampling):
    count, sampling = sampling.max_new_tokens, sampling.replace(max_new_tokens=1)  # one program for all counts
    by_step, prompt_BT, start_B = _split(config, params, prompt_BT, start_B, count)
    token_B, cache, past = _first_by_pieces(config, params, prompt_BT, start_B, key, sampling)
    yield token_B
    tokens, window = [token_B], None
    for index in range(1, count):
        ended_B = past["ended_B"]
        if sampling.ends and ended_B.all():
            return
        if index < by_step:
            token_B, cache, past = _next(config, params, token_B, cache, past, key, index, sampling)
            if by_step < count:
                tokens.append(token_B)
        else:
            if window is None:
                window = _window(config, prompt_BT, jnp.stack(tokens, axis=1), start_B)
            window, token_B, past = _slid(config, params, window, past, key, index, sampling)
        yield jnp.where(ended_B, -1, token_B) if sampling.ends else token_B


def _checked(config, params, prompt_BT, lengths_B, key, sampling):
    """Prompts that end together, their first columns, and the key. Raises ConfigError, see :func:`generate`."""
    check_params(config, params)
    config.check_next_token()
    prompt_BT = jnp.asarray(checked_tokens(config.replace(max_len=sys.maxsize), prompt_BT))
    sampling.check_ids(config.vocab_size)
    (B, T), key = prompt_BT.shape, _checked_key(key, prompt_BT.shape[0], sampling)
    if lengths_B is None:
        return prompt_BT, None, key
    lengths_B = np.asarray(lengths_B)
    fits = lengths_B.shape == (B,) and np.issubdtype(lengths_B.dtype, np.integer)
    if not fits or lengths_B.min() < 1 or lengths_B.max() > T:
        raise ConfigError(f"lengths_B must be {B} whole numbers from 1 to {T}, one for each prompt")
    start_B = T - jnp.asarray(lengths_B, jnp.int32)
    columns_BT = jnp.maximum(jnp.arange(T) - start_B[:, None], 0)
    return jnp.take_along_axis(prompt_BT, columns_BT, axis=1), start_B, key


def _checked_key(key, batch, sampling):
    if key is None:
        if sampling.temperature > 0:
            raise ConfigError("sampling needs a key (or temperature 0)")
        return jax.random.key(0)  # unused: the most likely token is taken
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.shape not in ((), (batch,)):
        raise ConfigError(f"key must be one key, or one for each of {batch} prompts, got keys of shape {key.shape}")
    return key


def _flush_left(text_BT, start_B):
    """Rows that begin together, followed by zeros."""
    columns_BT = jnp.arange(text_BT.shape[1]) + start_B[:, None]
    text_BT = jnp.take_along_axis(text_BT, columns_BT, axis=1, mode="clip")
    return jnp.where(columns_BT < text_BT.shape[1], text_BT, 0)


def _split(config, params, prompt_BT, start_B, count):
    """How many of the ``count`` new tokens are computed from the cache, and the part of the prompts that is seen."""
    if goes_on(config, params):
        return count, prompt_BT, start_B
    cut = max(prompt_BT.shape[1] - config.max_len, 0)
    start_B = None if start_B is None else jnp.maximum(start_B - cut, 0)
    prompt_BT = prompt_BT[:, cut:]
    return min(count, config.max_len - prompt_BT.shape[1] + 1), prompt_BT, start_B


def goes_on(config: ModelConfig, params: Params) -> bool:
    """Whether the size of the model's state is independent of the length of the text, so that all of it is seen."""

    def shapes(max_len):
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: bind(config, params).init_state(1, max_len)))

    return shapes(1) == shapes(2)


def _last_logits(config, model, hidden_BTD):
    """Logits (B, V) after the last token."""
    with precision(config):
        return model.logits(hidden_BTD[:, -1:])[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _first(config, params, prompt_BT, start_B, key, capacity, sampling):
    """The first token after the prompt, the cache after the prompt, and the past for the next draw."""
    cache = init_cache(config, params, prompt_BT.shape[0], max_len=capacity, start_B=start_B)
    model, hidden_BTD, cache = _advance(config, params, prompt_BT, cache)
    past = before_the_first(sampling, prompt_BT, start_B, config.vocab_size)
    token_B, past = draw(_last_logits(config, model, hidden_BTD), past, key, 0, sampling)
    return token_B, cache, past


def _first_by_pieces(config, params, prompt_BT, start_B, key, sampling):
    """:func:`_first` with programs that are compiled once for all lengths of prompts, if all rows have one length."""
    if start_B is not None:
        return _first(config, params, prompt_BT, start_B, key, config.max_len, sampling)
    prompt_BT = np.asarray(prompt_BT, np.int32)
    B, T = prompt_BT.shape
    cache, past = init_cache(config, params, B), before_the_first(sampling, prompt_BT, None, config.vocab_size)
    whole = (T - 1) // PIECE * PIECE
    for start in range(0, whole, PIECE):
        cache = _after(config, params, prompt_BT[:, start : start + PIECE], cache)
    found = None, cache, past
    for place in range(whole, T):  # each step draws a token, but only the last one counts
        found = _next(config, params, prompt_BT[:, place], found[1], past, key, 0, sampling)
    return found


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _after(config, params, tokens_BT, cache):
    """The cache after these tokens."""
    return _advance(config, params, tokens_BT, cache)[2]


@functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=3)
def _next(config, params, token_B, cache, past, key, index, sampling):
    """The token after ``token_B``, the cache after ``token_B``, and the past for the next draw."""
    model, hidden_B1D, cache = _advance(config, params, token_B[:, None], cache)
    token_B, past = draw(_last_logits(config, model, hidden_B1D), past, key, index, sampling)
    return token_B, cache, past


def _window(config, prompt_BT, new_BT, start_B):
    """The last ``max_len`` tokens, and the first column of each row."""
    text_BT = jnp.concatenate([prompt_BT.astype(jnp.int32), new_BT], axis=1)
    cut = text_BT.shape[1] - config.max_len
    return text_BT[:, cut:], None if start_B is None else jnp.maximum(start_B - cut, 0)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _slid(config, params, window, past, key, index, sampling):
    """The window shifted by one token, the token after the old window, and the past for the next draw."""
    window_BT, start_B = window
    columns_T = jnp.arange(window_BT.shape[1])
    padding = None if start_B is None else (columns_T < start_B[:, None]).astype(jnp.int32)
    model = bind(config, params)
    with precision(config):
        hidden_BTD, _ = model(window_BT, None, Scope(_positions(columns_T, start_B), segments_BT=padding))
    token_B, past = draw(_last_logits(config, model, hidden_BTD), past, key, index, sampling)
    start_B = None if start_B is None else jnp.maximum(start_B - 1, 0)
    return (jnp.concatenate([window_BT[:, 1:], token_B[:, None]], axis=1), start_B), token_B, past


@functools.partial(jax.jit, static_argnums=(0, 5))
def _generate(config, params, prompt_BT, start_B, key, sampling):
    """The new tokens (B, max_new_tokens), and their number in each row up to its end."""
    B, count = prompt_BT.shape[0], sampling.max_new_tokens
    by_step, prompt_BT, start_B = _split(config, params, prompt_BT, start_B, count)
    capacity = prompt_BT.shape[1] + by_step - 1  # the last token is never read
    token_B, cache, past = _first(config, params, prompt_BT, start_B, key, capacity, sampling)
    new_BT = jnp.full((B, count), sampling.filler, jnp.int32).at[:, 0].set(token_B)

    def goes_on(last):
        return lambda carry: (carry[0] < last) & ~jnp.all(carry[2]["ended_B"])

    def from_cache(carry):
        index, new_BT, past, cache = carry
        token_B, cache, past = _next(config, params, new_BT[:, index - 1], cache, past, key, index, sampling)
        return index + 1, new_BT.at[:, index].set(token_B), past, cache

    first = jnp.ones((), jnp.int32), new_BT, past, cache
    index, new_BT, past, _ = jax.lax.while_loop(goes_on(by_step), from_cache, first)
    if by_step == count:
        return new_BT, past["length_B"]

    def from_window(carry):
        index, new_BT, past, window = carry
        window, token_B, past = _slid(config, params, window, past, key, index, sampling)
        return index + 1, new_BT.at[:, index].set(token_B), past, window

    first = index, new_BT, past, _window(config, prompt_BT, new_BT[:, :by_step], start_B)
    _, new_BT, past, _ = jax.lax.while_loop(goes_on(count), from_window, first)
    return new_BT, past["length_B"]
