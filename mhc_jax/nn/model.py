"""The contract of a model: tokens in, hidden states out, and a head that makes logits of them."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.precision import Policy

ModelState = Any


class Model(nnx.Module):
    """Built by :meth:`ModelConfig.build`."""

    policy: Policy

    def init_state(self, batch: int, max_len: int) -> ModelState:
        """State before the first token, for sequences of at most ``max_len`` tokens: a pytree of arrays."""
        raise NotImplementedError

    def __call__(
        self, tokens_BT: jax.Array, state: ModelState | None, scope: Scope
    ) -> tuple[jax.Array, ModelState | None]:
        """Inputs of the head (B, T, D) for the tokens that follow ``state``, and the state after them.

        Args:
            tokens_BT: ids.
            state: None for sequences with nothing before them and nothing to follow; then None comes back.
            scope: see :class:`mhc_jax.nn.scope.Scope`.
        """
        raise NotImplementedError

    def head_VD(self) -> jax.Array:
        """The output head in the compute dtype."""
        raise NotImplementedError

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """(B, T, V) in the accumulation dtype."""
        hidden_BTD = hidden_BTD.astype(self.policy.compute)
        dtype = self.policy.accumulate
        return jnp.einsum("btd,vd->btv", hidden_BTD, self.head_VD(), preferred_element_type=dtype)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Config):
    """Base of all model configurations.

    Attributes:
        vocab_size: V, of ids that go in.
        max_len: tokens of the longest sequence.
        execution: how it runs.
    """

    axis: ClassVar[str] = "model"

    vocab_size: int = 50257
    max_len: int = 256
    execution: Execution = Execution()

    def validate(self):
        super().validate()
        self.require_counts(1, "vocab_size", "max_len")

    @property
    def description(self) -> tuple[str, ...]:
        """What it is made of, in a few words each."""
        return (self.kind or type(self).__name__,)

    def product_flops(self, length: int) -> dict[str, int]:
        """Operations by name of products that no parameter of role ``"kernel"`` tells, for one token among ``length``.

        Those between activations, and the head where it is a table.
        """
        return {}

    @property
    def causal(self) -> bool:
        """Whether no token's output depends on a later one: what next-token training and decoding need."""
        raise NotImplementedError

    def check_next_token(self) -> None:
        """Raises ConfigError unless the logits are those of the next token: what training on text and decoding need."""
        self.require(self.causal, "tokens see later ones: it can neither learn nor continue a text")

    def build(self, init: Init) -> Model:
        raise NotImplementedError
