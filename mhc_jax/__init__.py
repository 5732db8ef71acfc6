"""Multi-stream-residual language models in JAX."""

from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.decode import generate
from mhc_jax.functional import Output, apply, init
from mhc_jax.interop import load, save
from mhc_jax.nn.lm import LMConfig
from mhc_jax.sampling import Sampling
from mhc_jax.summary import Summary, summary

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "LMConfig",
    "Output",
    "Sampling",
    "Summary",
    "__version__",
    "apply",
    "generate",
    "init",
    "interop",
    "load",
    "save",
    "summary",
]
