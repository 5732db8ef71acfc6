"""Derivatives of kernels: those that are written with them, and no others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mhc_jax.config import ConfigError


def not_differentiable(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, a kernel or what calls one; whoever asks JAX for its derivative gets a ConfigError."""
    return lambda *arguments: run(*jax.tree.map(_constant.bind, arguments))


# The identity, of which no derivative is allowed: a custom_jvp would be forgotten where a scan is differentiated.
_constant = Primitive("constant_of_kernels")
_constant.def_impl(lambda x: x)
_constant.def_abstract_eval(lambda x: x)
mlir.register_lowering(_constant, lambda _, x: [x])
batching.defvectorized(_constant)


def _refuse(primals, tangents):
    raise ConfigError(
        "Pallas kernels have first derivatives in reverse mode only; for others, such as a product with the Hessian, "
        "take implementation 'xla'"
    )


ad.primitive_jvps[_constant] = _refuse


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def from_chunk_to_chunk(forth: Callable[..., Any], back: Callable[..., Any], plan: Any, s0: Any, *inputs: Any) -> Any:
    """A recurrence by two kernels, of which the second begins at states that the first has kept.

    Args:
        forth: ``forth(plan, s0, *inputs, keep)`` to outputs, with ``keep`` the states before each chunk, and the last.
        back: ``back(plan, before, *inputs, dy, ds)`` to the cotangents of ``s0`` and the inputs.
    """
    y, s = forth(plan, s0, *inputs, keep=False)
    return y, s


def _forward(forth, back, plan, s0, *inputs):
    y, before, s = forth(plan, s0, *inputs, keep=True)
    return (y, s), (before, *inputs)


def _backward(forth, back, plan, saved, cotangents):
    return back(plan, *saved, *cotangents)


from_chunk_to_chunk.defvjp(_forward, _backward)
