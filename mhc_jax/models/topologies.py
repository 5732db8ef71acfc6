"""The named residual topologies: each with its stream ends, to be put under any model and any mixer.

``with_topology(config, name)`` is the whole use. A plug-in adds its own with ``@register("topology", NAME)`` over a
function that returns a :class:`Topology`; the property tests, the parity matrix and the command line then know it.
"""

import dataclasses
from typing import TypeVar

from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.nn.backbone import BackboneConfig
from mhc_jax.nn.ends import CopyEndsConfig, DenseEndsConfig, EndsConfig, IdentityEndsConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.projections import (
    CayleyConfig,
    CirculantConfig,
    DeepseekSinkhornConfig,
    IdentityProjectionConfig,
    KroneckerConfig,
    NewtonConfig,
    OrthostochasticConfig,
    PermutationsConfig,
    SinkhornConfig,
    SpectralSphereConfig,
)
from mhc_jax.nn.residual import (
    DynamicMHCConfig,
    FracConnectionsConfig,
    GatedResidualConfig,
    HyperConnectionsConfig,
    MultiBranchHCConfig,
    PerStreamMHCConfig,
    PlainConfig,
    ResidualConfig,
    SHCConfig,
    SinglePassMHCConfig,
    StaticMHCConfig,
)
from mhc_jax.nn.value_residual import ValueResidualConfig
from mhc_jax.registry import register

AXIS = "topology"
Model = TypeVar("Model", bound=ModelConfig | BackboneConfig)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A residual topology and the settings that belong to it.

    Attributes:
        residual: configuration of every site.
        ends: None for the usual ones: copies of the embedding in, the mean of the streams out.
        adapters, value_residual, norm_streams: see :class:`mhc_jax.nn.lm.LMConfig`.
        starts_plain: whether the network equals the plain pre-norm one with its initial parameters.
    """

    residual: ResidualConfig
    ends: EndsConfig | None = None
    adapters: StreamAdaptersConfig | None = None
    value_residual: ValueResidualConfig | None = None
    norm_streams: bool = False
    starts_plain: bool = True


def topology(name: str) -> Topology:
    """The topology of that name.

    Raises:
        ConfigError: no such name; the message lists the names and the nearest one.
    """
    try:
        return registry.get(AXIS, name)()
    except KeyError as error:
        kind = name in registry.names("residual")
        more = f"; {name!r} is a residual, which a topology must name before a model can be put over it" if kind else ""
        raise ConfigError(f"{error.args[0]}{more}") from None


def with_topology(config: Model, name: str, *, streams: int | None = None) -> Model:
    """The model over another topology; all else stays.

    Args:
        config: any language model, or one of backbones, which all get it.
        name: a registered topology.
        streams: number of streams, where the topology has that choice; None for its own.

    Raises:
        ConfigError: an unknown topology, or one without a number of streams.
    """
    found = topology(name)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if backbones := {field: part for field, part in fields.items() if isinstance(part, BackboneConfig)}:
        inside = {field: with_topology(part, name, streams=streams) for field, part in backbones.items()}
        return config.replace(**inside)
    if not isinstance(config, BackboneConfig):
        raise ConfigError(f"a {config.kind!r} has no residual topology to choose")
    residual = found.residual
    if streams is not None:
        if not hasattr(residual, "streams"):
            raise ConfigError(f"topology {name!r} has no number of streams")
        residual = residual.replace(streams=streams)
    ends = found.ends or (IdentityEndsConfig() if residual.stream_count is None else CopyEndsConfig())
    mixer = config.mixer
    if "views" in {field.name for field in dataclasses.fields(mixer)}:
        # Attention reads queries, keys and values apart if there are three views.
        mixer = mixer.replace(views=3 if residual.views == 3 else 1)
    return config.replace(
        residual=residual,
        ends=ends,
        adapters=found.adapters,
        value_residual=found.value_residual,
        norm_streams=found.norm_streams,
        mixer=mixer,
    )


@register(AXIS, "plain")
def plain() -> Topology:
    """One stream, pre-norm."""
    return Topology(PlainConfig())


@register(AXIS, "value_residual")
def value_residual() -> Topology:
    """One stream; every layer averages its values with the first layer's (ResFormer)."""
    return Topology(PlainConfig(), value_residual=ValueResidualConfig(), starts_plain=False)


@register(AXIS, "gated")
def gated() -> Topology:
    """Gated residual of Qwen4-exp: low-rank read gates per channel, one write weight per stream, no mixing."""
    return Topology(GatedResidualConfig())


@register(AXIS, "hc")
def hc() -> Topology:
    """Dynamic hyper-connections (paper)."""
    return Topology(HyperConnectionsConfig())


@register(AXIS, "hc_static")
def hc_static() -> Topology:
    """Static hyper-connections (paper)."""
    return Topology(HyperConnectionsConfig(dynamic=False))


@register(AXIS, "hc_published")
def hc_published() -> Topology:
    """HC of the nanoGPT example, which discards its mixed streams; streams are normalised and then summed."""
    original = HyperConnectionsConfig(mixed=False)
    return Topology(original, ends=CopyEndsConfig(collapse="sum"), norm_streams=True, starts_plain=False)


@register(AXIS, "hc_views")
def hc_views() -> Topology:
    """Hyper-connections with three reads per site: queries, keys and values see different mixtures."""
    return Topology(HyperConnectionsConfig(views=3))


@register(AXIS, "hc_fractions")
def hc_fractions() -> Topology:
    """Hyper-connections over two streams of two fractions each (published code)."""
    return Topology(HyperConnectionsConfig(streams=2, fractions=2), starts_plain=False)


@register(AXIS, "multi_branch")
def multi_branch() -> Topology:
    """Hyper-connections whose branch runs on two separate reads."""
    return Topology(MultiBranchHCConfig())


@register(AXIS, "frac")
def frac() -> Topology:
    """Frac-connections (paper): the width itself is cut into fractions, nothing is widened."""
    return Topology(FracConnectionsConfig())


@register(AXIS, "mhc")
def mhc() -> Topology:
    """Static mHC, Sinkhorn, repaired: it starts as the plain network and its mixing learns."""
    return Topology(StaticMHCConfig())


@register(AXIS, "mhc_original")
def mhc_original() -> Topology:
    """Static mHC of the nanoGPT example: its H_res never learns, its writes are 1/n, its norm precedes the sum."""
    frozen = SinkhornConfig(iters=10, temperature=0.05)
    original = StaticMHCConfig(projection=frozen, unit_writes=False, read_bias=8.0, diagonal_bias=8.0)
    return Topology(original, ends=CopyEndsConfig(collapse="sum"), norm_streams=True, starts_plain=False)


@register(AXIS, "mhc_orthostochastic")
def mhc_orthostochastic() -> Topology:
    """Static mHC, orthostochastic by Newton-Schulz, repaired."""
    return Topology(StaticMHCConfig(projection=OrthostochasticConfig()))


@register(AXIS, "mhc_identity_mix")
def mhc_identity_mix() -> Topology:
    """Static mHC whose matrix is (1 - a) I + a S with a learned."""
    return Topology(StaticMHCConfig(identity_mix=0.01))


@register(AXIS, "mhc_ssm")
def mhc_ssm() -> Topology:
    """Static mHC of mHC-SSM, repaired, with its dense ends."""
    rows_first = SinkhornConfig(iters=8, order="rows_then_columns")
    return Topology(StaticMHCConfig(projection=rows_first, noise=0.02), ends=DenseEndsConfig())


@register(AXIS, "mhc_ssm_adapters")
def mhc_ssm_adapters() -> Topology:
    """Static mHC of mHC-SSM with stream-specialised adapters, repaired."""
    return dataclasses.replace(mhc_ssm(), adapters=StreamAdaptersConfig())


@register(AXIS, "dynamic_mhc")
def dynamic_mhc() -> Topology:
    """mHC of the DeepSeek paper: coefficients from all streams of the token, Sinkhorn with exact rows."""
    return Topology(DynamicMHCConfig())


@register(AXIS, "deepseek_v4")
def deepseek_v4() -> Topology:
    """mHC as DeepSeek-V4 runs it, with its learned head and its initialisation."""
    residual = DynamicMHCConfig(
        projection=DeepseekSinkhornConfig(), alpha=1.0, phi_std=0.02, pre_eps=1e-6, bias="zeros"
    )
    return Topology(residual, ends=CopyEndsConfig(collapse="head"), starts_plain=False)


@register(AXIS, "single_pass_mhc")
def single_pass_mhc() -> Topology:
    """Single-pass mHC of DeepSeek-V4.1: every site reads with the coefficients of the site before."""
    return Topology(SinglePassMHCConfig(), ends=CopyEndsConfig(collapse="carried"))


@register(AXIS, "per_stream_mhc")
def per_stream_mhc() -> Topology:
    """mHC of the PyPI package hyper-connections: every stream gives its own row of coefficients."""
    return Topology(PerStreamMHCConfig())


@register(AXIS, "mhc_newton")
def mhc_newton() -> Topology:
    """Dynamic mHC with the exact projection onto doubly stochastic matrices, by Newton in the dual."""
    return Topology(DynamicMHCConfig(projection=NewtonConfig()))


@register(AXIS, "mhc_lite")
def mhc_lite() -> Topology:
    """mHC-lite: a mixture of all permutations, exactly doubly stochastic."""
    return Topology(DynamicMHCConfig(projection=PermutationsConfig()))


@register(AXIS, "kromhc")
def kromhc() -> Topology:
    """KromHC: a Kronecker product of 2 x 2 doubly stochastic factors."""
    return Topology(DynamicMHCConfig(projection=KroneckerConfig()))


@register(AXIS, "circulant_mhc")
def circulant_mhc() -> Topology:
    """C-mHC: a circulant mixture of cyclic shifts."""
    return Topology(DynamicMHCConfig(projection=CirculantConfig()))


@register(AXIS, "spectral_sphere")
def spectral_sphere() -> Topology:
    """sHC: rows and columns that sum to one, spectral norm at most one, signed entries."""
    return Topology(DynamicMHCConfig(projection=SpectralSphereConfig()))


@register(AXIS, "cayley")
def cayley() -> Topology:
    """JPmHC's mixing: orthogonal matrices by the Cayley transform."""
    return Topology(DynamicMHCConfig(projection=CayleyConfig()))


@register(AXIS, "ihc")
def ihc() -> Topology:
    """iHC of Hy-V4: reads and writes are learned, H_res is the identity."""
    return Topology(DynamicMHCConfig(projection=IdentityProjectionConfig()))


@register(AXIS, "shc")
def shc() -> Topology:
    """SHC, repaired: every token mixes two of four orthogonal matrices."""
    return Topology(SHCConfig())
