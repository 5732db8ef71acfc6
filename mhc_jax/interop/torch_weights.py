"""Parameters to and from the state_dict of the PyTorch mirror, without importing PyTorch."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError, account
from mhc_jax.interop.names import entries, is_stacked, jax_shapes, torch_shapes
from mhc_jax.nn.model import ModelConfig
from mhc_jax.tree import flatten, listed, readable, unflatten


def to_torch(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """The state_dict of the mirror: unstacked layers, PyTorch names and layouts, dtypes kept.

    The arrays are contiguous copies, so that ``torch.from_numpy`` may own them.

    Raises:
        InteropError: ``params`` are not the parameters of ``config``; lists every key at fault.
    """
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    account("the parameters", jax_shapes(config), {path: value.shape for path, value in flat.items()})
    state_dict = {}
    for entry in entries(config):
        value = flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]
        state_dict[entry.torch_name] = np.array(entry.to_torch(value), order="C")
    return state_dict


def from_torch(config: ModelConfig, state_dict: Mapping[str, Any]) -> Params:
    """Inverse of :func:`to_torch`: bitwise, as JAX arrays of the same dtypes.

    Args:
        config: the model.
        state_dict: NumPy arrays or PyTorch tensors by the mirror's names.

    Raises:
        InteropError: missing, unexpected or wrongly shaped keys, or a dtype that cannot be kept.
    """
    arrays = as_numpy(state_dict)
    layers = max((shape[0] for path, shape in jax_shapes(config).items() if is_stacked(path)), default=0)
    if layers > len(arrays):  # before the names of all of them are spelled out
        raise InteropError(f"the model has {layers} layers, but there are only {len(arrays)} tensors")
    if (count := sum(map(math.prod, jax_shapes(config).values()))) > sys.maxsize // 4:  # NumPy has no such shapes
        raise InteropError(f"the model has {count:,} parameters, more than any file holds")
    check_floating(arrays)
    account("the weights", torch_shapes(config), {name: value.shape for name, value in arrays.items()})
    flat: dict[str, Any] = {}
    for entry in entries(config):
        value = entry.to_jax(arrays[entry.torch_name])
        if entry.layer is None:
            flat[entry.path] = value
        else:
            flat.setdefault(entry.path, []).append(value)
    stacked = {path: np.stack(value) if isinstance(value, list) else value for path, value in flat.items()}
    return unflatten({path: _to_jax(path, value) for path, value in stacked.items()})


def as_numpy(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays or tensors on any device as NumPy arrays of the same dtypes.

    Raises:
        InteropError: no mapping from names to arrays, or a dtype that NumPy lacks.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise InteropError(f"weights must be a dict from names to arrays, not {type(state_dict).__name__}")
    arrays = {}
    for name, value in state_dict.items():
        try:
            arrays[name] = _numpy(value)
        except (TypeError, ValueError) as error:
            raise InteropError(f"{readable(name)} is not an array that can be read ({error})") from None
    return arrays


def check_floating(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises InteropError, naming the first tensors at fault, unless every one is floating point.

    Before any are joined: a joint array would take the dtype of the others.
    """
    wrong = [f"{name} is {x.dtype}" for name, x in arrays.items() if not jnp.issubdtype(x.dtype, jnp.floating)]
    if wrong:
        raise InteropError(f"weights must be floating point: {listed(wrong)}")


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises InteropError, naming the first tensors at fault, if a value is NaN or infinite."""
    wrong = [name for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating) and not np.isfinite(x).all()]
    if wrong:
        raise InteropError(f"values that are NaN or infinite in {listed(wrong)}")


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # PyTorch cannot hand bfloat16 to NumPy; via float32 it is exact
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy()
    return np.asarray(value)


def _to_jax(path: str, value: np.ndarray) -> jax.Array:
    if value.dtype == np.float64 and not jax.config.jax_enable_x64:
        raise InteropError(f"{path} is float64: cast the weights to float32, or enable 64-bit mode (jax_enable_x64)")
    return jnp.asarray(value)
