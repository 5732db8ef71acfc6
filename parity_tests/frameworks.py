"""Running one function of named arrays in either framework, with its derivatives, in float32 or float64."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity_tests.compare import DType, Values

Arrays = Mapping[str, np.ndarray]
Function = Callable[[Mapping[str, Any]], Any]


@contextlib.contextmanager
def jax_precision(dtype: DType) -> Iterator[None]:
    """64-bit mode for float64 only, highest matrix-product precision in both."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield


def jit(function: Callable, dtype: DType) -> Callable:
    """``jax.jit``; in float64, where XLA's optimisations decide nothing, without them, which halves its time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0} if dtype == "float64" else None)


def is_floating(x: np.ndarray) -> bool:
    return np.issubdtype(x.dtype, np.floating)


def cast(arrays: Arrays, dtype: DType) -> dict[str, np.ndarray]:
    """Floating arrays in that dtype; inputs are drawn in float32, so no dtype sees other values."""
    return {name: x.astype(dtype) if is_floating(x) else x for name, x in arrays.items()}


def jitter(arrays: Arrays, sample: int) -> Arrays:
    """Sample 0 is ``arrays``; the others have each floating entry moved to one of its float32 neighbours, or not."""
    if sample == 0:
        return arrays
    rng = np.random.default_rng(sample)

    def move(x: np.ndarray) -> np.ndarray:
        moved = np.nextafter(x, x + rng.integers(-1, 2, x.shape).astype(x.dtype)) if is_floating(x) else x
        return np.asarray(moved)

    return {name: move(x) for name, x in arrays.items()}


def named(outputs: Any) -> dict[str, Any]:
    """``{"forward 0": ...}`` for the outputs of a function that returns one array, a tuple or, by name, a dict."""
    if not isinstance(outputs, dict):
        outputs = dict(enumerate(outputs if isinstance(outputs, tuple) else (outputs,)))
    return {f"forward {name}": output for name, output in outputs.items()}


def cotangents(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Fixed random weights, one for every entry of every output."""
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def weighted_sum_jax(outputs: Mapping[str, jax.Array], dtype: DType) -> jax.Array:
    """The scalar whose gradient is the vector-Jacobian product with :func:`cotangents`."""
    weights = cotangents({name: x.shape for name, x in outputs.items()})
    return jnp.stack([jnp.sum(x * weights[name].astype(dtype)) for name, x in outputs.items()]).sum()


def weighted_sum_torch(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """:func:`weighted_sum_jax` in PyTorch."""
    weights = cotangents({name: tuple(x.shape) for name, x in outputs.items()})
    return torch.stack([(x * torch.from_numpy(weights[name]).to(x.dtype)).sum() for name, x in outputs.items()]).sum()


def vjp_jax(function: Function, inputs: Arrays, dtype: DType) -> Values:
    """Outputs, and gradients of their fixed weighted sum with respect to every floating input."""
    with jax_precision(dtype):
        arrays = {name: jnp.asarray(x) for name, x in cast(inputs, dtype).items()}
        floating = {name: x for name, x in arrays.items() if is_floating(x)}

        def weighted(floating):
            outputs = named(function({**arrays, **floating}))
            return weighted_sum_jax(outputs, dtype), outputs

        gradients, outputs = jit(jax.grad(weighted, has_aux=True), dtype)(floating)
        return _values(outputs, gradients)


def vjp_torch(function: Function, inputs: Arrays, dtype: DType, sample: int = 0) -> Values:
    """:func:`vjp_jax` in PyTorch, on the inputs of a sample."""
    arrays = {name: torch.from_numpy(x.copy()) for name, x in cast(jitter(inputs, sample), dtype).items()}
    floating = {name: x.requires_grad_() for name, x in arrays.items() if x.is_floating_point()}
    outputs = {name: x.to(next(iter(floating.values())).dtype) for name, x in named(function(arrays)).items()}
    gradients = torch.autograd.grad(
        weighted_sum_torch(outputs), list(floating.values()), allow_unused=True, materialize_grads=True
    )
    return _values({name: x.detach() for name, x in outputs.items()}, dict(zip(floating, gradients)))


def _values(outputs: Mapping[str, Any], gradients: Mapping[str, Any]) -> Values:
    values = {**outputs, **{f"gradient {name}": x for name, x in gradients.items()}}
    return {name: np.asarray(x) for name, x in values.items()}
