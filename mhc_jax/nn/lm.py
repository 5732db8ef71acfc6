"""The language model: embedding, backbone, head."""

import dataclasses
import math
from typing import Literal

import jax

from mhc_jax.nn.backbone import Backbone, BackboneConfig
from mhc_jax.nn.embed import Embed, check_outputs, check_outputs_are_tokens, dense_head, head_table
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import dropout
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.pieces import Piece
from mhc_jax.nn.stack import sliced
from mhc_jax.precision import policy
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
        check_outputs(self)
        self.check_kernels(policy(self.execution.policy))

    def small(self):
        return self.replace(vocab_size=61, max_len=24, width=8, layers=2, outputs=None)

    def product_flops(self, length):
        products = {"blocks.mixer.branch, products": self.products(length), "head (the token table)": 0}
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
        check_outputs_are_tokens(self)

    def build(self, init):
        return LM(self, init)


class LM(Backbone, Model):
    """See :class:`LMConfig`. The backbone's parameters, the tables under ``embed``, and ``head`` (D, V) if not tied."""

    def __init__(self, config: LMConfig, init: Init):
        positions = config.max_len if config.positions == "learned" else None
        self.embed = Embed(config.vocab_size, positions, config.width, config.embed_std, init / "embed")
        self.head = dense_head(config, normal(config.embed_std), init)
        super().__init__(config, config.execution, init)

    def __call__(self, tokens_BT, state, scope):
        embedded_BTD = sliced(self._embed(tokens_BT, scope.positions_BT), scope.batch_sharding)
        x_BTD = scope.tap("embed", dropout(embedded_BTD, self.config.dropout, scope.key_of("dropout")))
        return super().__call__(x_BTD, state, scope)

    def _embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return self.embed(tokens_BT, positions_BT, self.policy.accumulate)

    def pieces(self):
        def embed(tokens_BT, scope):
            return self._embed(tokens_BT, scope.positions_BT)

        def run(tokens_BT, states, scope):
            return embed(tokens_BT, scope), states

        return {"embedding": Piece(("embed",), lambda tokens_BT, scope: tokens_BT, run), **self.pieces_after(embed)}

    def head_VD(self):
        return head_table(self.embed, self.head, self.policy.compute)
