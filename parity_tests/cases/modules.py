"""Single parts of a model on separate inputs: mixers, residual topologies with their adapters, stream ends."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mhc_jax import interop, registry
from mhc_jax.functional import bind
from mhc_jax.nn import scope as jax_scope
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.mixers import MixerConfig, SelectiveSSMConfig
from mhc_jax.nn.residual import SHCConfig
from mhc_jax.nn.residual.base import streams_of
from mhc_jax.nn.stack import layer_of
from mhc_jax.ops.streams import Streams
from parity_tests.cases.ops import draw
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, cast, jax_precision, jit, jitter, weighted_sum_jax, weighted_sum_torch
from parity_tests.systems import BATCH, SYSTEMS, TIME, WIDTH, System, Weights
from parity_tests.systems.gpt import tiny_gpt
from parity_tests.systems.mhc_ssm import tiny
from parity_tests.taps import in_dtype, to_module, to_params
from torch_ref.nn import scope as torch_scope

# A part as a function of (model, arrays) that returns named outputs, once in each framework.
Part = Callable[[Any, dict[str, Any]], dict[str, Any]]


def cases() -> Iterator[Case]:
    tokens = draw(u=(BATCH, TIME, WIDTH)) | SEGMENTS
    for form in ("sequential", "associative", "chunked"):
        system = System(form, tiny("baseline", "original", "rms", conv=4, scan=form))
        yield part(f"diagonal_ssm, {form}, segments", system, tokens, _mixer_jax, _mixer_torch)
    for form in ("sequential", "associative", "chunked"):
        yield mixer_in_segments(f"selective_ssm, {form}", SelectiveSSMConfig(state=2, form=form, chunk=3))
    for system in SYSTEMS.values():
        streams = system.config.residual.stream_count
        state = draw(state=(BATCH, TIME, *([] if streams is None else [streams]), system.config.width))
        yield part(f"site of {system.name}", system, state, _site_jax, _site_torch)
        yield part(
            f"ends of {system.name}", system, state | draw(x=(BATCH, TIME, system.config.width)), _ends_jax, _ends_torch
        )
    # Only float64: the matrix of topologies and mixers covers float32.
    sites = {f"topology {name}": tiny_gpt(name) for name in registry.names("topology")}
    sites["shc, adaptive"] = tiny_gpt("shc", residual=SHCConfig(adaptive=True))
    for name, config in sites.items():
        system = System(name, config)
        streams = system.config.residual.stream_count
        state = draw(state=(BATCH, TIME, *([] if streams is None else [streams]), system.config.width))
        case = part(f"site of {name}", system, state, _site_jax, _site_torch)
        yield dataclasses.replace(case, dtypes=("float64",))
    for name, ends in ENDS.items():
        system = System(name, tiny_gpt("mhc", ends=ends))
        inputs = draw(state=(BATCH, TIME, 4, 8), x=(BATCH, TIME, 8))
        yield part(f"ends: {name}", system, inputs, _ends_jax, _ends_torch)


def mixer_in_segments(name: str, mixer: MixerConfig) -> Case:
    """The mixer alone, over rows of several segments."""
    system = System(name, tiny_gpt(mixer=mixer, mlp=None))
    tokens = draw(u=(BATCH, TIME, system.config.width)) | SEGMENTS
    return part(f"{name}, segments", system, tokens, _mixer_jax, _mixer_torch)


SEGMENTS = {"segment_ids": np.array([[0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 4, 4, 4]])}
ENDS = {
    "mean": CopyEndsConfig(),
    "stream embedding, sum": CopyEndsConfig(stream_embed=True, collapse="sum"),
    "learned head": CopyEndsConfig(collapse="head"),
    "attention pool": CopyEndsConfig(collapse="pool"),
}


def part(name: str, system: System, inputs: Arrays, jax_part: Part, torch_part: Part) -> Case:
    """Outputs of a part, and their weighted sum's gradient by its inputs and the parameters."""
    arguments = system.config, Weights(system.config), inputs
    return Case(
        tier="modules",
        name=name,
        jax=functools.partial(_run_jax, jax_part, *arguments),
        torch=functools.cache(functools.partial(_run_torch, torch_part, *arguments)),
        covers=system.covers,
    )


def _run_jax(function: Part, config, weights: Arrays, inputs: Arrays, dtype: DType) -> Values:
    with jax_precision(dtype):
        config = in_dtype(config, dtype)
        arrays = {name: jnp.asarray(x) for name, x in cast(inputs, dtype).items()}
        floating = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def weighted(params, floating):
            outputs = function(bind(config, params), arrays | floating)
            return weighted_sum_jax(outputs, dtype), outputs

        run = jit(jax.grad(weighted, argnums=(0, 1), has_aux=True), dtype)
        (params, by_input), outputs = run(to_params(config, weights, dtype), floating)
        return _values(outputs, by_input, interop.to_torch(config, params))


def _run_torch(function: Part, config, weights: Arrays, inputs: Arrays, dtype: DType, sample: int) -> Values:
    module = to_module(config, jitter(weights, sample), dtype)
    arrays = {name: torch.from_numpy(x.copy()) for name, x in cast(jitter(inputs, sample), dtype).items()}
    floating = {name: x.requires_grad_() for name, x in arrays.items() if x.is_floating_point()}
    outputs = function(module, arrays)
    total = weighted_sum_torch(outputs)
    params = dict(module.named_parameters())
    by = torch.autograd.grad(total, [*floating.values(), *params.values()], allow_unused=True, materialize_grads=True)
    by_input, by_param = by[: len(floating)], by[len(floating) :]
    return _values(outputs, dict(zip(floating, by_input)), dict(zip(params, by_param)))


def _values(outputs, by_input, by_param) -> Values:
    values = {f"forward {name}": x.detach() if isinstance(x, torch.Tensor) else x for name, x in outputs.items()}
    values |= {f"gradient {name}": x for name, x in (dict(by_input) | dict(by_param)).items()}
    return {name: np.asarray(x) for name, x in values.items()}


def _mixer_jax(model, arrays):
    branch = layer_of(model.blocks, 0).mixer.branch
    return {"y": branch(arrays["u"], None, jax_scope.Scope.over(TIME, segments_BT=arrays["segment_ids"]))[0]}


def _mixer_torch(model, arrays):
    y, _ = model.blocks[0].mixer.branch(arrays["u"], None, torch_scope.Scope(_positions(), arrays["segment_ids"]))
    return {"y": y}


def _site_jax(model, arrays):
    site = layer_of(model.blocks, 0).mixer
    before = model.config.residual.begin(_held(model, arrays["state"]))
    scope = jax_scope.Scope.over(TIME)
    u, _ = site.residual.pre(before, scope)
    state, _ = site(before, lambda x, inside: site.branch(x, None, inside), scope)
    return {"u": u, "state": _array(streams_of(state))}


def _held(model, state):
    """The state of one array as the topology holds it."""
    return state if model.config.residual.stream_count is None else Streams.unstack(state)


def _array(h):
    return h.stack() if isinstance(h, Streams) else h


def _site_torch(model, arrays):
    site, scope = model.blocks[0].mixer, torch_scope.Scope(_positions())
    before = site.residual.begin(arrays["state"])
    u, _ = site.residual.pre(before, scope)
    state, _ = site(before, lambda x, inside: site.branch(x, None, inside), scope)
    return {"u": u, "state": streams_of(state)}


def _positions():
    return torch.arange(TIME).expand(BATCH, TIME)


def _ends_jax(model, arrays):
    state = _held(model, arrays["state"])
    return {"expand": _array(model.ends.expand(arrays["x"])), "collapse": model.ends.collapse(state)}


def _ends_torch(model, arrays):
    return {"expand": model.ends.expand(arrays["x"]), "collapse": model.ends.collapse(arrays["state"])}
