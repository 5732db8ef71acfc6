"""TransformerScan: texts in chunks, summaries of chunks merged by a prefix scan, and a reader of summary and chunk.

The Transformer prefix-scannable model of arXiv 2506.10918. One network, the aggregator, merges two summaries of C
vectors; the prefix in front of a chunk is the scan of the chunks before it (:mod:`mhc_jax.ops.prefix_scan`). Another,
the reader, runs over ``[prefix | chunk]``. A stream of any length needs O(log n) summaries, and the reader's own state.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax.config import ConfigError, within
from mhc_jax.nn.backbone import Backbone, BackboneConfig
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.embed import Embed, check_outputs, check_outputs_are_tokens, dense_head, head_table
from mhc_jax.nn.init import Init, normal, uniform
from mhc_jax.nn.layers import by_rows, dropout, where_rows
from mhc_jax.nn.merging import Marks, merged_prefixes
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.pieces import Piece
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import sliced
from mhc_jax.ops.prefix_scan import LEGACY, Counter, ScanForm
from mhc_jax.precision import policy
from mhc_jax.registry import register

# Chunks from which on a prefix is merged from others.
FEWEST = 3


def gpt2_backbone(width: int, layers: int, heads: int, *, causal: bool = True, dropout: float = 0.0) -> BackboneConfig:
    """Blocks of GPT-2, whose attention may see later tokens, too."""
    return BackboneConfig(
        width=width,
        layers=layers,
        dropout=dropout,
        norm=LayerNormConfig(),
        mixer=AttentionConfig(heads=heads, causal=causal, dropout=dropout),
        mlp=GeluMLPConfig(activation="tanh"),
    )


@register("model", "transformer_scan")
@dataclasses.dataclass(frozen=True)
class TransformerScanConfig(ModelConfig):
    """A model of two backbones, each over any residual topology and with any mixer.

    An auxiliary loss of the aggregator is its mean over all merges of the tree, each taken over all texts; where there
    is one, merges are computed one after another. A loss of the reader is taken over all chunks at once. Of one that
    both have, the mean counts.

    Attributes:
        aggregator: merges two summaries, the older on the left, into one: the right half of its output. Its attention
            sees both ways in the paper and was causal in the published runs.
        reader: of a prefix and the chunk behind it; causal.
        chunk: C, tokens of a chunk and vectors of a summary.
        positions: ``"local"`` counts a token's position from the start of its chunk, so that texts may be of any
            length; ``"absolute"`` from the start of the text; ``"legacy_mixed"`` is local for what is aggregated and
            absolute for what is read, as one of the published modes has it.
        side_embedding: learned vectors tell the aggregator its two sides, otherwise told apart by what is read out.
        prefix_embedding: a learned vector marks prefixes for the reader, which cannot tell x from x twice otherwise.
        boundary: what the last token of a chunk gives. ``"prefix"``: the reader's output at the last vector of the next
            chunk's prefix, so that every token is predicted from all before it by way of the scan; ``"token"``: the
            output at the token itself, as for labels; ``"unscored"``: the same, but it does not count, neither in
            training nor in evaluation, as published: the first token of a chunk is never predicted.
        scan: form of the scan; the first three give the same, see :func:`mhc_jax.ops.prefix_scan.prefixes`.
        head: ``"dense"`` for a matrix of its own, ``"tied"`` for the token table.
        outputs: rows of the head; ``vocab_size`` if None.
        dropout: after the embedding sum; branches of the two networks have their own.
        output_dropout: of the outputs of the two networks, 0.1 as published: once at every level of the tree.
        init: of tables and head: ``"gpt2"``, normal with a standard deviation of 0.02; ``"legacy"``, as PyTorch begins,
            tables with one of 1 and a uniform head.
    """

    layers_under: ClassVar[str] = "reader."

    aggregator: BackboneConfig = gpt2_backbone(768, 1, 12, causal=False)
    reader: BackboneConfig = gpt2_backbone(768, 12, 12)
    chunk: int = 64
    positions: Literal["local", "absolute", "legacy_mixed"] = "local"
    side_embedding: bool = False
    prefix_embedding: bool = False
    boundary: Literal["prefix", "token", "unscored"] = "prefix"
    scan: ScanForm = "parallel"
    head: Literal["tied", "dense"] = "dense"
    outputs: int | None = None
    dropout: float = 0.0
    output_dropout: float = 0.0
    init: Literal["gpt2", "legacy"] = "gpt2"

    def validate(self):
        super().validate()
        self.require_counts(1, "chunk")
        for name in ("dropout", "output_dropout"):
            self.require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name)}")
        widths = self.aggregator.width, self.reader.width
        self.require(widths[0] == widths[1], f"aggregator and reader must have one width, got {widths[0]}, {widths[1]}")
        self.require(self.reader.mixer.causal, "the reader must be causal; set reader.mixer.causal")
        check_outputs(self)
        for network in ("aggregator", "reader"):
            with within(network):
                getattr(self, network).check_kernels(policy(self.execution.policy))
        if self.scan in LEGACY:
            self.require(self.boundary != "prefix", f"scan {self.scan!r} has no prefix of a whole text; see boundary")
            self.rows(self.max_len)

    def small(self):
        networks = {"aggregator": gpt2_backbone(8, 1, 2, causal=False), "reader": gpt2_backbone(8, 1, 2)}
        return self.replace(vocab_size=61, max_len=24, chunk=3, outputs=None, **networks)

    @property
    def width(self) -> int:
        """D, of both networks."""
        return self.reader.width

    @property
    def layers(self) -> int:
        """Layers of the reader."""
        return self.reader.layers

    @property
    def sites(self) -> dict[str, Any]:
        """Sites of the reader's blocks."""
        return self.reader.sites

    def layer_mask(self, mask_BT):
        """Rows of prefix and chunk: the first of a text has no prefix, the last may be cut short."""
        B, rows = len(mask_BT), self.rows(mask_BT.shape[1])
        chunks_BRC = _cut(mask_BT[..., None], rows, self.chunk)[..., 0]
        prefixed_BR1 = mask_BT.any(axis=1)[:, None, None] & (jnp.arange(rows) > 0)[:, None]
        both = jnp.broadcast_to(prefixed_BR1, chunks_BRC.shape), chunks_BRC
        return jnp.concatenate(both, axis=2).reshape(B * rows, -1)

    def rows(self, length: int) -> int:
        """Chunks that the reader reads, the next too if ``boundary`` is ``"prefix"``; ConfigError if it cannot."""
        count = length // self.chunk + 1 if self.boundary == "prefix" else -(-length // self.chunk)
        fault = f"scan {self.scan!r} needs a power of two of chunks, not the {count} of {length} tokens"
        self.require(self.scan not in LEGACY or count.bit_count() == 1, f"{fault}; see scan 'parallel'")
        return count

    def aggregations(self, length: int) -> int:
        """Pairs of summaries that are merged for a text: those of its trees, and those of their folds."""
        count = self.rows(length) - 1
        return (count - count.bit_count()) + (count - count.bit_length())

    def uses(self, length: int) -> tuple[float, float]:
        """How often the aggregator and the reader see a token, on average."""
        both = 2 * self.chunk / length
        return both * self.aggregations(length), both * self.rows(length)

    @property
    def description(self):
        merged = f"{self.aggregations(self.max_len)} aggregations in {self.max_len} tokens"
        return (
            f"TransformerScan: chunks of {self.chunk} tokens, {merged}, scan {self.scan}",
            *(f"{name}: {', '.join(getattr(self, name).description)}" for name in ("aggregator", "reader")),
        )

    @property
    def remark(self):
        chunks = -(-self.max_len // self.chunk)
        if chunks >= FEWEST:
            return ""
        return (
            f"{self.max_len} tokens are {chunks} chunk{'s' * (chunks > 1)} of {self.chunk}, so that the scan merges "
            f"nothing that a prediction uses; take a chunk of at most {max(1, self.max_len // FEWEST)}"
        )

    def product_flops(self, length):
        products = {}
        for name, uses in zip(("aggregator", "reader"), self.uses(length)):
            inside = getattr(self, name).products(2 * self.chunk)
            products[f"{name}.blocks.mixer.branch, products"] = round(uses * inside)
        if self.head == "tied":
            products["head (the token table)"] = 2 * self.vocab_size * self.width
        return {name: flops for name, flops in products.items() if flops}

    @property
    def first_logit_std(self):
        uniform_head = self.head == "dense" and self.init == "legacy"
        return 1 / math.sqrt(3) if uniform_head else self.table_std * math.sqrt(self.width)

    @property
    def table_std(self) -> float:
        """Standard deviation of both tables at initialisation."""
        return 1.0 if self.init == "legacy" else 0.02

    @property
    def causal(self):
        return True

    def check_next_token(self):
        super().check_next_token()
        check_outputs_are_tokens(self)

    def check_segments(self):
        fault = "transformer_scan cuts chunks from the start of a row, whose segments it cannot keep apart"
        self.require(False, f"{fault}; give each text a row of its own, or join the texts")

    def scored_T(self, length):
        return np.arange(1, length + 1) % self.chunk != 0 if self.boundary == "unscored" else None

    def build(self, init):
        return TransformerScan(self, init)


class TransformerScan(Model):
    """Parameters live under ``embed``, ``aggregator``, ``reader``; ``prefix``, ``sides``, ``head`` where they exist.

    The tap ``"prefixes"``, (B, rows, C, D), holds the prefix in front of every chunk: at chunk 0, which has none, zeros
    that nothing sees. With the boundary ``"prefix"`` a text that ends with a whole chunk has one more, for the chunk to
    come.
    """

    def __init__(self, config: TransformerScanConfig, init: Init):
        self.config, self.policy = config, policy(config.execution.policy)
        learned = config.chunk if config.positions == "local" else config.max_len
        self.embed = Embed(config.vocab_size, learned, config.width, config.table_std, init / "embed")
        self.sides = Marks(2, config.width, 0.02, init / "sides") if config.side_embedding else None
        self.prefix = Marks(1, config.width, config.table_std, init / "prefix") if config.prefix_embedding else None
        merged, read = config.uses(config.max_len)
        self.aggregator = Backbone(config.aggregator, config.execution, (init / "aggregator").repeated(merged))
        self.reader = Backbone(config.reader, config.execution, (init / "reader").repeated(read))
        kernel = uniform(config.width) if config.init == "legacy" else normal(config.table_std)
        self.head = dense_head(config, kernel, init)

    def init_state(self, batch, max_len):
        config = self.config
        if config.scan in LEGACY:
            raise ConfigError(f"a text under scan {config.scan!r} cannot be extended; 'parallel' is the scan that can")
        summary_BCD = jnp.zeros((batch, config.chunk, config.width), self.policy.accumulate)
        reader = self.reader.init_state(1, 2 * config.chunk)
        return {
            "counter": Counter.empty(summary_BCD, max_len // config.chunk),
            "chunk": summary_BCD,
            "reader": jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), reader),
        }

    def __call__(self, tokens_BT, state, scope):
        if scope.segments_BT is not None:
            self.config.check_segments()
        whole = state is None
        hidden_BTD, state = (self._whole(tokens_BT, scope), None) if whole else self._further(tokens_BT, state, scope)
        return scope.tap("hidden", hidden_BTD), state

    def pieces(self):
        def embed(tokens_BT, states, scope):
            return self._chunks(tokens_BT, scope), states

        def leaves(tokens_BT, scope):
            return self._chunks(tokens_BT, scope)[1]

        def merge(leaves_BRCD, states, scope):
            return self._prefixes(leaves_BRCD, scope / "aggregator"), states

        def read(z_BRTD, states, scope):
            if states is None:
                return self._read_all(z_BRTD, scope / "reader"), None
            last_B = jnp.full(len(z_BRTD), 2 * self.config.chunk - 1)  # of the places of a chunk
            y_BTD, reader = self._read(z_BRTD[:, 0, -1:], states["reader"], last_B, jnp.zeros_like(last_B), scope)
            return y_BTD, {**states, "reader": reader}

        return {
            "embedding": Piece(("embed",), lambda tokens_BT, scope: tokens_BT, embed),
            "aggregator": Piece(("aggregator", "sides"), leaves, merge),
            "reader": Piece(("reader", "prefix"), self._fronted, read, remembers=True),
        }

    def head_VD(self):
        return head_table(self.embed, self.head, self.policy.compute)

    def _embedded(self, tokens_BT: jax.Array, place_BT: jax.Array, scope: Scope) -> tuple[jax.Array, jax.Array]:
        """What is read, and what is aggregated: the same, unless their positions differ.

        Args:
            place_BT: places of the tokens in their chunks.
        """

        def embed(positions_BT: jax.Array, name: str) -> jax.Array:
            x_BTD = sliced(self.embed(tokens_BT, positions_BT, self.policy.accumulate), scope.batch_sharding)
            return dropout(x_BTD, self.config.dropout, scope.key_of(name))

        positions = self.config.positions
        x_BTD = scope.tap("embed", embed(place_BT if positions == "local" else scope.positions_BT, "dropout"))
        return x_BTD, embed(place_BT, "leaves") if positions == "legacy_mixed" else x_BTD

    def _merged(self, older_RCD: jax.Array, newer_RCD: jax.Array, scope: Scope) -> jax.Array:
        """One summary of two."""
        C = self.config.chunk
        x_RTD = jnp.concatenate([older_RCD, newer_RCD], axis=1)
        if self.sides is not None:
            x_RTD += jnp.repeat(self.sides.table[...].astype(x_RTD.dtype), C, axis=0)
        inside = _over(2 * C, scope)
        y_RTD, _ = self.aggregator(x_RTD, None, inside)
        return dropout(y_RTD, self.config.output_dropout, inside.key_of("output"))[:, C:]

    def _whole(self, tokens_BT: jax.Array, scope: Scope) -> jax.Array:
        (B, T), C = tokens_BT.shape, self.config.chunk
        y_BRTD = self._read_all(self._fronted(tokens_BT, scope), scope / "reader")
        if self.config.boundary == "prefix":
            # The last vector of a prefix gives what the token before the chunk is to give.
            return y_BRTD[:, :, C - 1 : -1].reshape(B, -1, y_BRTD.shape[-1])[:, 1 : T + 1]
        return y_BRTD[:, :, C:].reshape(B, -1, y_BRTD.shape[-1])[:, :T]

    def _fronted(self, tokens_BT: jax.Array, scope: Scope) -> jax.Array:
        """Every prefix and the chunk behind it, (B, R, 2C, D)."""
        chunks_BRCD, leaves_BRCD = self._chunks(tokens_BT, scope)
        prefixes_BRCD = scope.tap("prefixes", self._prefixes(leaves_BRCD, scope / "aggregator"))
        return jnp.concatenate([self._marked(prefixes_BRCD), chunks_BRCD], axis=2)

    def _chunks(self, tokens_BT: jax.Array, scope: Scope) -> tuple[jax.Array, jax.Array]:
        """The chunks that are read (B, R, C, D), and all but the last as they are aggregated."""
        T, C = tokens_BT.shape[1], self.config.chunk
        embedded = self._embedded(tokens_BT, jnp.arange(T)[None] % C, scope)
        chunks_BRCD, leaves_BRCD = (_cut(x, self.config.rows(T), C) for x in embedded)
        return chunks_BRCD, leaves_BRCD[:, :-1]

    def _read_all(self, z_BRTD: jax.Array, scope: Scope) -> jax.Array:
        """The reader's outputs for all prefixes and chunks, as rows of one call."""
        B, rows, length, D = z_BRTD.shape
        # The first chunk has no prefix: what stands in its place is another text.
        alone_RT = (jnp.arange(rows)[:, None] == 0) & (jnp.arange(length) < length // 2)
        inside = scope.replace(positions_BT=jnp.arange(length)[None], segments_BT=jnp.tile(1 - alone_RT, (B, 1)))
        y_PTD, _ = self.reader(z_BRTD.reshape(B * rows, length, D), None, inside)
        y_PTD = dropout(y_PTD, self.config.output_dropout, scope.key_of("output"))
        return y_PTD.reshape(B, rows, length, D)

    def _prefixes(self, leaves_BRCD: jax.Array, scope: Scope) -> jax.Array:
        """The prefix in front of every chunk and of the next one, (B, R + 1, C, D)."""
        before_BRCD = jnp.zeros_like(leaves_BRCD, shape=(len(leaves_BRCD), 1, *leaves_BRCD.shape[2:]))
        if not leaves_BRCD.shape[1]:
            return before_BRCD
        found_BRCD = merged_prefixes(self._merged, leaves_BRCD, scope, self.config.scan)
        return jnp.concatenate([before_BRCD, found_BRCD], axis=1)

    def _marked(self, prefixes: jax.Array) -> jax.Array:
        """As the reader reads them; (..., D)."""
        return prefixes if self.prefix is None else prefixes + self.prefix.table[0].astype(prefixes.dtype)

    def _further(self, tokens_BT, state, scope):
        """One token after another; what happens at the end of a chunk is only computed if some row is there."""
        T, C = tokens_BT.shape[1], self.config.chunk
        count_BT = scope.columns(T) - (0 if scope.start_B is None else scope.start_B[:, None])
        count_BT = jnp.broadcast_to(count_BT, tokens_BT.shape)  # of tokens before each; below 0 in padding
        x_BTD, leaves_BTD = self._embedded(tokens_BT, count_BT % C, scope.replace(key=None))
        inside = _over(1, scope).replace(key=None, penalties={})
        by_time = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (x_BTD, leaves_BTD, count_BT))
        state, y_TBD = jax.lax.scan(lambda state, token: self._step(state, *token, scope=inside), state, by_time)
        return jnp.swapaxes(y_TBD, 0, 1), state

    def _step(self, state: Any, x_BD: jax.Array, leaf_BD: jax.Array, count_B: jax.Array, scope: Scope):
        C = self.config.chunk
        real_B, place_B = count_B >= 0, count_B % C
        first_B = jnp.where(count_B < C, C, 0)  # of the columns that the reader sees
        y_BTD, reader = self._read(x_BD[:, None], state["reader"], C + place_B, first_B, scope)
        here_BC = (jnp.arange(C) == place_B[:, None]) & real_B[:, None]
        chunk_BCD = jnp.where(here_BC[..., None], leaf_BD[:, None], state["chunk"])
        state = {**state, "chunk": chunk_BCD, "reader": where_rows(real_B, reader, state["reader"])}
        due_B = real_B & (place_B == C - 1)

        def boundary(state):
            counter, prefix_BCD = state["counter"].push(
                lambda older, newer: self._merged(older, newer, scope), state["chunk"], due_B
            )
            zero_B, fresh = jnp.zeros_like(place_B), jax.tree.map(jnp.zeros_like, state["reader"])
            before_BCD, reader = self._read(self._marked(prefix_BCD), fresh, zero_B, zero_B, scope)
            last_BD = before_BCD[:, -1] if self.config.boundary == "prefix" else y_BTD[:, 0]
            after = {**state, "counter": counter, "reader": where_rows(due_B, reader, state["reader"])}
            return after, jnp.where(due_B[:, None], last_BD, y_BTD[:, 0])

        return jax.lax.cond(due_B.any(), boundary, lambda state: (state, y_BTD[:, 0]), state)

    def _read(self, x_BTD: jax.Array, states: Any, column_B: jax.Array, first_B: jax.Array, scope: Scope):
        """The reader's outputs and states, every row at a column of its own."""

        def row(x_TD, states, column, first):
            positions_BT = (column + jnp.arange(len(x_TD)))[None]
            inside = scope.replace(positions_BT=positions_BT, column=column, start_B=first[None], penalties={})
            y_BTD, states = self.reader(x_TD[None], states, inside)
            return y_BTD[0], states

        return by_rows(row, x_BTD, states, column_B, first_B)


def _over(length: int, scope: Scope) -> Scope:
    """The scope of a network inside, without taps."""
    kept = ("key", "progress", "penalties", "batch_sharding")
    return Scope.over(length, **{name: getattr(scope, name) for name in kept})


def _cut(x_BTD: jax.Array, rows: int, chunk: int) -> jax.Array:
    """(B, rows, C, D), filled up with zeros."""
    B, T, D = x_BTD.shape
    return jnp.pad(x_BTD, ((0, 0), (0, rows * chunk - T), (0, 0))).reshape(B, rows, chunk, D)
