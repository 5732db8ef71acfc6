"""Eager PyTorch mirror of the language models, written from the mathematics alone.

``build(config)`` gives a ``torch.nn.Module``. It computes in the dtype of its parameters: float32 as
built, float64 after ``.double()``. Neither JAX nor ``mhc_jax`` is imported.
"""

from torch_ref.nn.lm import LM, build

__all__ = ["LM", "build"]
