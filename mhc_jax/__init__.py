"""Multi-stream-residual language models in JAX."""

from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.decode import generate
from mhc_jax.functional import apply, init
from mhc_jax.interop import load, save
from mhc_jax.nn.lm import LMConfig, Output

__all__ = ["ConfigError", "LMConfig", "Output", "apply", "generate", "init", "interop", "load", "save"]
