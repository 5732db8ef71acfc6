"""The decoder-only language model: embed, expand, stack of sites, collapse, norm, tied head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.block import Block, Site
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
from mhc_jax.nn.stack import LayersName, RematName, build_stack, run_stack
from mhc_jax.nn.taps import Tap, Taps, no_tap
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
        embed_std: standard deviation of both embeddings at initialisation; 1 in the original mHC-SSM,
            whose tied logits then start with a standard deviation of sqrt(D).
        residual, ends, adapters, mixer: the parts; adapters need a topology with streams.
        execution: how it runs.
    """

    axis = "model"

    vocab_size: int = 50257
    max_len: int = 256
    width: int = 512
    layers: int = 8
    dropout: float = 0.0
    norm: NormName = "rms"
    embed_std: float = 0.02
    residual: ResidualConfig = PlainConfig()
    ends: EndsConfig = IdentityEndsConfig()
    adapters: StreamAdaptersConfig | None = None
    mixer: MixerConfig = DiagonalSSMConfig()
    execution: Execution = Execution()

    def validate(self):
        super().validate()
        for name in ("vocab_size", "max_len", "width", "layers"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        self.require(self.norm in ("rms", "ln"), f"norm must be 'rms' or 'ln', got {self.norm!r}")
        self.require(self.embed_std > 0, f"embed_std must be positive, got {self.embed_std}")
        self.ends.check(self.residual.stream_count)
        self.require(
            self.adapters is None or self.residual.stream_count is not None,
            f"adapters need a residual with streams, not {self.residual.kind!r}",
        )


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
        self.blocks = build_stack(self._build_block, config.layers, init / "blocks")
        self.final_norm = Norm(config.width, config.norm, init / "final_norm")

    def _build_block(self, init: Init) -> Block:
        config, init = self.config, init / "mixer"
        residual = config.residual.build(config.width, self.policy, init / "residual")
        if config.adapters is not None:
            streams_ = config.residual.stream_count
            assert streams_ is not None  # validate() refuses adapters without streams
            residual = StreamAdapters(
                residual, config.adapters, config.width, streams_, config.norm, self.policy, init / "residual"
            )
        branch = config.mixer.build(config.width, self.policy, init / "branch")
        return Block(Site(residual, branch, config.width, config.norm, config.dropout, self.policy, init))

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
        taps: bool = False,
        probes: dict[str, jax.Array] | None = None,
    ) -> Output:
        """See :func:`mhc_jax.apply`."""
        tap = Taps(probes) if taps or probes else no_tap
        x_BTD = tap("embed", dropout(self._embed(tokens_BT, positions), self.config.dropout, fold(key, 0)))
        state = tap("expand", self.ends.expand(x_BTD))
        state = self._blocks(state, positions, segment_ids, fold(key, 1), tap)
        collapsed = tap("collapse", self.ends.collapse(state))
        hidden_BTD = tap("hidden", self.final_norm(collapsed.astype(self.policy.accumulate)))
        logits_BTV = tap("logits", self._head(hidden_BTD))
        aux = {}
        if self.config.residual.stream_count is not None:
            aux["stream_diversity"] = streams.diversity(state)
        return Output(logits_BTV, hidden_BTD, aux, tap.values if isinstance(tap, Taps) else {})

    def _blocks(self, state, positions, segment_ids, key, tap: Tap):
        prefix = "blocks."
        probes = tap.probes if isinstance(tap, Taps) else {}
        inside = {name.removeprefix(prefix): value for name, value in probes.items() if name.startswith(prefix)}

        def body(block, state, inputs):
            layer, layer_probes = inputs
            layer_tap = Taps(layer_probes) if isinstance(tap, Taps) else no_tap
            state = block(state, positions=positions, segment_ids=segment_ids, key=fold(key, layer), tap=layer_tap)
            return state, layer_tap.values if isinstance(layer_tap, Taps) else {}

        state, recorded = self._run(body, state, (jnp.arange(self.config.layers), inside))
        if isinstance(tap, Taps):
            tap.values.update({prefix + name: value for name, value in recorded.items()})
        return state

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

    def _decode(self, tokens_BT, cache, advance):
        T = tokens_BT.shape[1]
        positions = cache["position"] + jnp.arange(T)[None]
        state = self.ends.expand(self._embed(tokens_BT, positions))
        state, layers = self._run(advance, state, cache["layers"])
        hidden_BTD = self.final_norm(self.ends.collapse(state).astype(self.policy.accumulate))
        return self._head(hidden_BTD), {"layers": layers, "position": cache["position"] + T}

    def _run(self, body, carry, inputs):
        execution = self.config.execution
        return run_stack(self.blocks, body, carry, inputs, layers=execution.layers, remat=execution.remat)

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
