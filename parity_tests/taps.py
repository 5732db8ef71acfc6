"""Whole models in both frameworks: loss, named activations, their cotangents, and parameter gradients.

JAX's activations of all layers are stacked; here they are split and carry PyTorch's names, in PyTorch's
order of execution. A cotangent is the gradient with respect to a zero probe added to the activation.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import mhc_jax
import torch_ref
from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.interop.names import is_stacked, of_layer
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops import loss as jax_loss
from parity_tests.compare import DType, Values
from parity_tests.frameworks import Arrays, cast, jax_precision, jit, jitter
from torch_ref.nn.lm import total_penalty
from torch_ref.ops import loss as torch_loss
from train.checks.mirror import differences


def in_dtype(config: ModelConfig, dtype: DType) -> ModelConfig:
    """The model under the policy of that dtype."""
    return config.replace(execution=config.execution.replace(policy=dtype))


def to_params(config: ModelConfig, weights: Arrays, dtype: DType) -> Params:
    """JAX's parameters of the mirror's weights."""
    return interop.from_torch(config, cast(weights, dtype))


def build_twin(config: ModelConfig) -> Any:
    """The mirror of a model.

    Raises:
        ConfigError: it lacks a part.
    """
    try:
        return torch_ref.build(config)
    except ValueError as error:
        raise ConfigError(f"torch_ref: {error}; a part from outside needs its PyTorch twin imported, too") from None


def to_module(config: ModelConfig, weights: Arrays, dtype: DType) -> Any:
    """The mirror with these weights, a ``torch_ref.LM``.

    Raises:
        ConfigError: it lacks a part, or a part has parameters of other names or shapes.
    """
    module = build_twin(config).to(getattr(torch, dtype)).eval()
    if unlike := differences(weights, module.state_dict()):
        raise ConfigError("; ".join(unlike))
    module.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in cast(weights, dtype).items()})
    return module


def run_jax(config: ModelConfig, weights: Arrays, batch: Arrays, dtype: DType, *, backward: bool = True) -> Values:
    """``forward <tap>``, ``forward penalty <name>``, ``forward loss``; with ``backward`` also ``backward <tap>`` and
    ``gradient <parameter>``.
    """
    with jax_precision(dtype):
        config = in_dtype(config, dtype)
        params = to_params(config, weights, dtype)
        tokens, targets = jnp.asarray(batch["tokens"]), jnp.asarray(batch["targets"])

        def objective(params, probes):
            output = mhc_jax.apply(config, params, tokens, taps=True, probes=probes)
            total, count = jax_loss.cross_entropy(output.logits_BTV, targets)
            return total / count + sum(output.penalties.values()), (output.taps, output.penalties)

        if not backward:
            loss, seen = jit(lambda params: objective(params, None), dtype)(params)
            return _forward(loss, *seen)
        shapes = jax.eval_shape(lambda params: objective(params, None)[1][0], params)
        probes = {name: np.zeros(tap.shape, tap.dtype) for name, tap in shapes.items()}
        step = jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True), dtype)
        (loss, seen), (gradients, cotangents) = step(params, probes)
        values = _forward(loss, *seen)
        values |= {f"backward {name}": x for name, x in _split_layers(cotangents).items()}
        return values | {f"gradient {name}": x for name, x in interop.to_torch(config, gradients).items()}


def _forward(
    loss: jax.Array, taps: Mapping[str, jax.Array], penalties: Mapping[str, jax.Array]
) -> dict[str, np.ndarray]:
    values = {f"forward {name}": x for name, x in _split_layers(taps).items()}
    values |= {f"forward penalty {name}": np.asarray(x) for name, x in penalties.items()}
    return values | {"forward loss": np.asarray(loss)}


def _split_layers(taps: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    values = {}
    for name, stacked in taps.items():
        if not is_stacked(name):
            values[name] = np.asarray(stacked)
            continue
        for layer, x in enumerate(np.asarray(stacked)):
            values[of_layer(name, layer)] = x
    return values


def run_torch(
    config: ModelConfig,
    weights: Arrays,
    batch: Arrays,
    dtype: DType,
    sample: int = 0,
    *,
    backward: bool = True,
) -> Values:
    """:func:`run_jax` in PyTorch, on the inputs of a sample.

    In order of execution: taps, penalties, loss, cotangents from the last tap to the first, gradients.
    """
    module = to_module(config, jitter(weights, sample), dtype)
    taps: dict[str, torch.Tensor] = {}
    penalties: dict[str, list[torch.Tensor]] = {}
    logits = module(torch.from_numpy(batch["tokens"]), taps=taps, penalties=penalties)
    total, count = torch_loss.cross_entropy(logits, torch.from_numpy(batch["targets"]))
    loss = total / count + total_penalty(penalties)
    values = {f"forward {name}": x.detach() for name, x in taps.items()}
    values |= {f"forward penalty {name}": torch.stack(found).mean().detach() for name, found in penalties.items()}
    values["forward loss"] = loss.detach()
    if backward:
        loss.backward()
        values |= {f"backward {name}": _gradient(x) for name, x in reversed(taps.items())}
        values |= {f"gradient {name}": _gradient(x) for name, x in module.named_parameters()}
    return {name: x.numpy() for name, x in values.items()}


def _gradient(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x).detach() if x.grad is None else x.grad
