"""Weights in other forms: the PyTorch mirror's state_dict, published checkpoints, safetensors folders."""

import mhc_jax.interop.mhc_ssm  # noqa: F401  registers the system
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.original import from_original, to_original
from mhc_jax.interop.store import load, save
from mhc_jax.interop.torch_weights import from_torch, to_torch

__all__ = ["InteropError", "from_original", "from_torch", "load", "save", "to_original", "to_torch"]
