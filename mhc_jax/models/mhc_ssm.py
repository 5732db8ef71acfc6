"""mHC-SSM: diagonal state-space language models with static mHC and stream-specialised adapters.

Each variant has two named forms. ``"original"`` reproduces the published code's initialisation and
mathematics; ``"default"`` repairs it: embeddings of standard deviation 0.02, H_res near the
identity, unit writes, streams that start as copies and read unevenly, poles over many time scales,
adapters that begin as the identity.
"""

from typing import Any, Literal, get_args

from mhc_jax.config import check_changes, check_name
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.nn.ends import DenseEndsConfig, IdentityEndsConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import DiagonalSSMConfig
from mhc_jax.nn.projections import SinkhornConfig
from mhc_jax.nn.residual import PlainConfig, StaticMHCConfig

Form = Literal["default", "original"]
Variant = Literal["baseline", "mhc", "adapters"]

_SINKHORN = SinkhornConfig(iters=8, order="rows_then_columns")
_RESIDUAL: dict[Form, StaticMHCConfig] = {
    "default": StaticMHCConfig(projection=_SINKHORN, noise=0.02),
    "original": StaticMHCConfig(
        projection=_SINKHORN.replace(domain="exp"), unit_writes=False, diagonal_bias=0.0, read_bias=0.0, noise=0.02
    ),
}


def mhc_ssm(variant: Variant = "mhc", form: Form = "default", **changes: Any) -> LMConfig:
    """The published architecture (D = 512, L = 8, V = 50257, T = 256) in one of its variants.

    Args:
        variant: ``"baseline"`` (plain residual), ``"mhc"`` (static mHC, n = 4) or ``"adapters"`` (mHC with rank-64
            adapters).
        form: ``"default"`` (repaired) or ``"original"``.
        changes: fields of :class:`LMConfig` to replace.

    Raises:
        ConfigError: no such variant or form; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("variant of mhc_ssm", variant, get_args(Variant))
    check_name("form of mhc_ssm", form, get_args(Form))
    check_changes(mhc_ssm, LMConfig, changes)
    original = form == "original"
    plain = variant == "baseline"
    config = LMConfig(
        vocab_size=50257,
        max_len=256,
        embed_std=1.0 if original else 0.02,
        residual=PlainConfig() if plain else _RESIDUAL[form],
        ends=IdentityEndsConfig() if plain else DenseEndsConfig(init="uniform" if original else "repeat"),
        adapters=StreamAdaptersConfig(zero_init=not original) if variant == "adapters" else None,
        mixer=DiagonalSSMConfig(init="original" if original else "time_scales"),
    )
    return config.replace(**changes)
