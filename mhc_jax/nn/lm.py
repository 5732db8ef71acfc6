"""The decoder-only language model: embedding, backbone, tied head."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.backbone import Backbone, BackboneConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import dropout
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.stack import sliced
from mhc_jax.registry import register


@register("model", "lm")
@dataclasses.dataclass(frozen=True)
class LMConfig(BackboneConfig, ModelConfig):
    """A language model: learned positions, a backbone, and a head that is the token table.

    Attributes:
        vocab_size: rows of the token table.
        max_len: learned absolute positions, and so the longest sequence.
        dropout: after the embedding sum and after every branch.
        embed_std: standard deviation of both embeddings at initialisation; 1 in the original mHC-SSM,
            whose tied logits then start with a standard deviation of sqrt(D).
    """

    embed_std: float = 0.02

    def validate(self):
        super().validate()
        self.require(self.embed_std > 0, f"embed_std must be positive, got {self.embed_std}")

    @property
    def causal(self):
        return self.mixer.causal

    def build(self, init):
        return LM(self, init)


class Embed(nnx.Module):
    """Token table (V, D), also the output head, and learned absolute positions (max_len, D)."""

    def __init__(self, config: LMConfig, init: Init):
        draw = normal(config.embed_std)
        self.tokens = init("tokens", draw, config.vocab_size, config.width)
        self.positions = init("positions", draw, config.max_len, config.width)


class LM(Backbone, Model):
    """See :class:`LMConfig`. The backbone's parameters, and the tables under ``embed``."""

    def __init__(self, config: LMConfig, init: Init):
        self.embed = Embed(config, init / "embed")
        super().__init__(config, config.execution, init)

    def __call__(self, tokens_BT, state, scope):
        embedded_BTD = sliced(self._embed(tokens_BT, scope.positions_BT), scope.batch_sharding)
        x_BTD = scope.tap("embed", dropout(embedded_BTD, self.config.dropout, scope.key_of("dropout")))
        return super().__call__(x_BTD, state, scope)

    def _embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Sum of both. Past the last learned position, which only a state of fixed size reaches, it stays."""
        dtype = self.policy.accumulate
        where = jnp.take(self.embed.positions[...], positions_BT, axis=0, mode="clip")
        return jnp.take(self.embed.tokens[...], tokens_BT, axis=0).astype(dtype) + where.astype(dtype)

    def head_VD(self):
        return self.embed.tokens[...].astype(self.policy.compute)
