"""Decoders of gated linear attention and of Gated DeltaNet, with any residual topology.

RMSNorm before every branch, the mixer and a SwiGLU in separate sites, no positions: the sizes that are compared with
GPT-2 small, as flash-linear-attention builds them. No initial value depends on the depth.
"""

from typing import Any, Literal, NamedTuple, get_args

from mhc_jax.config import check_changes, check_name
from mhc_jax.models.gpt import ends_for
from mhc_jax.nn.channel import SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig, MixerConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.residual import PlainConfig, ResidualConfig

GLASize = Literal["170M", "170M_baseline", "170M_baseline_shortconv"]
GatedDeltaNetSize = Literal[
    "170M",
    "170M_fixed",
    "170M_baseline",
    "170M_baseline_shortconv",
    "145M_baseline_shortconv",
    "200M_baseline_shortconv",
]


class Decoder(NamedTuple):
    """Width, mixer, and whether the head is the token table."""

    width: int
    mixer: MixerConfig
    tied: bool


def _delta(heads: int, head_width: int, expand_v: float, **more: Any) -> GatedDeltaConfig:
    return GatedDeltaConfig(
        heads=heads, head_width=head_width, expand_v=expand_v, norm_eps=1e-6, scale_output=False, **more
    )


_GLA = GLAConfig(heads=12, norm_eps=1e-6, scale_output=False)
_BASELINE: dict[str, Any] = {"head_width": 64, "expand_v": 1.0, "allow_neg_eigval": True}

GLA_SIZES: dict[GLASize, Decoder] = {
    "170M": Decoder(768, _GLA, tied=False),
    "170M_baseline": Decoder(768, _GLA.replace(expand_k=1.0), tied=True),
    "170M_baseline_shortconv": Decoder(768, _GLA.replace(expand_k=1.0, conv_kernel=4), tied=True),
}
GATED_DELTANET_SIZES: dict[GatedDeltaNetSize, Decoder] = {
    "170M": Decoder(768, _delta(6, 128, 2.0), tied=False),
    "170M_fixed": Decoder(768, _delta(6, 96, 2.0), tied=False),
    "170M_baseline": Decoder(768, _delta(12, **_BASELINE, conv_kernel=None), tied=True),
    "170M_baseline_shortconv": Decoder(768, _delta(12, **_BASELINE), tied=True),
    "145M_baseline_shortconv": Decoder(704, _delta(11, **_BASELINE), tied=True),
    "200M_baseline_shortconv": Decoder(832, _delta(13, **_BASELINE), tied=True),
}


def gla(size: GLASize = "170M_baseline", residual: ResidualConfig = PlainConfig(), **changes: Any) -> LMConfig:
    """A decoder of gated linear attention (arXiv 2312.06635).

    Args:
        size: ``"170M"`` has queries and keys of half the model's width and a separate head; the baselines have the
            whole width and a tied head, the last with short convolutions.
        residual: topology of both sites of every block.
        changes: fields of :class:`LMConfig` to replace.

    Raises:
        ConfigError: no such size; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("size of gla", size, get_args(GLASize))
    check_changes(gla, LMConfig, changes)
    return _decoder(GLA_SIZES[size], residual).replace(**changes)


def gated_deltanet(
    size: GatedDeltaNetSize = "170M_baseline_shortconv", residual: ResidualConfig = PlainConfig(), **changes: Any
) -> LMConfig:
    """A decoder of Gated DeltaNet (arXiv 2412.06464).

    Args:
        size: ``"170M"`` and ``"170M_fixed"`` have values of twice the width of keys and a separate head; the baselines
            have values as wide as keys, negative eigenvalues and a tied head.
        residual: topology of both sites of every block.
        changes: fields of :class:`LMConfig` to replace.

    Raises:
        ConfigError: no such size; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("size of gated_deltanet", size, get_args(GatedDeltaNetSize))
    check_changes(gated_deltanet, LMConfig, changes)
    return _decoder(GATED_DELTANET_SIZES[size], residual).replace(**changes)


def _decoder(decoder: Decoder, residual: ResidualConfig) -> LMConfig:
    return LMConfig(
        vocab_size=50257,
        max_len=2048,
        width=decoder.width,
        layers=12,
        positions="none",
        head="tied" if decoder.tied else "dense",
        norm=RMSNormConfig(),
        residual=residual,
        ends=ends_for(residual),
        mixer=decoder.mixer,
        mlp=SwiGLUConfig(hidden=256 * -(-(decoder.width * 8 // 3) // 256), scale_output=False),
    )
