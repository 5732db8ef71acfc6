"""Layers in bfloat16: as near to the float64 truth as the published ones in bfloat16."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from parity_tests.compare import error
from parity_tests.oracles.linear_attention import NEXT, WIDTH, layer_jax
from parity_tests.oracles.modules import float32_is
from parity_tests.tolerances import SAMPLES

TIME, DRAWS = 70, 8  # beyond a chunk

Arrays = Mapping[str, np.ndarray]


@pytest.mark.slow
def test_gated_delta_lies_inside_the_spread_of_transformers():
    """In one draw either may be lucky: the median of several is judged. A convolution in bfloat16 lies outside."""
    layer = Qwen3NextGatedDeltaNet(NEXT, 0)
    shapes = {"x": (2, TIME, WIDTH)} | {name: tuple(x.shape) for name, x in layer.named_parameters()}
    run = jax.jit(jax.grad(_ours, has_aux=True))
    ratios: dict[str, list[float]] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        arrays = {name: _rounded(0.5 * rng.standard_normal(shape)) for name, shape in shapes.items()}
        weight = _rounded(rng.standard_normal(shapes["x"]))
        moved = [arrays, *(_moved(arrays, rng) for _ in range(SAMPLES))]
        errors = [_errors(layer, one, weight, _published(layer, one, weight, torch.bfloat16)) for one in moved]
        gradients, y = run(arrays, weight)
        for name, ours in _errors(layer, arrays, weight, {"y": y} | gradients).items():
            ratios.setdefault(name, []).append(ours / max(theirs[name] for theirs in errors))
    outside = {name: found for name, found in ratios.items() if np.median(found) > 1}
    assert not outside


def _published(layer, arrays: Arrays, weight: np.ndarray, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The output, and the gradients of its weighted sum."""
    with float32_is(dtype):
        inputs = {name: torch.tensor(x, dtype=dtype, requires_grad=True) for name, x in arrays.items()}
        weights = {name: x for name, x in inputs.items() if name != "x"}
        y = torch.func.functional_call(layer, weights, (inputs["x"],))
        gradients = torch.autograd.grad((y * torch.tensor(weight, dtype=dtype)).sum(), list(inputs.values()))
    return {name: x.detach().double().numpy() for name, x in ({"y": y} | dict(zip(inputs, gradients))).items()}


def _ours(arrays, weight):
    y = layer_jax(arrays | {"x": arrays["x"].astype(jnp.bfloat16)})
    return jnp.sum(y.astype(jnp.float32) * weight), y


def _errors(layer, arrays: Arrays, weight: np.ndarray, found) -> dict[str, float]:
    """Distances from the published layer in float64."""
    truth = _published(layer, arrays, weight, torch.float64)
    return {name: error(np.asarray(found[name], np.float32), x) for name, x in truth.items()}


def _moved(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """Every entry at a neighbour in bfloat16, or where it was: a jitter of float32 would be rounded away."""
    return {name: _rounded(x * (1 + 2.0**-8 * rng.integers(-1, 2, x.shape))) for name, x in arrays.items()}


def _rounded(x: np.ndarray) -> np.ndarray:
    """Numbers that bfloat16 holds, in float32."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
