"""Decoding with a cache: prefill a prompt, then one token after another in constant time each."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, bind, check_params, checked_tokens
from mhc_jax.nn.lm import LMConfig
from mhc_jax.precision import policy

Cache = dict[str, Any]


def init_cache(config: LMConfig, params: Params, batch: int) -> Cache:
    """The cache before the first token: ``{"layers": mixer states with a leading axis L, "position": int32}``."""
    return bind(config, params).init_cache(batch)


def prefill(config: LMConfig, params: Params, tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
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


def sample_token(
    logits_BV: jax.Array, key: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """One token id a row.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probability reaches p (nucleus sampling).
    """
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV / temperature
    if top_k:
        least = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    if top_p < 1:
        descending = -jnp.sort(-logits_BV, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(descending), axis=-1) - jax.nn.softmax(descending)
        least = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
    return jax.random.categorical(key, logits_BV)


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
    """Continues every prompt by ``max_new_tokens`` tokens.

    Args:
        prompt_BT: token ids (B, T), all of the same length.
        key: randomness; needed unless ``temperature`` is 0.
        temperature, top_k, top_p: see :func:`sample_token`.
        eos_id: once a row has produced it, the row repeats it.
        vocab_size: only ids below it are produced, where the model's vocabulary is larger than its tokenizer's.

    Returns:
        Prompt and continuation, (B, T + max_new_tokens).

    Raises:
        ConfigError: parameters that are not the model's, an empty prompt, ids outside the vocabulary, a result longer
            than ``max_len``, or sampling options out of range.
    """
    prompt_BT = jnp.asarray(checked_tokens(config, prompt_BT))
    check_params(config, params)
    _check(config, prompt_BT, max_new_tokens, key, temperature, top_k, top_p, vocab_size)
    if key is None:
        key = jax.random.key(0)  # unused: the most likely token is taken
    options = (max_new_tokens, temperature, top_k, top_p, eos_id, vocab_size)
    new_BT = _generate(config, params, prompt_BT, key, *options)
    return jnp.concatenate([prompt_BT, new_BT.astype(prompt_BT.dtype)], axis=1)


def _check(config, prompt_BT, max_new_tokens, key, temperature, top_k, top_p, vocab_size):
    faults = {
        f"max_new_tokens must be at least 1, got {max_new_tokens}": max_new_tokens < 1,
        f"temperature must not be negative, got {temperature}": temperature < 0,
        f"top_k must not be negative, got {top_k}": top_k < 0,
        f"top_p must lie in (0, 1], got {top_p}": not 0 < top_p <= 1,
        f"vocab_size must be at least 1, got {vocab_size}": vocab_size is not None and vocab_size < 1,
        "sampling needs a key (or temperature 0)": key is None and temperature > 0,
        f"prompt of {prompt_BT.shape[1]} tokens and {max_new_tokens} new ones exceed max_len {config.max_len}": (
            prompt_BT.shape[1] + max_new_tokens > config.max_len
        ),
    }
    for fault, found in faults.items():
        if found:
            raise ConfigError(fault)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7, 8, 9))
def _generate(config, params, prompt_BT, key, max_new_tokens, temperature, top_k, top_p, eos_id, vocab_size):
    def sample(logits_BV, key):
        return sample_token(logits_BV[:, :vocab_size], key, temperature=temperature, top_k=top_k, top_p=top_p)

    logits_BTV, cache = prefill(config, params, prompt_BT, init_cache(config, params, prompt_BT.shape[0]))
    first_B = sample(logits_BTV[:, -1], jax.random.fold_in(key, 0))

    def body(carry, index):
        token_B, cache = carry
        logits_BV, cache = step(config, params, token_B, cache)
        next_B = sample(logits_BV, jax.random.fold_in(key, index))
        if eos_id is not None:
            next_B = jnp.where(token_B == eos_id, eos_id, next_B)
        return (next_B, cache), token_B

    (last_B, _), tokens_TB = jax.lax.scan(body, (first_B, cache), jnp.arange(1, max_new_tokens))
    return jnp.concatenate([tokens_TB.T, last_B[:, None]], axis=1)
