"""Drawing the next token from its logits, and recognising the end of a row."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Sampling(Config):
    """Options for the continuation of a text.

    Attributes:
        max_new_tokens: largest number of new tokens in a row.
        temperature: divisor of the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens, among equals those with the lowest ids; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose total probability reaches p (nucleus sampling).
        min_p: keep only tokens with at least this fraction of the largest probability (arXiv 2407.01082); 0 keeps all.
        repetition_penalty: divisor of positive logits and factor of negative logits of all tokens that occur in the
            text so far, prompt included (CTRL, arXiv 1909.05858); 1 has no effect.
        stop: sequences of ids; a row ends with the first of them that occurs among its new tokens.
        eos_id: id that ends a row like a stop sequence of one token, and fills every row after its end.
        vocab_size: bound below which all drawn ids lie, for models whose vocabulary is larger than their tokenizer's.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[tuple[int, ...], ...] = ()
    eos_id: int | None = None
    vocab_size: int | None = None

    def validate(self):
        super().validate()
        self.require_counts(1, "max_new_tokens")
        self.require_not_negative("temperature")
        self.require_counts(0, "top_k")
        self.require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")
        self.require(0 <= self.min_p <= 1, f"min_p must lie in [0, 1], got {self.min_p}")
        penalty = self.repetition_penalty
        self.require(penalty > 0, f"repetition_penalty must be positive, got {penalty}")
        self.require(all(self.stop), "stop must not hold an empty sequence")
        if self.vocab_size is not None:
            self.require_counts(1, "vocab_size")

    def check_ids(self, vocab_size: int) -> None:
        """Raises ConfigError for ids that a model of that vocabulary does not have."""
        ids = (("eos_id", () if self.eos_id is None else (self.eos_id,)), ("stop", sum(self.stop, ())))
        for name, found in ids:
            for token in found:
                self.require(0 <= token < vocab_size, f"{name} must lie in 0..{vocab_size - 1}, got {token}")
        size = self.vocab_size or vocab_size
        self.require(size <= vocab_size, f"vocab_size must lie in 1..{vocab_size} for this model, got {size}")

    @property
    def ends(self) -> tuple[tuple[int, ...], ...]:
        """All sequences that end a row."""
        return self.stop if self.eos_id is None else (*self.stop, (self.eos_id,))

    @property
    def filler(self) -> int:
        """The id that fills a row after its end."""
        return 0 if self.eos_id is None else self.eos_id


Past = dict[str, Any]


def before_the_first(sampling: Sampling, text_BT: jax.Array, start_B: jax.Array | None, vocab_size: int) -> Past:
    """The state of drawing before the first new token; draws depend on it and on their logits.

    Args:
        text_BT: the prompts.
        start_B: column of the first token of each prompt; 0 if None.
        vocab_size: V.

    Returns:
        ``seen_BV``, tokens that occur in each text (None without a repetition penalty); ``tail_BK``, the last new
        tokens, as many as the longest end has, -1 where there are none yet; ``ended_B``; ``length_B``, the number of
        new tokens up to the end.
    """
    B, T = text_BT.shape
    seen_BV = None
    if sampling.repetition_penalty != 1:
        real_BT = jnp.ones((B, T), bool) if start_B is None else jnp.arange(T) >= start_B[:, None]
        seen_BV = jnp.zeros((B, vocab_size), bool).at[jnp.arange(B)[:, None], text_BT].max(real_BT)
    return {
        "seen_BV": seen_BV,
        "tail_BK": jnp.full((B, max(map(len, sampling.ends), default=0)), -1, jnp.int32),
        "ended_B": jnp.zeros(B, bool),
        "length_B": jnp.zeros(B, jnp.int32),
    }


def draw(
    logits_BV: jax.Array, past: Past, key: jax.Array, index: jax.Array | int, sampling: Sampling
) -> tuple[jax.Array, Past]:
    """New token number ``index`` of each row, (B,) of int32, and the past for the next draw.

    Args:
        key: one key for all rows, or (B,) keys, one for each row.
    """
    seen_BV, ended_B = past["seen_BV"], past["ended_B"]
    if seen_BV is not None:
        factor_BV = jnp.where(logits_BV > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        logits_BV = jnp.where(seen_BV, logits_BV * factor_BV, logits_BV)
    token_B = sample_token(
        logits_BV[:, : sampling.vocab_size],
        jax.vmap(jax.random.fold_in, (0, None))(key, index) if key.ndim else jax.random.fold_in(key, index),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    token_B = jnp.where(ended_B, sampling.filler, token_B).astype(jnp.int32)
    tail_BK = jnp.concatenate([past["tail_BK"], token_B[:, None]], axis=1)[:, 1:]
    return token_B, {
        "seen_BV": None if seen_BV is None else seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
        "tail_BK": tail_BK,
        "ended_B": ended_B | _ends_with(tail_BK, sampling.ends),
        "length_B": past["length_B"] + ~ended_B,
    }


def _ends_with(tail_BK: jax.Array, ends: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Whether the last tokens of a row are one of the sequences, (B,)."""
    found_B = jnp.zeros(len(tail_BK), bool)
    for end in ends:
        found_B |= jnp.all(tail_BK[:, -len(end) :] == jnp.asarray(end, jnp.int32), axis=1)
    return found_B


def sample_token(
    logits_BV: jax.Array,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """One token id per row; see :class:`Sampling`. ``key`` is one key for all rows, or (B,) keys, one for each."""
    if temperature < jnp.finfo(jnp.float32).tiny:  # devices flush it to 0
        return jnp.argmax(logits_BV, axis=-1)
    # The largest logit is subtracted before the division, so that it remains the largest at any temperature.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
    if top_k or top_p < 1:
        logits_BV = jnp.where(_kept(logits_BV, top_k, top_p), logits_BV, -jnp.inf)
    if min_p > 0:
        logits_BV = jnp.where(logits_BV >= math.log(min_p), logits_BV, -jnp.inf)  # the largest logit is 0
    return (jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical)(key, logits_BV)


def _kept(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Mask (B, V) of tokens that may be drawn: exactly k, and the fewest that reach p; of equals those of lower ids."""
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True, stable=True)
    ranked_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    keep_BV = jnp.broadcast_to(jnp.arange(logits_BV.shape[-1]) < (top_k or logits_BV.shape[-1]), logits_BV.shape)
    if top_p < 1:
        p_BV = jax.nn.softmax(jnp.where(keep_BV, ranked_BV, -jnp.inf))
        keep_BV = keep_BV & (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p)
    return jnp.take_along_axis(keep_BV, jnp.argsort(order_BV, axis=-1), axis=-1)
