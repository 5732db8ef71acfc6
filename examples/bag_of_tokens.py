"""A model kind from outside: it predicts the next token from the decaying mean of all embeddings so far."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, normal
from mhc_jax.nn.layers import Dense
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.precision import policy
from mhc_jax.registry import register


@register("model", "bag_of_tokens")
@dataclasses.dataclass(frozen=True)
class BagOfTokensConfig(ModelConfig):
    """``mean_t = (1 - a) mean_{t-1} + a embed(token_t)`` for every channel, then a dense head.

    Attributes:
        width: D, of the embedding.
    """

    width: int = 16

    def validate(self):
        super().validate()
        self.require_counts(1, "width")

    @property
    def causal(self):
        return True

    def build(self, init):
        return BagOfTokens(self, init)


class BagOfTokens(Model):
    """The state is ``{"mean": (B, D)}``."""

    def __init__(self, config: BagOfTokensConfig, init: Init):
        self.config, self.policy = config, policy(config.execution.policy)
        shape = config.vocab_size, config.width
        self.tokens = init("tokens", normal(1.0), *shape, role="table", axes=("vocab", "embed"))
        self.decay = init("decay", constant(0.0), config.width, axes=("channel",))
        self.head = Dense(config.width, config.vocab_size, init / "head", ("embed", "vocab"), bias=False)

    def init_state(self, batch, max_len):
        return {"mean": jnp.zeros((batch, self.config.width), self.policy.accumulate)}

    def __call__(self, tokens_BT, state, scope):
        x_BTD = scope.tap("embed", jnp.take(self.tokens[...], tokens_BT, axis=0).astype(self.policy.accumulate))
        share_D = jax.nn.sigmoid(self.decay[...].astype(x_BTD.dtype))
        starts_BT = scope.starts_BT(x_BTD.shape[1])
        forget_BT = jnp.zeros(tokens_BT.shape, bool) if starts_BT is None else starts_BT

        def step(mean_BD, inputs):
            x_BD, forget_B = inputs
            mean_BD = jnp.where(forget_B[:, None], 0, mean_BD)
            mean_BD = mean_BD + share_D * (x_BD - mean_BD)
            return mean_BD, mean_BD

        before = self.init_state(tokens_BT.shape[0], 0) if state is None else state
        by_time = jnp.swapaxes(x_BTD, 0, 1), forget_BT.T
        mean_BD, mean_TBD = jax.lax.scan(step, before["mean"], by_time)
        hidden_BTD = scope.tap("hidden", jnp.swapaxes(mean_TBD, 0, 1))
        return hidden_BTD, None if state is None else {"mean": mean_BD}

    def head_VD(self):
        return self.head.kernel[...].T.astype(self.policy.compute)
