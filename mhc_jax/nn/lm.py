"""The language model: embedding, backbone, head."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.backbone import Backbone, BackboneConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import Dense, dropout
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.pieces import Piece
from mhc_jax.nn.stack import sliced
from mhc_jax.registry import register


@register("model", "lm")
@dataclasses.dataclass(frozen=True)
class LMConfig(BackboneConfig, ModelConfig):
    """A language model: token and position embeddings, a backbone, and a head.

    Attributes:
        vocab_size: rows of the token table; in a run, None takes the data's vocabulary.
        max_len: the longest sequence; in a run, None takes the length of the data's windows.
        positions: ``"learned"`` absolute positions, a table of ``max_len`` rows that is added to the tokens', or
            ``"none"``, for mixers that know the order of tokens themselves.
        head: ``"tied"`` for the token table, or ``"dense"`` for a separate matrix.
        outputs: rows of the head; ``vocab_size`` if None, else the head must be ``"dense"``.
        dropout: after the embedding sum and after every branch.
        embed_std: standard deviation of both embeddings at initialisation; 1 in the original mHC-SSM,
            whose tied logits then start with a standard deviation of sqrt(D).
    """

    positions: Literal["learned", "none"] = "learned"
    head: Literal["tied", "dense"] = "tied"
    outputs: int | None = None
    embed_std: float = 0.02

    def validate(self):
        super().validate()
        self.require(self.embed_std > 0, f"embed_std must be positive, got {self.embed_std}")
        if self.outputs is not None:
            self.require_counts(1, "outputs")
            self.require(self.head == "dense", "outputs other than the vocabulary need head 'dense'")

    def small(self):
        return self.replace(vocab_size=61, max_len=24, width=8, layers=2, outputs=None)

    @property
    def description(self):
        before = {"before the mixer": self.before_mixer, "before the MLP": self.before_mlp}
        streams = self.residual.stream_count
        return (
            f"{self.layers} layers of width {self.width}",
            f"residual {self.residual.kind}" + (f", {streams} streams" if streams else ""),
            f"mixer {self.mixer.kind}" + (f" and {self.mlp.kind}" if self.mlp else ""),
            *(f"{part.kind} {name}" for name, part in before.items() if part),
        )

    def product_flops(self, length):
        between = self.layers * self.residual.branches * self.mixer.product_flops(self.width, length)
        products = {"blocks.mixer.branch, products": between, "head (the token table)": 0}
        if self.head == "tied":
            products["head (the token table)"] = 2 * self.vocab_size * self.width
        return {name: flops for name, flops in products.items() if flops}

    @property
    def first_logit_std(self):
        summed = self.residual.stream_count or 1 if self.norm_streams else 1
        return self.embed_std * math.sqrt(self.width) * summed

    @property
    def layer_output(self):
        return f"blocks.{[*self.sites][-1]}.state"

    @property
    def causal(self):
        return self.mixer.causal

    def check_next_token(self):
        super().check_next_token()
        self.require(
            self.outputs in (None, self.vocab_size),
            f"outputs {self.outputs} are not the {self.vocab_size} tokens: it can neither learn nor continue a text",
        )

    def build(self, init):
        return LM(self, init)


class Embed(nnx.Module):
    """Token table (V, D), also the head if that is tied, and learned absolute positions (max_len, D), if any."""

    def __init__(self, config: LMConfig, init: Init):
        draw = normal(config.embed_std)
        self.tokens = init("tokens", draw, config.vocab_size, config.width, role="table", axes=("vocab", "embed"))
        shape, axes = (config.max_len, config.width), ("position", "width")
        learned = config.positions == "learned"
        self.positions = init("positions", draw, *shape, role="table", axes=axes) if learned else None


class LM(Backbone, Model):
    """See :class:`LMConfig`. The backbone's parameters, the tables under ``embed``, and ``head`` (D, V) if not tied."""

    def __init__(self, config: LMConfig, init: Init):
        self.embed = Embed(config, init / "embed")
        self.head = None if config.head == "tied" else self._build_head(config, init / "head")
        super().__init__(config, config.execution, init)

    @staticmethod
    def _build_head(config: LMConfig, init: Init) -> Dense:
        rows = config.outputs or config.vocab_size
        return Dense(config.width, rows, init, ("embed", "vocab"), kernel=normal(config.embed_std), bias=False)

    def __call__(self, tokens_BT, state, scope):
        embedded_BTD = sliced(self._embed(tokens_BT, scope.positions_BT), scope.batch_sharding)
        x_BTD = scope.tap("embed", dropout(embedded_BTD, self.config.dropout, scope.key_of("dropout")))
        return super().__call__(x_BTD, state, scope)

    def _embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Sum of both. Past the last learned position, which only a state of fixed size reaches, it stays."""
        dtype = self.policy.accumulate
        x_BTD = jnp.take(self.embed.tokens[...], tokens_BT, axis=0).astype(dtype)
        if self.embed.positions is None:
            return x_BTD
        return x_BTD + jnp.take(self.embed.positions[...], positions_BT, axis=0, mode="clip").astype(dtype)

    def pieces(self):
        def embed(tokens_BT, scope):
            return self._embed(tokens_BT, scope.positions_BT)

        def run(tokens_BT, states, scope):
            return embed(tokens_BT, scope), states

        return {"embedding": Piece(("embed",), lambda tokens_BT, scope: tokens_BT, run), **self.pieces_after(embed)}

    def head_VD(self):
        table_VD = self.embed.tokens[...] if self.head is None else self.head.kernel[...].T
        return table_VD.astype(self.policy.compute)
