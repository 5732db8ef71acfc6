"""Ends of the residual streams, one kind per file."""

from mhc_jax.nn.ends.base import EndsConfig, StreamEnds
from mhc_jax.nn.ends.copy_ends import CopyEndsConfig
from mhc_jax.nn.ends.dense_ends import DenseEndsConfig
from mhc_jax.nn.ends.identity_ends import IdentityEndsConfig

__all__ = [
    "CopyEndsConfig",
    "DenseEndsConfig",
    "EndsConfig",
    "IdentityEndsConfig",
    "StreamEnds",
]
