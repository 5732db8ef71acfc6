"""The backbone between embedding and head: expand, stack of sites, collapse, norm."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import Config, within
from mhc_jax.nn.adapters import StreamAdapters, StreamAdaptersConfig
from mhc_jax.nn.block import Block, Site
from mhc_jax.nn.channel import ChannelMixerConfig
from mhc_jax.nn.ends import EndsConfig, IdentityEndsConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.mixers import DiagonalSSMConfig, MixerConfig
from mhc_jax.nn.norms import NormConfig, RMSNormConfig
from mhc_jax.nn.pieces import Piece, of_site
from mhc_jax.nn.residual import PlainConfig, ResidualConfig
from mhc_jax.nn.residual.base import State, streams_of, with_streams
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution, build_stack, layer_of, run_stack, sliced
from mhc_jax.nn.value_residual import FirstValues, ValueResidual, ValueResidualConfig
from mhc_jax.ops import streams
from mhc_jax.precision import Policy, policy

# Of a block, in the order in which they run.
SITES = ("before_mixer", "mixer", "before_mlp", "mlp")


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Config):
    """A stack of layers as a choice along independent axes.

    Attributes:
        width: D, of every residual stream.
        layers: L.
        dropout: after every branch.
        norm: of what every branch takes, of what adapters take (there with a bias, if its kind can have one), and of
            the output.
        norm_streams: normalise each stream and then collapse, as published nanoGPT mHC does: with the sum of n streams
            its first logits are n times too large. The default collapses first.
        residual, ends, adapters, mixer: the parts; adapters need a topology with streams.
        mlp: the channel mixer, a second site of every block; None for blocks of one site.
        before_mixer, before_mlp: channel mixers of further sites before those two; None for none.
        value_residual: lets every layer use the first one's values.
        stream_diversity: coefficient of mHC-SSM's auxiliary loss on streams that are not orthogonal to each other; see
            :func:`mhc_jax.ops.streams.diversity`.
    """

    width: int = 512
    layers: int = 8
    dropout: float = 0.0
    norm: NormConfig = RMSNormConfig()
    norm_streams: bool = False
    residual: ResidualConfig = PlainConfig()
    ends: EndsConfig = IdentityEndsConfig()
    adapters: StreamAdaptersConfig | None = None
    mixer: MixerConfig = DiagonalSSMConfig()
    mlp: ChannelMixerConfig | None = None
    before_mixer: ChannelMixerConfig | None = None
    before_mlp: ChannelMixerConfig | None = None
    value_residual: ValueResidualConfig | None = None
    stream_diversity: float = 0.0

    @classmethod
    def from_dict(cls, data):
        return super().from_dict(_with_norm(data))

    def validate(self):
        super().validate()
        self.require_counts(1, "width", "layers")
        self.require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        self.require_not_negative("stream_diversity")
        self.require(
            self.stream_diversity == 0 or self.residual.stream_count is not None,
            f"stream_diversity needs a residual with streams, not {self.residual.kind!r}",
        )
        with within("residual"):
            self.residual.check(self.width)
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

    def check_kernels(self, policy: Policy) -> None:
        """Raises ConfigError if a part asks for kernels that cannot take this backbone in these dtypes."""
        with within("residual"):
            self.residual.check_kernels(self.width, policy)
        with within("mixer"):
            self.mixer.check_kernels(self.width, policy)

    @property
    def sites(self) -> dict[str, MixerConfig | ChannelMixerConfig]:
        """The branch of every residual site of a block by the site's name, in the order in which they run."""
        return {name: part for name in SITES if (part := getattr(self, name)) is not None}

    @property
    def description(self) -> tuple[str, ...]:
        """Its parts, in a few words each."""
        before = {"before the mixer": self.before_mixer, "before the MLP": self.before_mlp}
        streams = self.residual.stream_count
        return (
            f"{self.layers} layers of width {self.width}",
            f"residual {self.residual.kind}" + (f", {streams} streams" if streams else ""),
            f"mixer {self.mixer.kind}" + (f" and {self.mlp.kind}" if self.mlp else ""),
            *(f"{part.kind} {name}" for name, part in before.items() if part),
        )

    def products(self, length: int) -> int:
        """Operations of its mixers' products between activations, for one token among ``length``."""
        return self.layers * self.residual.branches * self.mixer.product_flops(self.width, length)


# Fields of the norm that older records had beside its name.
_OF_NORM = {"norm_bias": "bias", "norm_eps": "eps"}


def _with_norm(data: Any) -> Any:
    """The fields of an older record, whose norm was a name, as they are now."""
    if not isinstance(data, dict) or not (_OF_NORM.keys() & data or isinstance(data.get("norm"), str)):
        return data
    norm = data.get("norm", "rms")
    norm = {"kind": norm} if isinstance(norm, str) else norm
    if isinstance(norm, dict):
        given = {new: data[old] for old, new in _OF_NORM.items() if data.get(old) is not None}
        norm = norm | {name: x for name, x in given.items() if name != "bias" or norm.get("kind") == "ln"}
    return {name: x for name, x in data.items() if name not in _OF_NORM} | {"norm": norm}


class Backbone(nnx.Module):
    """See :class:`BackboneConfig`. Parameters live under ``ends``, ``blocks`` (stacked) and ``final_norm``."""

    def __init__(self, config: BackboneConfig, execution: Execution, init: Init):
        self.config, self.execution, self.policy = config, execution, policy(execution.policy)
        self.ends = config.ends.build(config.width, config.residual.stream_count, self.policy, init / "ends")
        sites = config.layers * len(config.sites)
        blocks = Init(init.key, f"{init.path}/blocks", sites=sites, repeats=init.repeats)
        self.blocks = build_stack(self._build_block, config.layers, blocks)
        self.final_norm = config.norm.build(config.width, init / "final_norm")

    def _build_block(self, init: Init) -> Block:
        config = self.config
        first = init.index * len(config.sites)
        sites = {
            name: self._build_site(part, (init / name).at(first + i))
            for i, (name, part) in enumerate(config.sites.items())
        }
        values = None if config.value_residual is None else ValueResidual(config.value_residual, init / "values")
        return Block(**sites, values=values)

    def _build_site(self, part: MixerConfig | ChannelMixerConfig, init: Init) -> Site:
        config = self.config
        residual = config.residual.build(config.width, self.policy, init / "residual")
        if config.adapters is not None:
            streams_ = config.residual.stream_count
            assert streams_ is not None  # validate() refuses adapters without streams
            inside = init / "residual" / "adapters"
            norm = config.norm.with_bias().build(config.width, inside / "norm")
            residual = StreamAdapters(residual, config.adapters, config.width, streams_, norm, self.policy, inside)
        branch = part.build(config.width, self.policy, (init / "branch").repeated(config.residual.branches))
        norm = None if residual.normalised else config.norm.build(config.width, init / "norm")
        return Site(residual, branch, norm, config.dropout, self.policy)

    def init_state(self, batch: int, max_len: int) -> Any:
        """The mixers' states before the first token, with a leading layer axis."""
        memory = layer_of(self.blocks, 0).init_state(batch, max_len)
        return jax.tree.map(lambda x: jnp.zeros((self.config.layers, *x.shape), x.dtype), memory)

    def __call__(self, x_BTD: jax.Array, states: Any | None, scope: Scope) -> tuple[jax.Array, Any | None]:
        """The normalised output (B, T, D), and the mixers' states after the last token; see :class:`Mixer`."""
        carry = self._begin(x_BTD, scope), self._no_values(x_BTD)
        (state, _), states = run_stack(self.blocks, carry, states, scope / "blocks", self.execution)
        if self.config.stream_diversity:
            diversity = streams.diversity(streams_of(state).astype(self.policy.accumulate))
            scope.penalise("stream_diversity", self.config.stream_diversity * diversity)
        return sliced(self._collapse(state, scope), scope.batch_sharding), states

    def pieces_after(self, embed: Callable[[jax.Array, Scope], jax.Array]) -> dict[str, Piece]:
        """Its parts by name, see :class:`mhc_jax.nn.pieces.Piece`.

        Args:
            embed: its input (B, T, D), from token ids.
        """

        def begin(tokens_BT, scope):
            return self._begin(embed(tokens_BT, scope), scope)

        def through(x_BTD, states, scope):
            return self._collapse(self._begin(x_BTD, scope), scope), states

        found = {"ends and final norm": Piece(("ends", "final_norm"), embed, through)}
        for name, part in self.config.sites.items():
            site = getattr(self.blocks, name)
            found |= dict(of_site(name, site, part.kind, self.config.layers, self.execution, begin))
        return found

    def _begin(self, x_BTD: jax.Array, scope: Scope) -> State:
        """The residual state before the first layer."""
        state = self.config.residual.begin(scope.tap("expand", self.ends.expand(x_BTD)))
        if self.config.residual.stream_count is None:
            return state
        return with_streams(state, streams_of(state).astype(self.policy.streams))

    def _no_values(self, x_BTD: jax.Array) -> FirstValues | None:
        """The place of the first layer's values, if later layers share them."""
        config = self.config
        if config.value_residual is None:
            return None
        B, T = x_BTD.shape[:2]
        shape = B * config.residual.branches, T, config.mixer.value_width(config.width)
        return FirstValues(jnp.zeros(shape, self.policy.compute))

    def _collapse(self, state: State, scope: Scope) -> jax.Array:
        if self.config.norm_streams:
            h = streams_of(state).astype(self.policy.accumulate)
            normalised = scope.tap("normalised", jax.tree.map(self.final_norm, h))
            return scope.tap("hidden", self.ends.collapse(with_streams(state, normalised)))
        collapsed = scope.tap("collapse", self.ends.collapse(state))
        return scope.tap("hidden", self.final_norm(collapsed.astype(self.policy.accumulate)))
