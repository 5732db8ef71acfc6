"""Eager PyTorch mirror of the language models, written only from the mathematics.

``build(config)`` gives a ``torch.nn.Module``. It computes in the dtype of its parameters: float32 as
built, float64 after ``.double()``. It imports neither JAX nor ``mhc_jax``.
"""

from torch_ref import models  # noqa: F401  registers its kinds
from torch_ref.nn.lm import LM, build

__all__ = ["LM", "build"]
