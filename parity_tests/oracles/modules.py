"""Published modules against parts of ours, on the same inputs and weights, by the published names."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
from flax import nnx

from mhc_jax.nn.init import Init
from mhc_jax.precision import policy
from parity_tests.compare import Case
from parity_tests.frameworks import Function, vjp_jax, vjp_torch

BATCH, TIME = 2, 5

# From the module, its weights bound, and the arrays to outputs.
TorchPart = Callable[[Callable, Any], Any]


def beside(name: str, published: torch.nn.Module, torch_part: TorchPart, jax_part: Function, **inputs: Any) -> Case:
    """Outputs of a published module and of ours, and their weighted sum's gradient by inputs and weights.

    Args:
        name: name of the case.
        published: gives names and shapes of the weights.
        torch_part: from ``(module, arrays)`` to named outputs; the module's weights are among the arrays.
        jax_part: from arrays to the same outputs.
        inputs: shapes.
    """
    rng = np.random.default_rng(4)
    shapes = inputs | {weight: tuple(x.shape) for weight, x in published.named_parameters()}
    arrays = {what: rng.standard_normal(shape).astype(np.float32) for what, shape in shapes.items()}
    for what in arrays.keys() - inputs.keys():
        arrays[what] *= np.float32(_spread(arrays[what]))
    return Case(
        tier="oracles",
        name=name,
        jax=functools.partial(vjp_jax, jax_part, arrays),
        torch=functools.cache(functools.partial(vjp_torch, functools.partial(_call, published, torch_part), arrays)),
    )


def _spread(weight: np.ndarray) -> float:
    """Matrices that take in many channels are small, so that no sigmoid or tanh saturates."""
    return weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.5


def _call(published: torch.nn.Module, part: Callable, arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {name: arrays[name] for name, _ in published.named_parameters()}

    def module(*inputs):
        return torch.func.functional_call(published, weights, inputs)

    with float32_is(next(iter(arrays.values())).dtype):
        return part(module, arrays)


@contextlib.contextmanager
def float32_is(dtype: torch.dtype) -> Iterator[None]:
    """In a float64 run ``x.float()`` and ``torch.float32``, by which published code forces float32, mean float64.

    So the published code itself is the truth.
    """
    if dtype != torch.float64:
        yield
        return
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.multiple(torch, float=torch.float64, float32=torch.float64),
    ):
        yield


def ours(build: Callable[[Any, Init], nnx.Module], params: Mapping[str, Any], dtype: Any) -> Any:
    """The module that ``build(policy, init)`` makes, with these parameters.

    Raises:
        ValueError: parameters that are missing, left over or of the wrong shape.
    """
    make = functools.partial(build, policy(str(dtype)), Init(jax.random.key(0)))
    graph, state = nnx.split(nnx.eval_shape(make), nnx.Param)
    wanted, given = (jax.tree.map(lambda x: x.shape, dict(tree)) for tree in (nnx.to_pure_dict(state), params))
    if wanted != given:
        raise ValueError(f"parameters {given}, expected {wanted}")
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, dict(params))
    return nnx.merge(graph, state)
