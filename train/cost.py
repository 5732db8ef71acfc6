"""What a model is made of and what a training step costs, as tables."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.functional import Params
from train.config import RunConfig
from train.optimizer import make_optimizer
from train.step import init_state, make_train_step

Row = dict[str, Any]


def parameter_rows(params: Params) -> list[Row]:
    """One row per module that holds parameters: their names, how many numbers, how many bytes; then the total."""
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
    """Memory, arithmetic and compile time of one training step, from shapes alone: no array is made."""
    start = time.perf_counter()
    compiled = _lowered_step(config).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes / 2**20 if memory else math.nan
    state = jax.eval_shape(lambda: init_state(config, make_optimizer(config.optim, total_steps=1)))
    gflop = step_flops(config) / 1e9
    mib = {
        "parameters": _mib(state.params),
        "optimizer state": _mib(state.opt_state),
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

    XLA counts the body of a loop once. The loops over layers, micro-batches and loss chunks are therefore taken
    apart first; the loop over time is not: it holds a few operations per channel, beside the matrix products.
    """
    execution = config.model.execution.replace(layers="unroll")
    whole = config.train.replace(accumulate=1, loss_chunk=config.data.seq_len)
    config = config.replace(model=config.model.replace(execution=execution), train=whole)
    cost = _lowered_step(config).cost_analysis()
    return cost["flops"] if cost else math.nan


def _lowered_step(config: RunConfig) -> jax.stages.Lowered:
    optimizer = make_optimizer(config.optim, total_steps=1)
    state = jax.eval_shape(lambda: init_state(config, optimizer))
    tokens = jax.ShapeDtypeStruct((config.data.batch_size, config.data.seq_len), jnp.int32)
    train_step = jax.jit(make_train_step(config, optimizer), donate_argnums=0)
    return train_step.lower(state, {"inputs": tokens, "targets": tokens})


def _mib(tree: Any) -> float:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20
