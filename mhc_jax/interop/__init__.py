"""Weights in other forms: the PyTorch mirror's state_dict, published checkpoints, safetensors folders."""

from mhc_jax.interop import (
    deepseek,  # noqa: F401  registers the systems
    deepseek_v4,
    gpt2,  # noqa: F401  registers the system
    linear_attention,  # noqa: F401  registers the systems
    llama,  # noqa: F401  registers the systems
    mamba,  # noqa: F401  registers the system
    mhc_ssm,  # noqa: F401  registers the system
    nanogpt,  # noqa: F401  registers the system
    transformer_scan,  # noqa: F401  registers the system
)
from mhc_jax.interop.huggingface import load_huggingface, save_huggingface
from mhc_jax.interop.keys import InteropError
from mhc_jax.interop.original import from_original, to_original
from mhc_jax.interop.rlm import load_rlm, save_rlm
from mhc_jax.interop.shc import load_shc, save_shc
from mhc_jax.interop.store import is_huggingface, load, save
from mhc_jax.interop.torch_weights import from_torch, to_torch

__all__ = [
    "InteropError",
    "deepseek_v4",
    "from_original",
    "from_torch",
    "is_huggingface",
    "load",
    "load_huggingface",
    "load_rlm",
    "load_shc",
    "save",
    "save_huggingface",
    "save_rlm",
    "save_shc",
    "to_original",
    "to_torch",
]
