"""Statistics of the residual streams on real tokens: computation, tables and records."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import mhc_jax
from mhc_jax import diagnostics
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, param_shapes
from mhc_jax.ops.loss import IGNORE
from train.config import RunConfig
from train.data.kind import Batch, places
from train.devices import sharding
from train.report.quantities import Record


def make_stream_step(config: RunConfig, mesh: Mesh | None = None) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """A function of (params, batch) that returns the statistics on one micro-batch, without dropout.

    Activations of all sites are in memory at once, as in training without rematerialisation.
    """

    def stream_step(params: Params, batch: Any) -> dict[str, jax.Array]:
        # Strided rows, as in training: a batch sharded in contiguous runs is cut without moving a row.
        batch = jax.tree.map(lambda x: x[:: config.train.accumulate], batch)
        params, batch_sharding = sharding.for_step(config.model, params, mesh)
        return _statistics(config, params, batch, batch_sharding)

    return stream_step


def mixes(config: RunConfig) -> bool:
    """Whether sites tap their coefficients, so that there are statistics. Nothing is computed."""
    batch = {"inputs": jax.ShapeDtypeStruct((1, 1), jnp.int32)}
    return bool(jax.eval_shape(functools.partial(_statistics, config), param_shapes(config.model), batch))


def check(config: RunConfig) -> None:
    """Raises ConfigError if the configuration requests statistics of a model without tapped coefficients."""
    if config.log.streams_every and not mixes(config):
        model, needed = ", ".join(config.model.description), "sites that tap h_pre, h_post or h_res"
        raise ConfigError(f"--log.streams-every needs {needed}, and this model ({model}) has none; set it to 0")


def measure(config: RunConfig, params: Params, batch: Batch) -> Record:
    """The statistics on these tokens; if the batch has targets, on tokens with a target only."""
    return record(jax.jit(functools.partial(_statistics, config))(params, batch))


def _statistics(
    config: RunConfig,
    params: Params,
    batch: Mapping[str, jax.Array],
    batch_sharding: jax.sharding.Sharding | None = None,
) -> dict[str, jax.Array]:
    options = {"taps": True, "batch_sharding": batch_sharding}
    found = mhc_jax.apply(config.model, params, batch["inputs"], **places(batch), **options)
    mask_BT = batch["targets"] != IGNORE if "targets" in batch else jnp.ones(batch["inputs"].shape, bool)
    return diagnostics.statistics(found.taps, config.model.layer_mask(mask_BT), under=config.model.layers_under)


def validation_rows(config: RunConfig, count: int) -> Batch:
    """About ``count`` tokens, but at least one row, from the start of the validation split: a batch of (B, T).

    Raises:
        ConfigError: the data cannot be read, or does not fit the model.
    """
    data = config.data.load(("validation",))
    data.check(config.model.vocab_size)
    wanted, found = max(count // config.data.seq_len, 1), []
    for batch in data.evaluation():
        full = (batch["targets"] != IGNORE).any(axis=1)
        found.append({name: x[full] for name, x in batch.items()})
        if sum(len(batch["inputs"]) for batch in found) >= wanted:
            break
    return {name: np.concatenate([batch[name] for batch in found])[:wanted] for name in found[0]}


def some_tokens(config: RunConfig) -> Batch:
    """One row of a few token ids that any model has."""
    return {"inputs": np.arange(min(16, config.model.max_len, config.model.vocab_size), dtype=np.int32)[None]}


def record(statistics: Mapping[str, Any]) -> Record:
    """Nested lists of numbers with six digits, site by site."""
    return {
        name: jax.tree.map(lambda x: float(f"{x:.6g}"), np.asarray(values).tolist())
        for name, values in jax.device_get(dict(statistics)).items()
    }
