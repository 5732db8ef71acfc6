"""How the next token is drawn from its logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mhc_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Sampling(Config):
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep only the k most likely tokens, of equal ones those of the lowest ids; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probability reaches p (nucleus sampling).
        min_p: keep only tokens at least this share as likely as the most likely one (arXiv 2407.01082); 0 keeps all.
        repetition_penalty: divides the logits of tokens that the text holds, prompt included, where they are positive,
            and multiplies them where they are negative (CTRL, arXiv 1909.05858); 1 does nothing.
        eos_id: once a row has produced it, the row repeats it.
        vocab_size: only ids below it are produced, where the model's vocabulary is larger than its tokenizer's.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_id: int | None = None
    vocab_size: int | None = None

    def validate(self):
        super().validate()
        self.require(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")
        self.require_counts(0, "top_k")
        self.require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], got {self.top_p}")
        self.require(0 <= self.min_p <= 1, f"min_p must lie in [0, 1], got {self.min_p}")
        penalty = self.repetition_penalty
        self.require(penalty > 0, f"repetition_penalty must be positive, got {penalty}")
        if self.vocab_size is not None:
            self.require_counts(1, "vocab_size")


def sample_token(
    logits_BV: jax.Array,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """One token id a row; see :class:`Sampling`."""
    if temperature < jnp.finfo(jnp.float32).tiny:  # it would be 0 to the device
        return jnp.argmax(logits_BV, axis=-1)
    # Divided after the largest is taken off, so that it stays the largest however small the temperature.
    logits_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / temperature
    if top_k or top_p < 1:
        logits_BV = jnp.where(_kept(logits_BV, top_k, top_p), logits_BV, -jnp.inf)
    if min_p > 0:
        logits_BV = jnp.where(logits_BV >= math.log(min_p), logits_BV, -jnp.inf)  # the most likely one has 0
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
