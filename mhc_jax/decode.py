"""Decoding with a cache: prefill a prompt, then one token after another in constant time each.

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

from mhc_jax.config import Config, ConfigError
from mhc_jax.functional import Params, bind, check_params, checked_tokens
from mhc_jax.nn.lm import LMConfig
from mhc_jax.precision import policy

Cache = dict[str, Any]


def init_cache(config: LMConfig, params: Params, batch: int) -> Cache:
    """The cache before the first token: ``{"layers": mixer states with a leading axis L, "position": int32}``."""
    return bind(config, params).init_cache(batch)


def prefill(config: LMConfig, params: Params, tokens_BT: ArrayLike, cache: Cache) -> tuple[jax.Array, Cache]:
    """Logits (B, T, V) of tokens that follow those in ``cache``, and the cache after them.

    Raises:
        ConfigError: parameters that are not the model's, or tokens that are not (B, T) integers inside the vocabulary
            or longer than ``config.max_len``.
    """
    tokens_BT = checked_tokens(config, tokens_BT)
    with jax.default_matmul_precision(policy(config.execution.policy).precision):
        return bind(config, params).prefill(tokens_BT, cache)


def step(config: LMConfig, params: Params, token_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Logits (B, V) after one more token each, and the cache after it. The caller minds ``config.max_len``."""
    with jax.default_matmul_precision(policy(config.execution.policy).precision):
        return bind(config, params).step(token_B, cache)


@dataclasses.dataclass(frozen=True)
class Sampling(Config):
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens, of equal ones those of the lowest ids; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probability reaches p (nucleus sampling).
        eos_id: once a row has produced it, the row repeats it.
        vocab_size: only ids below it are produced, where the model's vocabulary is larger than its tokenizer's.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_id: int | None = None
    vocab_size: int | None = None

    def validate(self):
        super().validate()
        self.require(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")
        self.require_counts(0, "top_k")
        self.require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")
        if self.vocab_size is not None:
            self.require_counts(1, "vocab_size")


def sample_token(
    logits_BV: jax.Array, key: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """One token id a row; see :class:`Sampling`."""
    if temperature < jnp.finfo(jnp.float32).tiny:  # it would be 0 to the device
        return jnp.argmax(logits_BV, axis=-1)
    # Divided after the largest is taken off, so that it stays the largest however small the temperature.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
    if top_k or top_p < 1:
        logits_BV = jnp.where(_kept(logits_BV, top_k, top_p), logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV)


def _kept(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Which tokens may be drawn, (B, V): exactly k, and the fewest that reach p; of equal ones those of lower ids."""
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    ranked_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    keep_BV = jnp.broadcast_to(jnp.arange(logits_BV.shape[-1]) < (top_k or logits_BV.shape[-1]), logits_BV.shape)
    if top_p < 1:
        p_BV = jax.nn.softmax(jnp.where(keep_BV, ranked_BV, -jnp.inf))
        keep_BV = keep_BV & (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p)
    return jnp.take_along_axis(keep_BV, jnp.argsort(order_BV, axis=-1), axis=-1)


def generate(
    config: LMConfig,
    params: Params,
    prompt_BT: jax.Array,
    *,
    max_new_tokens: int,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int | None = None,
    vocab_size: int | None = None,
) -> jax.Array:
    """Continues every prompt by ``max_new_tokens`` tokens, also beyond ``config.max_len``.

    Args:
        prompt_BT: token ids (B, T), all of the same length.
        key: randomness; needed unless ``temperature`` is 0.
        temperature, top_k, top_p, eos_id, vocab_size: see :class:`Sampling`.

    Returns:
        Prompt and continuation, (B, T + max_new_tokens).

    Raises:
        ConfigError: parameters that are not the model's, an empty prompt, ids outside the vocabulary, or sampling
            options out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, eos_id, vocab_size)
    prompt_BT, key = _checked(config, params, prompt_BT, key, sampling)
    whole = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
    if not whole or not 1 <= max_new_tokens < 2**31:
        raise ConfigError(f"max_new_tokens must be a whole number from 1 to {2**31 - 1}, got {max_new_tokens}")
    new_BT = _generate(config, params, prompt_BT, key, int(max_new_tokens), sampling)
    return jnp.concatenate([prompt_BT, new_BT.astype(prompt_BT.dtype)], axis=1)


def stream(
    config: LMConfig, params: Params, prompt_BT: jax.Array, *, key: jax.Array | None = None, **sampling: Any
) -> Iterator[jax.Array]:
    """The tokens (B,) of :func:`generate`, one after another as they are computed, without end.

    Args:
        sampling: fields of :class:`Sampling`.

    Raises:
        ConfigError: as :func:`generate`, at once.
    """
    options = Sampling(**sampling)
    prompt_BT, key = _checked(config, params, prompt_BT, key, options)
    return _stream(config, params, prompt_BT, key, options)


def _stream(config, params, prompt_BT, key, sampling):
    by_step, prompt_BT = _split(config, params, prompt_BT, sys.maxsize)
    token_B, cache = _first(config, params, prompt_BT, key, sampling)
    yield token_B
    tokens, window_BT = [token_B], None
    for index in itertools.count(1):
        if index < by_step:
            token_B, cache = _next(config, params, token_B, cache, key, index, sampling)
            if by_step < sys.maxsize:
                tokens.append(token_B)
        else:
            if window_BT is None:
                window_BT = jnp.concatenate([prompt_BT, jnp.stack(tokens, axis=1)], axis=1)[:, -config.max_len :]
            window_BT, token_B = _slid(config, params, window_BT, key, index, sampling)
        yield token_B


def _checked(config, params, prompt_BT, key, sampling):
    """Prompt and key as arrays. Raises ConfigError, see :func:`generate`."""
    check_params(config, params)
    prompt_BT = jnp.asarray(checked_tokens(config.replace(max_len=sys.maxsize), prompt_BT))
    sampling.validate()
    for name, least, most in (("eos_id", 0, config.vocab_size - 1), ("vocab_size", 1, config.vocab_size)):
        value = getattr(sampling, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} must lie in {least}..{most} for this model, got {value}")
    if key is None and sampling.temperature > 0:
        raise ConfigError("sampling needs a key (or temperature 0)")
    return prompt_BT, jax.random.key(0) if key is None else key  # unused: the most likely token is taken


def _split(config, params, prompt_BT, count):
    """How many of so many tokens are computed one by one from the cache, and the part of the prompt that is seen."""
    if _goes_on(config, params):
        return count, prompt_BT
    prompt_BT = prompt_BT[:, -config.max_len :]
    return min(count, config.max_len - prompt_BT.shape[1] + 1), prompt_BT


def _goes_on(config: LMConfig, params: Params) -> bool:
    """Whether the mixers' state is of one size, however long the text."""

    def shapes(max_len):
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: bind(config, params).blocks.init_memory(1, max_len)))

    return shapes(1) == shapes(2)


def _draw(logits_BV, key, index, sampling):
    """Token number ``index`` of the continuation."""
    return sample_token(
        logits_BV[:, : sampling.vocab_size],
        jax.random.fold_in(key, index),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )


def _ended(token_B, next_B, sampling):
    return next_B if sampling.eos_id is None else jnp.where(token_B == sampling.eos_id, sampling.eos_id, next_B)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _first(config, params, prompt_BT, key, sampling):
    """The first token after the prompt, and the cache after the prompt."""
    with jax.default_matmul_precision(policy(config.execution.policy).precision):
        model = bind(config, params)
        logits_BTV, cache = model.prefill(prompt_BT, model.init_cache(prompt_BT.shape[0]))
    return _draw(logits_BTV[:, -1], key, 0, sampling), cache


@functools.partial(jax.jit, static_argnums=(0, 6))
def _next(config, params, token_B, cache, key, index, sampling):
    """The token after ``token_B``, and the cache after ``token_B``."""
    logits_BV, cache = step(config, params, token_B, cache)
    return _ended(token_B, _draw(logits_BV, key, index, sampling), sampling), cache


@functools.partial(jax.jit, static_argnums=(0, 5))
def _slid(config, params, window_BT, key, index, sampling):
    """The window moved on by the token after it, and that token."""
    with jax.default_matmul_precision(policy(config.execution.policy).precision):
        logits_BV = bind(config, params).next_logits(window_BT)
    next_B = _ended(window_BT[:, -1], _draw(logits_BV, key, index, sampling), sampling).astype(window_BT.dtype)
    return jnp.concatenate([window_BT[:, 1:], next_B[:, None]], axis=1), next_B


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _generate(config, params, prompt_BT, key, count, sampling):
    by_step, prompt_BT = _split(config, params, prompt_BT, count)
    first_B, cache = _first(config, params, prompt_BT, key, sampling)

    def from_cache(carry, index):
        token_B, cache = carry
        following = _next(config, params, token_B, cache, key, index, sampling)
        return following, following[0]

    (_, cache), next_TB = jax.lax.scan(from_cache, (first_B, cache), jnp.arange(1, by_step))
    new_BT = jnp.concatenate([first_B[None], next_TB]).T
    if by_step == count:
        return new_BT

    def from_window(window_BT, index):
        return _slid(config, params, window_BT, key, index, sampling)

    window_BT = jnp.concatenate([prompt_BT, new_BT.astype(prompt_BT.dtype)], axis=1)[:, -config.max_len :]
    _, slid_TB = jax.lax.scan(from_window, window_BT, jnp.arange(by_step, count))
    return jnp.concatenate([new_BT.astype(slid_TB.dtype), slid_TB.T], axis=1)
