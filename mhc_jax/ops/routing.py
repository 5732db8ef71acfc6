"""Choices of each token: weights of a few components out of several, and the number of streams it keeps."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# With so many choices or fewer, each choice is an array of its own over all tokens: choosing and weighing are then one
# kernel, where sorting, and each sum over a last axis of a few numbers, are a kernel or two.
FEW = 8


def top_k_softmax(logits_K: Float[Array, "*B K"], *, k: int) -> Float[Array, "*B K"]:
    """The softmax over the k largest logits, which is the whole softmax renormalised over these; 0 elsewhere.

    Of equal logits the first are chosen.

    Raises:
        ValueError: k is not one of 1 to K.
    """
    choices = logits_K.shape[-1]
    if not 1 <= k <= choices:
        raise ValueError(f"k must be one of 1 to {choices}, got {k}")
    if k < choices:
        logits_K = jnp.where(_among_largest(logits_K, k), logits_K, -jnp.inf)
    return _softmax(logits_K)


def _among_largest(logits_K, k):
    if logits_K.shape[-1] > FEW:
        logits_K = jnp.where(logits_K == 0, 0, logits_K)  # -0 and 0 are equal, which sorting does not know
        chosen = jax.lax.top_k(logits_K, k)[1]
        return jnp.any(chosen[..., None] == jnp.arange(logits_K.shape[-1]), axis=-2)
    columns = jnp.unstack(logits_K, axis=-1)
    ahead = ([y >= x for y in columns[:i]] + [y > x for y in columns[i + 1 :]] for i, x in enumerate(columns))
    return jnp.stack([sum(y.astype(jnp.int32) for y in each) < k for each in ahead], axis=-1)


def _softmax(logits_K):
    if logits_K.shape[-1] > FEW:
        return jax.nn.softmax(logits_K, axis=-1)
    columns = jnp.unstack(logits_K.astype(jnp.promote_types(logits_K.dtype, jnp.float32)), axis=-1)
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, columns))
    weights = [jnp.exp(x - largest) for x in columns]
    total = sum(weights)
    return jnp.stack([(weight / total).astype(logits_K.dtype) for weight in weights], axis=-1)


def load_balance(logits_K: Float[Array, "*B K"], weight_K: Float[Array, "*B K"]) -> Float[Array, ""]:
    """``K sum_i f_i P_i`` (Switch Transformer, arXiv 2101.03961, eq. 4): 1 if all components serve equally, at most K.

    f is the share of all choices that a component has, P its mean probability; only P has a gradient.

    Args:
        logits_K: of all components.
        weight_K: of the chosen ones, 0 elsewhere.
    """
    tokens = tuple(range(logits_K.ndim - 1))
    chosen_K = jnp.mean(weight_K > 0, axis=tokens, dtype=logits_K.dtype)
    probability_K = jnp.mean(_softmax(logits_K), axis=tokens)
    return logits_K.shape[-1] * jnp.sum(chosen_K / jnp.sum(chosen_K) * probability_K)


def straight_through(
    logits_N: Float[Array, "*B N"], temperature: Float[Array, ""] | float, noise_N: Float[Array, "*B N"] | None = None
) -> Float[Array, "*B N"]:
    """One-hot vectors of the largest logits, with the gradient of their softmax (arXiv 1611.01144, section 2.2).

    Args:
        temperature: of that softmax; the lower it is, the nearer it comes to the one-hot vector.
        noise_N: added to the logits; from Gumbel's distribution in training, so that each choice is drawn with the
            probability that the softmax of the logits gives it.
    """
    noisy_N = logits_N if noise_N is None else logits_N + noise_N
    soft_N = jax.nn.softmax(noisy_N / temperature, axis=-1)
    hard_N = jax.nn.one_hot(jnp.argmax(noisy_N, axis=-1), noisy_N.shape[-1], dtype=noisy_N.dtype)
    return hard_N + (soft_N - jax.lax.stop_gradient(soft_N))


def prefix_mask(choice_N: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
    """1 for the first j + 1 entries where entry j is chosen, 0 for the others: ``m_i = sum_{j >= i} choice_j``."""
    return jnp.flip(jnp.cumsum(jnp.flip(choice_N, axis=-1), axis=-1), axis=-1)
