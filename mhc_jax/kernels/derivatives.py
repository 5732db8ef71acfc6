"""Derivatives of kernels: those that are written with them, and no others."""

from collections.abc import Callable
from typing import Any

import jax

from mhc_jax.config import ConfigError


def not_differentiable(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, a kernel or what calls one; whoever asks JAX for its derivative gets a ConfigError."""
    run = jax.custom_jvp(run)

    @run.defjvp
    def refuse(primals, tangents):
        raise ConfigError(
            "Pallas kernels have first derivatives in reverse mode only; for others, such as a product with the "
            "Hessian, take implementation 'xla'"
        )

    return run
