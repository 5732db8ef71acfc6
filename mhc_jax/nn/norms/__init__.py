"""Norms, one kind a file."""

from mhc_jax.nn.norms.base import Norm, NormConfig
from mhc_jax.nn.norms.layer_norm import LayerNormConfig
from mhc_jax.nn.norms.rms import RMSNormConfig

__all__ = ["LayerNormConfig", "Norm", "NormConfig", "RMSNormConfig"]
