"""What stands at both ends of a language model: the tables of tokens and positions, and the head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.init import Init, Initializer, normal
from mhc_jax.nn.layers import Dense


class Embed(nnx.Module):
    """Token table (V, D), also the head if that is tied, and learned positions (P, D), if any."""

    def __init__(self, vocab_size: int, positions: int | None, width: int, std: float, init: Init):
        shape, axes = (positions or 0, width), ("position", "width")
        self.tokens = init("tokens", normal(std), vocab_size, width, role="table", axes=("vocab", "embed"))
        self.positions = init("positions", normal(std), *shape, role="table", axes=axes) if positions else None

    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array, dtype: Any) -> jax.Array:
        """The sum of both. Past the last learned position, which only a state of fixed size reaches, it stays."""
        x_BTD = jnp.take(self.tokens[...], tokens_BT, axis=0).astype(dtype)
        if self.positions is None:
            return x_BTD
        return x_BTD + jnp.take(self.positions[...], positions_BT, axis=0, mode="clip").astype(dtype)


def dense_head(config: Any, kernel: Initializer, init: Init) -> Dense | None:
    """The head of a model of that configuration; None if it is the token table."""
    if config.head == "tied":
        return None
    rows = config.outputs or config.vocab_size
    return Dense(config.width, rows, init / "head", ("embed", "vocab"), kernel=kernel, bias=False)


def head_table(embed: Embed, head: Dense | None, dtype: Any) -> jax.Array:
    """The head as a table (V, D)."""
    table_VD = embed.tokens[...] if head is None else head.kernel[...].T
    return table_VD.astype(dtype)


def check_outputs(config: Any) -> None:
    """Raises FieldError unless the rows of the head are what the head can have."""
    if config.outputs is not None:
        config.require_counts(1, "outputs")
        config.require(config.head == "dense", "outputs other than the vocabulary need head 'dense'")


def check_outputs_are_tokens(config: Any) -> None:
    """Raises FieldError unless the model gives a logit for every token."""
    config.require(
        config.outputs in (None, config.vocab_size),
        f"outputs {config.outputs} are not the {config.vocab_size} tokens: it can neither learn nor continue a text",
    )
