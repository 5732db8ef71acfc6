"""SHC as published (``sparse-hyper-connections`` 0.1.2): streams inside each block, routed by the mean over all tokens.

A token's routing depends on later tokens, so with more than one stream this is no causal model: it learns to read the
answer from its own mixing matrices, and what it gives for a prefix changes with what follows. It is here so that its
checkpoints load and its claims can be measured; :class:`~mhc_jax.nn.residual.SHCConfig` is the repaired form.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import ConfigError
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.init import Init, normal, zeros
from mhc_jax.nn.layers import Dense, dropout
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.model import Model, ModelConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.pieces import PassingChannelMixer, PassingMixer, Piece, add_mixed, add_transformed, in_all_layers
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Prepared, Preparing, build_stack, layer_of, run_stack, sliced
from mhc_jax.ops import factor, projections, routing, streams
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy, policy
from mhc_jax.registry import register

# Its tables of rotary positions end here, whatever its configuration says.
LONGEST = 8192
# Padding to it: as an input this token trains nothing.
PADDING = 0
ROUTES = ("pre", "res", "post")
_DRAWN = normal(0.02)


@register("model", "shc_original")
@dataclasses.dataclass(frozen=True)
class SHCOriginalConfig(ModelConfig):
    """The published network, quirks included; its defaults, but for the rank selection and dropout.

    Attributes:
        vocab_size, max_len: as in :class:`ModelConfig`; at most 8,192 tokens.
        width, layers, heads: sizes of the transformer.
        hidden: width of the perceptron; None for 8/3 of the model's, rounded down.
        streams: number n of streams inside a block; with one, blocks are those of an ordinary pre-norm transformer, and
            the model is causal.
        components: number of orthogonal matrices that are mixed, all of them always.
        rank: size of the code that the published cache keeps of a token's streams. Nothing is trained by it or read
            from it; it is computed for the tap ``"code"`` alone.
        adaptive_rank: whether a selector chooses the number of streams from the batch's mean; its default in the
            published code. Any number but 1 and n is a shape error there, and NaN here; nothing trains the selector.
        rotary: whether queries and keys are turned by their positions.
        tied: whether the head is the token table.
        dropout: its rate, twice after the perceptron.
        see_future: lets a model whose tokens see later ones be trained on text, to study what it then learns.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int | None = None
    streams: int = 4
    components: int = 2
    rank: int = 1
    adaptive_rank: bool = False
    rotary: bool = True
    tied: bool = True
    dropout: float = 0.0
    see_future: bool = False

    def validate(self):
        super().validate()
        self.require_counts(1, "width", "layers", "heads", "streams", "components", "rank")
        if self.hidden is not None:
            self.require_counts(1, "hidden")
        self.require(self.max_len <= LONGEST, f"max_len must be at most {LONGEST}, got {self.max_len}")
        self.require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        self.require(
            not self.adaptive_rank or self.width >= 4, f"adaptive_rank needs a width of at least 4, got {self.width}"
        )
        self.attention.check(self.width)

    @property
    def attention(self) -> AttentionConfig:
        """The attention of every block."""
        rotary = "half" if self.rotary else "none"
        return AttentionConfig(heads=self.heads, rotary=rotary, bias=False, scale_output=False, dropout=self.dropout)

    @property
    def hidden_width(self) -> int:
        """Width of the perceptron."""
        return 8 * self.width // 3 if self.hidden is None else self.hidden

    def small(self):
        return self.replace(vocab_size=61, max_len=24, width=8, layers=2, heads=2, hidden=7)

    @property
    def description(self):
        inside = f"{self.streams} streams inside each" if self.streams > 1 else "one stream"
        return f"{self.layers} layers of width {self.width}", f"SHC as published, {inside}"

    @property
    def layer_output(self):
        return "blocks.state"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites of a block that mix streams: with several streams the block is one."""
        return ("block",) if self.streams > 1 else ()

    @property
    def causal(self):
        return self.streams == 1

    def check_next_token(self):
        self.require(
            self.causal or self.see_future,
            "its routing sees later tokens: it can neither learn nor continue a text; take the topology 'shc', or ask "
            "for training all the same by see_future",
        )

    def check_segments(self):
        fault = "shc_original takes the mean of a row in its routing, whose segments it cannot keep apart"
        self.require(self.causal, fault)

    def product_flops(self, length):
        products = {"blocks.attention, products": self.layers * self.attention.product_flops(self.width, length)}
        return products | ({"head (the token table)": 2 * self.vocab_size * self.width} if self.tied else {})

    def build(self, init):
        return SHCOriginal(self, init)


class SHCOriginal(Model):
    """Parameters live under ``embed``, ``blocks`` (stacked), ``final_norm`` and, if not tied, ``head``."""

    def __init__(self, config: SHCOriginalConfig, init: Init):
        self.config, self.policy = config, policy(config.execution.policy)
        self.embed = Embed(config, init / "embed")
        self.blocks = build_stack(lambda init: SHCBlock(config, self.policy, init), config.layers, init / "blocks")
        self.final_norm = RMSNormConfig().build(config.width, init / "final_norm")
        shape, axes = (config.width, config.vocab_size), ("embed", "vocab")
        self.head = None if config.tied else Dense(*shape, init / "head", axes, kernel=_DRAWN, bias=False)

    def init_state(self, batch, max_len):
        if not self.config.causal:
            return {}
        memory = layer_of(self.blocks, 0).attention.init_state(batch, max_len)
        return jax.tree.map(lambda x: jnp.zeros((self.config.layers, *x.shape), x.dtype), memory)

    def __call__(self, tokens_BT, state, scope):
        if state is not None and not self.config.causal:
            raise ConfigError("shc_original: a text changes what its beginning gives, so that none of it can be kept")
        if scope.segments_BT is not None:
            self.config.check_segments()
        x_BTD = dropout(
            sliced(self._embed(tokens_BT), scope.batch_sharding), self.config.dropout, scope.key_of("dropout")
        )
        x_BTD = scope.tap("embed", x_BTD)
        x_BTD, state = run_stack(self.blocks, x_BTD, state, scope / "blocks", self.config.execution)
        return scope.tap("hidden", self.final_norm(x_BTD)), state

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTD = jnp.take(self.embed.tokens[...], tokens_BT, axis=0).astype(self.policy.accumulate)
        return jnp.where((tokens_BT == PADDING)[..., None], jax.lax.stop_gradient(x_BTD), x_BTD)

    def pieces(self):
        def embedded(tokens_BT, scope):
            return self._embed(tokens_BT)

        def in_blocks(names, part, call, *, remembers=False):
            run = in_all_layers(part, call, self.config.layers, self.config.execution)
            return Piece(tuple(f"blocks.{name}" for name in names), embedded, run, remembers)

        bare = nnx.clone(self.blocks)
        attention, mlp, bare.attention, bare.mlp = bare.attention, bare.mlp, PassingMixer(), PassingChannelMixer()
        norms = "norm_1", "norm_2", "norm_streams"
        streams_ = *norms, "selector", "expand", "merge", "routing", "code"
        return {
            "embedding": Piece(
                ("embed",), lambda tokens_BT, scope: tokens_BT, lambda x, states, scope: (self._embed(x), states)
            ),
            "streams and norms": in_blocks(streams_, bare, SHCBlock.__call__),
            "attention": in_blocks(("attention",), attention, add_mixed, remembers=True),
            "mlp": in_blocks(("mlp",), mlp, add_transformed),
            "final norm": Piece(("final_norm",), embedded, lambda x, states, scope: (self.final_norm(x), states)),
        }

    def head_VD(self):
        table_VD = self.embed.tokens[...] if self.head is None else self.head.kernel[...].T
        return table_VD.astype(self.policy.compute)


class Embed(nnx.Module):
    """The token table (V, D)."""

    def __init__(self, config: SHCOriginalConfig, init: Init):
        shape = config.vocab_size, config.width
        self.tokens = init("tokens", _DRAWN, *shape, role="table", axes=("vocab", "embed"))


class SHCBlock(nnx.Module):
    """A block: attention and perceptron between an expansion to streams and their merging, each used twice."""

    def __init__(self, config: SHCOriginalConfig, policy: Policy, init: Init):
        n, D = config.streams, config.width
        self.config, self.policy = config, policy
        self.norm_1, self.norm_2, self.norm_streams = (
            LayerNormConfig().build(D, init / name) for name in ("norm_1", "norm_2", "norm_streams")
        )
        self.attention = config.attention.build(D, policy, init / "attention")
        self.mlp = SwiGLUConfig(hidden=config.hidden_width, scale_output=False).build(D, policy, init / "mlp")
        self.selector = RankSelector(D, n, policy, init / "selector") if config.adaptive_rank else None
        uses = 2.0 if n > 1 else 0.0
        drawn = {"kernel": _DRAWN, "bias": zeros, "uses": uses}
        self.expand = Dense(D, n * D, init / "expand", ("embed", "inner"), **drawn)
        self.merge = Dense(n * D, D, init / "merge", ("inner", "embed"), **drawn)
        self.routing = Routing(n, config.components, D, policy, init / "routing")
        self.code = FactorizedCode(n, D, config.rank, init / "code")

    def __call__(self, x_BTD, memory, scope):
        n = self.config.streams
        if n == 1:
            return self._bypass(x_BTD, memory, scope)
        y_BTD = self._through_streams(x_BTD, scope)
        if self.selector is not None:
            selected = scope.tap("rank", self.selector(x_BTD, scope))
            bypassed_BTD, _ = self._bypass(x_BTD, None, scope.replace(taps=None))
            y_BTD = jnp.where(selected == n, y_BTD, jnp.where(selected == 1, bypassed_BTD, jnp.nan))
        return scope.tap("state", y_BTD), None

    def _bypass(self, x_BTD, memory, scope):
        """The ordinary pre-norm block."""
        a_BTD, memory = self._attended(self.norm_1(x_BTD), memory, scope)
        x_BTD = x_BTD + a_BTD.astype(x_BTD.dtype)
        y_BTD = x_BTD + self._transformed(self.norm_2(x_BTD), scope).astype(x_BTD.dtype)
        return scope.tap("state", y_BTD), memory

    def _through_streams(self, x_BTD, scope):
        """Attention reaches the result only through the perceptron, and only ``x`` goes past both."""
        h = self._expanded(self.norm_1(x_BTD)).astype(x_BTD.dtype).each(self.norm_streams)
        pooled_BD = jnp.mean(h.total(), axis=1) / len(h)
        mixing = self.routing(pooled_BD, scope / "routing")
        pre, res, post = (h_BNN[:, None].astype(x_BTD.dtype) for h_BNN in mixing)
        a_BTD, _ = self._attended(self._merged(streams.mix(h, pre)), None, scope)
        f_BTD = self._transformed(self.norm_2(a_BTD.astype(x_BTD.dtype)), scope)
        out = streams.mix(h, res) + streams.mix(self._expanded(f_BTD).astype(x_BTD.dtype), post)
        scope.tap("code", self.code(out))
        return self._merged(out).astype(x_BTD.dtype) + x_BTD

    def _expanded(self, x_BTD) -> Streams:
        return streams.split_streams(self.expand(x_BTD.astype(self.policy.compute)), self.config.streams)

    def _merged(self, h: Streams):
        return self.merge(h.astype(self.policy.compute).join())

    def _attended(self, x_BTD, memory, scope):
        a_BTD, memory = self.attention(x_BTD, memory, scope / "attention")
        return dropout(a_BTD, self.config.dropout, scope.key_of("attended")), memory

    def _transformed(self, x_BTD, scope):
        f_BTD = self.mlp(x_BTD, scope / "mlp")
        for name in ("mlp", "transformed"):
            f_BTD = dropout(f_BTD, self.config.dropout, scope.key_of(name))
        return f_BTD


class SequenceMixture(Preparing):
    """A convex mixture of rotations for each sequence: ``sum_c softmax(proj(x) / temperature)_c Q_c``."""

    rotations_CNN: Prepared | None = None

    def __init__(self, streams: int, components: int, width: int, policy: Policy, init: Init):
        self.streams, self.policy = streams, policy
        shape = components, streams * (streams - 1) // 2
        self.skew = init("skew", normal(0.01), *shape, role="vector", axes=("coefficient",) * 2)
        # Once for a sequence, so that it counts nothing for a token.
        axes = ("embed", "coefficient")
        self.proj = Dense(width, components, init / "proj", axes, kernel=_DRAWN, bias=zeros, uses=0.0)

    def prepare(self):
        return {"rotations_CNN": self._rotations()}

    def _rotations(self):
        return projections.cayley_transform(self.skew[...].astype(self.policy.accumulate), size=self.streams)

    def weights(self, x_BD: jax.Array, temperature: float = 1.0) -> jax.Array:
        """(B, C), all of them positive."""
        return jax.nn.softmax(self.proj(x_BD.astype(self.policy.accumulate)) / temperature, axis=-1)

    def mixed(self, weight_BC: jax.Array) -> jax.Array:
        """(B, N, N)."""
        rotations_CNN = self._rotations() if self.rotations_CNN is None else self.rotations_CNN[...]
        return projections.mixture(weight_BC, rotations_CNN)

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        """(B, N, N)."""
        return self.mixed(self.weights(x_BD))


class Routing(nnx.Module):
    """Three independent mixtures of one input: before attention, around it, and after the perceptron."""

    def __init__(self, streams: int, components: int, width: int, policy: Policy, init: Init):
        self.pre, self.res, self.post = (
            SequenceMixture(streams, components, width, policy, init / name) for name in ROUTES
        )

    def __call__(self, x_BD: jax.Array, scope: Scope) -> tuple[jax.Array, ...]:
        return tuple(self._route(name, x_BD, scope) for name in ROUTES)

    def _route(self, name: str, x_BD: jax.Array, scope: Scope) -> jax.Array:
        mixture = getattr(self, name)
        weight_BC = scope.tap(f"alpha_{name}", mixture.weights(x_BD))
        return scope.tap(f"h_{name}", mixture.mixed(weight_BC))


class FactorizedCode(nnx.Module):
    """The published factorised cache: a token's streams as ``rank`` numbers. No loss reaches its two matrices."""

    def __init__(self, streams: int, width: int, rank: int, init: Init):
        orthogonal = jax.nn.initializers.orthogonal()
        self.U = init("U", orthogonal, streams, rank, role="vector", axes=("stream", "coefficient"))
        self.V = init("V", orthogonal, width, rank, role="vector", axes=("features", "coefficient"))

    def __call__(self, h: Streams) -> jax.Array:
        """The code (B, T, rank)."""
        return factor.compress(h, *(leaf[...].astype(h.dtype) for leaf in (self.U, self.V)))

    def decode(self, code_BTR: jax.Array) -> Streams:
        """The streams of a code."""
        return factor.decompress(code_BTR, *(leaf[...].astype(code_BTR.dtype) for leaf in (self.U, self.V)))


class RankSelector(nnx.Module):
    """The number of streams for a whole batch: the mean over its rows, rounded down; no gradient passes."""

    def __init__(self, width: int, streams: int, policy: Policy, init: Init):
        self.policy, self.streams = policy, streams
        drawn = {"kernel": _DRAWN, "bias": zeros, "uses": 0.0}
        self.in_proj = Dense(width, width // 4, init / "in_proj", ("embed", "inner"), **drawn)
        self.out_proj = Dense(width // 4, streams, init / "out_proj", ("inner", "coefficient"), **drawn)
        self.layer_bias = init("layer_bias", zeros, streams, axes=("coefficient",))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """(B, N), of the mean token."""
        x_BD = jnp.mean(x_BTD, axis=1, dtype=self.policy.accumulate)
        hidden = jax.nn.gelu(self.in_proj(x_BD), approximate=False)
        return self.out_proj(hidden) + self.layer_bias[...].astype(x_BD.dtype)

    def __call__(self, x_BTD: jax.Array, scope: Scope, temperature: float = 1.0) -> jax.Array:
        """A number from 1 to N; drawn if the scope has a key."""
        logits_BN, key = self.logits(x_BTD), scope.key_of("rank")
        noise_BN = None if key is None else jax.random.gumbel(key, logits_BN.shape, logits_BN.dtype)
        choice_BN = routing.straight_through(logits_BN, temperature, noise_BN)
        rank_B = jnp.sum(routing.prefix_mask(choice_BN), axis=-1)
        return jnp.floor(jnp.mean(rank_B))
