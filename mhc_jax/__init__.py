"""Multi-stream-residual language models in JAX."""

from mhc_jax.functional import apply, init
from mhc_jax.nn.lm import LMConfig, Output

__all__ = ["LMConfig", "Output", "apply", "init"]
