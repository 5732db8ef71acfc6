"""GPT-2 and nanoGPT: learned positions, LayerNorm, causal attention, GELU MLP, tied head, with any residual topology.

GPT-2 follows Radford et al. 2019; nanoGPT with hyper-connections and static mHC follows the published example that
trains on FineWeb10B. Each of its variants has two named forms: ``"original"`` reproduces the published mathematics (its
HC discards the mixed streams, its mHC writes 1/n and never learns H_res, its final norm comes before the sum of the
streams); ``"default"`` is the paper's HC and an mHC that learns, both equal to the plain network at the start.
"""

from typing import Any, Literal, get_args

from mhc_jax.config import check_changes, check_name
from mhc_jax.models import topologies
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.ends import CopyEndsConfig, EndsConfig, IdentityEndsConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from mhc_jax.nn.projections import OrthostochasticConfig
from mhc_jax.nn.residual import HyperConnectionsConfig, PlainConfig, ResidualConfig, StaticMHCConfig
from mhc_jax.nn.value_residual import ValueResidualConfig

Form = Literal["default", "original"]
Topology = Literal["plain", "hc", "mhc", "mhc_orthostochastic"]
ValueResidual = Literal["none", "free", "constrained"]
Size = Literal["124M", "355M", "774M", "1558M"]

# Layers, heads, width.
SIZES: dict[Size, tuple[int, int, int]] = {
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
}

_ORIGINAL_MHC = topologies.mhc_original().residual
_TOPOLOGIES: dict[tuple[Topology, Form], ResidualConfig] = {
    ("plain", "default"): PlainConfig(),
    ("plain", "original"): PlainConfig(),
    ("hc", "default"): HyperConnectionsConfig(),
    ("hc", "original"): topologies.hc_published().residual,
    ("mhc", "default"): StaticMHCConfig(),
    ("mhc", "original"): _ORIGINAL_MHC,
    ("mhc_orthostochastic", "default"): StaticMHCConfig(projection=OrthostochasticConfig()),
    ("mhc_orthostochastic", "original"): _ORIGINAL_MHC.replace(
        projection=OrthostochasticConfig(schedule="quintic", normalise=False, start="diagonal"), res_offset=-8.0
    ),
}


def ends_for(residual: ResidualConfig, *, original: bool = False) -> EndsConfig:
    """The ends of GPT models: copies of the embedding in, the mean of the streams out; published nanoGPT sums them."""
    if residual.stream_count is None:
        return IdentityEndsConfig()
    return CopyEndsConfig(collapse="sum" if original else "mean")


def nanogpt(
    topology: Topology = "mhc",
    form: Form = "default",
    *,
    heads: int = 6,
    value_residual: ValueResidual = "none",
    attention_dropout: float = 0.0,
    **changes: Any,
) -> LMConfig:
    """The published nanoGPT (6 layers of width 288, 1,024 positions, 50,304 tokens, no biases) in one of its variants.

    Args:
        topology: topology of both sites of every block, with four streams.
        form: see the module.
        heads: number of attention heads.
        value_residual: see :class:`mhc_jax.nn.value_residual.ValueResidualConfig`.
        attention_dropout: dropout rate of attention probabilities; ``dropout`` in ``changes`` is the rate elsewhere.
        changes: fields of :class:`LMConfig` to replace.

    Raises:
        ConfigError: no such topology, form or value residual; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("topology of nanogpt", topology, get_args(Topology))
    check_name("form of nanogpt", form, get_args(Form))
    check_name("value_residual", value_residual, get_args(ValueResidual))
    check_changes(nanogpt, LMConfig, changes)
    original = form == "original"
    residual = _TOPOLOGIES[topology, form]
    config = LMConfig(
        vocab_size=50304,
        max_len=1024,
        width=288,
        layers=6,
        norm=LayerNormConfig(bias=False),
        norm_streams=original and topology != "plain",
        residual=residual,
        ends=ends_for(residual, original=original),
        mixer=AttentionConfig(heads=heads, bias=False, dropout=attention_dropout),
        mlp=GeluMLPConfig(bias=False),
        value_residual=None
        if value_residual == "none"
        else ValueResidualConfig(constrained=value_residual == "constrained"),
    )
    return config.replace(**changes)


def gpt2(size: Size = "124M", residual: ResidualConfig = PlainConfig(), **changes: Any) -> LMConfig:
    """GPT-2 of a published size, or the same network over another residual topology.

    Args:
        size: ``"124M"``, ``"355M"``, ``"774M"`` or ``"1558M"`` parameters.
        residual: topology of both sites of every block.
        changes: fields of :class:`LMConfig` to replace.

    Raises:
        ConfigError: no such size; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("size of gpt2", size, get_args(Size))
    check_changes(gpt2, LMConfig, changes)
    layers, heads, width = SIZES[size]
    config = LMConfig(
        vocab_size=50257,
        max_len=1024,
        width=width,
        layers=layers,
        norm=LayerNormConfig(),
        residual=residual,
        ends=ends_for(residual),
        mixer=AttentionConfig(heads=heads),
        mlp=GeluMLPConfig(activation="tanh"),
    )
    return config.replace(**changes)
