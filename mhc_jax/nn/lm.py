"""The decoder-only language model: embed, expand, stack of sites, collapse, norm, tied head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import Config, within
from mhc_jax.nn.block import Block, Carry, Site
from mhc_jax.nn.channel import ChannelMixerConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.layers import Norm, NormName, dropout, fold
from mhc_jax.nn.mixers import DiagonalSSMConfig, MixerConfig
from mhc_jax.nn.residual import (
    EndsConfig,
    IdentityEndsConfig,
    PlainConfig,
    ResidualConfig,
    StreamAdapters,
    StreamAdaptersConfig,
)
from mhc_jax.nn.residual.base import State, streams_of, with_streams
from mhc_jax.nn.stack import LayersName, RematName, build_stack, run_stack, sliced
from mhc_jax.nn.taps import Tap, Taps, no_tap
from mhc_jax.nn.value_residual import ValueResidual, ValueResidualConfig
from mhc_jax.ops import streams
from mhc_jax.precision import PolicyName, policy
from mhc_jax.registry import register


@dataclasses.dataclass(frozen=True)
class Execution(Config):
    """How the model runs. Nothing here changes its parameters or, beyond rounding, its values.

    Attributes:
        policy: dtypes; see :mod:`mhc_jax.precision`.
        layers: ``"scan"`` over stacked layers (compile time constant in depth) or ``"unroll"``.
        remat: what the backward pass recomputes; see :func:`mhc_jax.nn.stack.run_stack`.
    """

    policy: PolicyName = "float32"
    layers: LayersName = "scan"
    remat: RematName = "none"


@register("model", "lm")
@dataclasses.dataclass(frozen=True)
class LMConfig(Config):
    """A language model as a choice along independent axes.

    Attributes:
        vocab_size: rows of the token embedding, which is also the output head.
        max_len: learned absolute positions, and so the longest sequence.
        width: D, of every residual stream.
        layers: L.
        dropout: after the embedding sum and after every branch.
        norm: ``"rms"`` or ``"ln"``.
        norm_bias: whether the LayerNorms have biases.
        norm_streams: normalise each stream and then collapse, as published nanoGPT mHC does: with the sum of n streams
            its first logits are n times too large. The default collapses first.
        embed_std: standard deviation of both embeddings at initialisation; 1 in the original mHC-SSM,
            whose tied logits then start with a standard deviation of sqrt(D).
        residual, ends, adapters, mixer: the parts; adapters need a topology with streams.
        mlp: the channel mixer, a second site of every block; None for blocks of one site.
        value_residual: lets every layer use the first one's values.
        execution: how it runs.
    """

    axis = "model"

    vocab_size: int = 50257
    max_len: int = 256
    width: int = 512
    layers: int = 8
    dropout: float = 0.0
    norm: NormName = "rms"
    norm_bias: bool = True
    norm_streams: bool = False
    embed_std: float = 0.02
    residual: ResidualConfig = PlainConfig()
    ends: EndsConfig = IdentityEndsConfig()
    adapters: StreamAdaptersConfig | None = None
    mixer: MixerConfig = DiagonalSSMConfig()
    mlp: ChannelMixerConfig | None = None
    value_residual: ValueResidualConfig | None = None
    execution: Execution = Execution()

    def validate(self):
        super().validate()
        self.require_counts(1, "vocab_size", "max_len", "width", "layers")
        self.require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        self.require(self.norm in ("rms", "ln"), f"norm must be one of 'rms', 'ln', got {self.norm!r}")
        self.require(self.embed_std > 0, f"embed_std must be positive, got {self.embed_std}")
        with within("ends"):
            self.ends.check(self.residual)
        with within("mixer"):
            self.mixer.check(self.width)
        self.require(
            self.adapters is None or (self.residual.stream_count is not None and self.residual.branches == 1),
            f"adapters need a residual with streams and one branch, not {self.residual.kind!r}",
        )
        self.require(
            self.mixer.views in (1, self.residual.views),
            f"the mixer takes {self.mixer.views} views, but the residual {self.residual.kind!r} gives "
            f"{self.residual.views}; set residual.views to {self.mixer.views}, or mixer.views to 1",
        )

    @property
    def sites_per_layer(self) -> int:
        """Residual sites of one block."""
        return 1 if self.mlp is None else 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Output:
    """What a forward pass returns.

    Attributes:
        logits_BTV: next-token logits in the accumulation dtype. Unused outputs cost nothing under jit.
        hidden_BTD: input of the head.
        aux: scalars by name: ``"stream_diversity"`` for topologies with streams.
        taps: named activations, if asked for; those inside the stack carry a leading layer axis.
    """

    logits_BTV: jax.Array
    hidden_BTD: jax.Array
    aux: dict[str, jax.Array]
    taps: dict[str, jax.Array]


class Embed(nnx.Module):
    """Token table (V, D), also the output head, and learned absolute positions (max_len, D)."""

    def __init__(self, config: LMConfig, init: Init):
        draw = normal(config.embed_std)
        self.tokens = init("tokens", draw, config.vocab_size, config.width)
        self.positions = init("positions", draw, config.max_len, config.width)


class LM(nnx.Module):
    """See :class:`LMConfig`. Parameters live under ``embed``, ``ends``, ``blocks`` (stacked) and ``final_norm``."""

    def __init__(self, config: LMConfig, init: Init):
        self.config, self.policy = config, policy(config.execution.policy)
        self.embed = Embed(config, init / "embed")
        self.ends = config.ends.build(config.width, config.residual.stream_count, self.policy, init / "ends")
        blocks = Init(init.key, f"{init.path}/blocks", sites=config.layers * config.sites_per_layer)
        self.blocks = build_stack(self._build_block, config.layers, blocks)
        self.final_norm = Norm(config.width, config.norm, init / "final_norm", biased=config.norm_bias)

    def _build_block(self, init: Init) -> Block:
        config = self.config
        first = init.index * config.sites_per_layer
        mixer = self._build_site(config.mixer, (init / "mixer").at(first))
        mlp = None if config.mlp is None else self._build_site(config.mlp, (init / "mlp").at(first + 1))
        values = None if config.value_residual is None else ValueResidual(config.value_residual, init / "values")
        return Block(mixer, mlp, values)

    def _build_site(self, part: MixerConfig | ChannelMixerConfig, init: Init) -> Site:
        config = self.config
        residual = config.residual.build(config.width, self.policy, init / "residual")
        if config.adapters is not None:
            streams_ = config.residual.stream_count
            assert streams_ is not None  # validate() refuses adapters without streams
            residual = StreamAdapters(
                residual, config.adapters, config.width, streams_, config.norm, self.policy, init / "residual"
            )
        branch = part.build(config.width, self.policy, init / "branch")
        return Site(
            residual, branch, config.width, config.norm, config.dropout, self.policy, init, norm_bias=config.norm_bias
        )

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
        taps: bool = False,
        probes: dict[str, jax.Array] | None = None,
        batch_sharding: jax.sharding.Sharding | None = None,
    ) -> Output:
        """See :func:`mhc_jax.apply`."""
        tap = Taps(probes) if taps or probes else no_tap
        embedded_BTD = sliced(self._embed(tokens_BT, positions), batch_sharding)
        x_BTD = tap("embed", dropout(embedded_BTD, self.config.dropout, fold(key, 0)))
        state = self.config.residual.begin(tap("expand", self.ends.expand(x_BTD)))
        state = self._blocks(state, positions, segment_ids, fold(key, 1), tap, batch_sharding)
        hidden_BTD = sliced(self._collapse(state, tap), batch_sharding)
        logits_BTV = tap("logits", self._head(hidden_BTD))
        aux = {}
        if self.config.residual.stream_count is not None:
            aux["stream_diversity"] = streams.diversity(streams_of(state))
        return Output(logits_BTV, hidden_BTD, aux, tap.values if isinstance(tap, Taps) else {})

    def _blocks(self, state, positions, segment_ids, key, tap: Tap, batch_sharding):
        prefix = "blocks."
        probes = tap.probes if isinstance(tap, Taps) else {}
        inside = {name.removeprefix(prefix): value for name, value in probes.items() if name.startswith(prefix)}

        def body(block, carry, inputs):
            layer, layer_probes = inputs
            layer_tap = Taps(layer_probes) if isinstance(tap, Taps) else no_tap
            carry = block(
                carry, layer, positions=positions, segment_ids=segment_ids, key=fold(key, layer), tap=layer_tap
            )
            return carry, layer_tap.values if isinstance(layer_tap, Taps) else {}

        inputs = jnp.arange(self.config.layers), inside
        (state, _), recorded = self._run(body, self._carry(state), inputs, batch_sharding)
        if isinstance(tap, Taps):
            tap.values.update({prefix + name: value for name, value in recorded.items()})
        return state

    def _carry(self, state: State) -> Carry:
        """What the scan over layers begins with."""
        if self.config.value_residual is None:
            return state, None
        B, T = streams_of(state).shape[:2]
        return state, jnp.zeros((B * self.config.residual.branches, T, self.config.width), self.policy.compute)

    def _collapse(self, state: State, tap: Tap) -> jax.Array:
        """Input of the head."""
        if self.config.norm_streams:
            h = streams_of(state).astype(self.policy.accumulate)
            return tap("hidden", self.ends.collapse(with_streams(state, tap("normalised", self.final_norm(h)))))
        collapsed = tap("collapse", self.ends.collapse(state))
        return tap("hidden", self.final_norm(collapsed.astype(self.policy.accumulate)))

    def init_cache(self, batch: int) -> dict[str, Any]:
        """Decoding state before the first token: the mixers' states (leading axis L) and the position."""
        memory = self.blocks.init_memory(batch, self.config.max_len)
        stacked = jax.tree.map(lambda x: jnp.zeros((self.config.layers, *x.shape), x.dtype), memory)
        return {"layers": stacked, "position": jnp.zeros((), jnp.int32)}

    def prefill(self, tokens_BT: jax.Array, cache: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        """Logits (B, T, V) of tokens that follow ``cache``, and the cache after them."""
        return self._decode(tokens_BT, cache, Block.prefill)

    def step(self, token_B: jax.Array, cache: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        """Logits (B, V) after one token that follows ``cache``, and the cache after it."""
        logits_B1V, cache = self._decode(token_B[:, None], cache, Block.step)
        return logits_B1V[:, 0], cache

    def next_logits(self, tokens_BT: jax.Array) -> jax.Array:
        """Logits (B, V) after the last of the tokens, without a cache."""
        return self._head(self(tokens_BT).hidden_BTD[:, -1:])[:, 0]

    def _decode(self, tokens_BT, cache, advance):
        T = tokens_BT.shape[1]
        # Past the last learned position, which only a state of fixed size reaches, it stays there.
        positions = jnp.minimum(cache["position"] + jnp.arange(T)[None], self.config.max_len - 1)
        state = self.config.residual.begin(self.ends.expand(self._embed(tokens_BT, positions)))
        inputs = jnp.arange(self.config.layers), cache["layers"]
        (state, _), layers = self._run(
            lambda block, carry, inputs: advance(block, carry, *inputs), self._carry(state), inputs
        )
        return self._head(self._collapse(state, no_tap)), {"layers": layers, "position": cache["position"] + T}

    def _run(self, body, carry, inputs, batch_sharding=None):
        layers, remat = self.config.execution.layers, self.config.execution.remat
        return run_stack(self.blocks, body, carry, inputs, layers=layers, remat=remat, batch_sharding=batch_sharding)

    def _embed(self, tokens_BT: jax.Array, positions: jax.Array | None) -> jax.Array:
        tokens, table = self.embed.tokens[...], self.embed.positions[...]
        where = table[: tokens_BT.shape[1]] if positions is None else table[positions]
        return tokens[tokens_BT].astype(self.policy.accumulate) + where.astype(self.policy.accumulate)

    def head_VD(self) -> jax.Array:
        """The output head in the compute dtype."""
        return self.embed.tokens[...].astype(self.policy.compute)

    def _head(self, hidden_BTD: jax.Array) -> jax.Array:
        return jnp.einsum(
            "btd,vd->btv",
            hidden_BTD.astype(self.policy.compute),
            self.head_VD(),
            preferred_element_type=self.policy.accumulate,
        )
