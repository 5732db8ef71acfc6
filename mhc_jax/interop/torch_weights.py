"""Parameters to and from the state_dict of the PyTorch mirror, without importing PyTorch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError, account
from mhc_jax.interop.names import entries, jax_shapes, torch_shapes
from mhc_jax.nn.lm import LMConfig
from mhc_jax.tree import flatten, unflatten


def to_torch(config: LMConfig, params: Params) -> dict[str, np.ndarray]:
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


def from_torch(config: LMConfig, state_dict: Mapping[str, Any]) -> Params:
    """Inverse of :func:`to_torch`: bitwise, as JAX arrays of the same dtypes.

    Args:
        config: the model.
        state_dict: NumPy arrays or PyTorch tensors by the mirror's names.

    Raises:
        InteropError: missing, unexpected or wrongly shaped keys (all listed), or a dtype that cannot be kept.
    """
    arrays = as_numpy(state_dict)
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
    """Arrays or tensors on any device as NumPy arrays of the same dtypes."""
    return {name: _numpy(value) for name, value in state_dict.items()}


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # PyTorch cannot hand bfloat16 to NumPy; via float32 it is exact
            return value.float().numpy().astype(jnp.bfloat16)
        return value.numpy()
    return np.asarray(value)


def _to_jax(path: str, value: np.ndarray) -> jax.Array:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InteropError(f"{path} holds {value.dtype} values; weights must be floating point")
    if value.dtype == np.float64 and not jax.config.jax_enable_x64:
        raise InteropError(f"{path} is float64: cast the weights to float32, or enable 64-bit mode (jax_enable_x64)")
    return jnp.asarray(value)
