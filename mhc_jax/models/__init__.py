"""The systems of the literature as named compositions of :mod:`mhc_jax.nn`, one file each."""

from mhc_jax.models.gpt import gpt2, nanogpt
from mhc_jax.models.linear_attention import gated_deltanet, gla
from mhc_jax.models.mhc_ssm import mhc_ssm
from mhc_jax.models.rlm import rlm
from mhc_jax.models.shc import shc
from mhc_jax.models.shc_original import SHCOriginalConfig
from mhc_jax.models.topologies import with_topology
from mhc_jax.models.transformer_scan import transformer_scan

__all__ = [
    "SHCOriginalConfig",
    "gated_deltanet",
    "gla",
    "gpt2",
    "mhc_ssm",
    "nanogpt",
    "rlm",
    "shc",
    "transformer_scan",
    "with_topology",
]
