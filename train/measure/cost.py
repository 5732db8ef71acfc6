"""Tables of a model's parts and of the cost of a training step, on this machine or on an absent one."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.accounting import flops_per_token
from mhc_jax.functional import Params, param_shapes
from train.config import RunConfig
from train.measure import hlo
from train.measure.speed import peak_flops
from train.measure.target import Chip
from train.objectives.cross_entropy import CrossEntropyConfig
from train.update.optimizer import make_optimizer
from train.update.state import TrainState, trained_info
from train.update.step import init_state, make_train_step

Row = dict[str, Any]


def parameter_rows(params: Params) -> list[Row]:
    """One row per module with parameters: their names, the number of values and of bytes; then the total."""
    rows: dict[str, Row] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *module, name = (key.key for key in path)
        row = rows.setdefault(".".join(module), {"module": ".".join(module), "parameters": [], "count": 0, "bytes": 0})
        row["parameters"].append(f"{name} {tuple(leaf.shape)}")
        row["count"] += math.prod(leaf.shape)
        row["bytes"] += math.prod(leaf.shape) * leaf.dtype.itemsize
    for row in rows.values():
        row["parameters"] = ", ".join(row["parameters"])
    total = {key: sum(row[key] for row in rows.values()) for key in ("count", "bytes")}
    return [*rows.values(), {"module": "total", "parameters": "", **total}]


def cost_rows(config: RunConfig) -> list[Row]:
    """Memory, arithmetic and compile time of one training step, from shapes: no array is allocated."""
    start = time.perf_counter()
    compiled = _lowered_step(config).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes / 2**20 if memory else math.nan
    optimizer = make_optimizer(config.optim, 1, trained_info(config))
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    gflop = step_flops(config) / 1e9
    mib = {
        "parameters": _mib(state.params),
        "optimizer state": _mib((state.opt_state, state.ema)),
        "activations, gradients and scratch": scratch,
    }
    quantities = {
        **{name: (value, "MiB") for name, value in mib.items()},
        "all of these": (sum(mib.values()), "MiB"),
        "arithmetic": (gflop, "GFLOP"),
        "arithmetic per token": (1e3 * gflop / (config.data.batch_size * config.data.seq_len), "MFLOP"),
        "trace and compile": (seconds, "s"),
    }
    return [{"one training step": name, "value": value, "unit": unit} for name, (value, unit) in quantities.items()]


def step_flops(config: RunConfig) -> float:
    """Floating-point operations of one training step, as XLA counts them before optimisation.

    XLA counts the body of a loop once. The loops over layers, micro-batches and loss chunks are therefore
    unrolled first; the loop over time is not: it has few operations per channel compared with the matrix products.
    The loss counts as by XLA, since kernels may compute logits twice.
    """
    execution = config.model.execution.replace(layers="unroll")
    objective = config.objective.replace(chunk=config.data.seq_len)
    if isinstance(objective, CrossEntropyConfig):
        objective = objective.replace(implementation="xla")
    config = config.replace(
        model=config.model.replace(execution=execution),
        objective=objective,
        train=config.train.replace(accumulate=1),
    )
    cost = _lowered_step(config).cost_analysis()
    return cost["flops"] if cost else math.nan


def machine_rows(config: RunConfig, state: TrainState, compiled: jax.stages.Compiled, chip: Chip) -> list[Row]:
    """Bytes of one device by kind, kernels and estimated time of a training step compiled for a mesh of devices.

    Args:
        state: abstract, with the shardings that the step was compiled for.
        chip: what it was compiled for; without a ``clock`` there is no estimate of time.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None  # only backends without this analysis return None
    devices = state.step.sharding.device_set
    peak = peak_flops(next(iter(devices)))
    cost = hlo.cost(text, peak / chip.bandwidth if peak else math.inf)
    quantities = {
        "parameters": (_mib(state.params), "MiB"),
        "optimizer state": (_mib((state.opt_state, state.ema)), "MiB"),
        "temporaries": (memory.temp_size_in_bytes / 2**20, "MiB"),
        "output": (memory.output_size_in_bytes / 2**20, "MiB"),
        "of that in place of input": (memory.alias_size_in_bytes / 2**20, "MiB"),
        "peak": (memory.peak_memory_in_bytes / 2**20, "MiB"),
        "kernels": (cost.kernels, ""),
        **_layer_kernels(text, config.model.depth),
    }
    if chip.clock:
        seconds = cost.seconds(chip.clock, chip.bandwidth)
        flops = flops_per_token(config.model, config.data.seq_len) * config.data.batch_size * config.data.seq_len
        quantities["estimated time without communication"] = (1e3 * seconds, "ms")
        if cost.pallas:
            quantities["of that Pallas kernels, at least"] = (1e3 * cost.pallas / chip.bandwidth, "ms")
        quantities["MFU at that time"] = (100 * flops / (seconds * len(devices) * (peak or math.nan)), "%")
    return [{"one device, one step": name, "value": value, "unit": unit} for name, (value, unit) in quantities.items()]


def _layer_kernels(text: str, layers: int) -> dict[str, tuple[int, str]]:
    """Cost of one layer, if the program has a loop over layers for each pass: the loops with the most kernels."""
    loops = sorted(loop.kernels for loop in hlo.loops(text, layers))
    if len(loops) < 2:
        return {}
    return {"kernels of a layer, forward": (loops[-2], ""), "kernels of a layer, backward": (loops[-1], "")}


def collective_rows(text: str) -> list[Row]:
    """Bytes that one device receives in one run of the program ``compiled.as_text()``, by kind; then the total."""
    found = hlo.collectives(text)
    total = sum(found.values(), hlo.Traffic())
    return [
        {"collective": kind, "arrays": traffic.arrays, "MiB": traffic.bytes / 2**20}
        for kind, traffic in [*sorted(found.items()), ("total", total)]
    ]


def _lowered_step(config: RunConfig) -> jax.stages.Lowered:
    optimizer = make_optimizer(config.optim, 1, trained_info(config))
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    teacher = None if config.objective.teacher is None else param_shapes(config.objective.teacher.known)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in config.data.arrays().items()}
    train_step = jax.jit(make_train_step(config, optimizer), donate_argnums=0)
    return train_step.lower(state, batch, teacher)


def _mib(tree: Any) -> float:
    """MiB of a tree on one device."""

    def size(leaf):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree))) / 2**20
