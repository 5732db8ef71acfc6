"""Statistics of the residual streams on real tokens: how they are computed, what they mean, how they are recorded."""

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
from train.data import check_ids, load_corpus
from train.devices import sharding
from train.report.quantities import Record


def make_stream_step(config: RunConfig, mesh: Mesh | None = None) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """A function of (params, batch) that returns the statistics on one micro-batch, without dropout.

    Activations of all sites are held at once, as training does without rematerialisation.
    """

    def stream_step(params: Params, batch: Any) -> dict[str, jax.Array]:
        # Every so many rows, as in training: a batch sharded in contiguous runs is cut without moving a row.
        batch = jax.tree.map(lambda x: x[:: config.train.accumulate], batch)
        params, batch_sharding = sharding.for_step(config.model, params, mesh)
        return _statistics(config, params, batch["inputs"], batch["targets"] != IGNORE, batch_sharding)

    return stream_step


def mixes(config: RunConfig) -> bool:
    """Whether there are streams to look at. Nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return bool(jax.eval_shape(functools.partial(_statistics, config), param_shapes(config.model), tokens))


def check(config: RunConfig) -> None:
    """Raises ConfigError if statistics are asked for of a model that mixes nothing."""
    if config.log.streams_every and not mixes(config):
        parts = ", ".join(config.model.description)
        raise ConfigError(f"--log.streams-every needs a model that mixes streams, not this one ({parts}); set it to 0")


def measure(config: RunConfig, params: Params, tokens_BT: np.ndarray) -> Record:
    """The statistics on these tokens."""
    return record(jax.jit(functools.partial(_statistics, config))(params, jnp.asarray(tokens_BT, jnp.int32)))


def _statistics(
    config: RunConfig,
    params: Params,
    tokens_BT: jax.Array,
    mask_BT: jax.Array | None = None,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> dict[str, jax.Array]:
    taps = mhc_jax.apply(config.model, params, tokens_BT, taps=True, batch_sharding=batch_sharding).taps
    return diagnostics.statistics(taps, mask_BT)


def validation_tokens(config: RunConfig, count: int) -> np.ndarray:
    """About ``count`` tokens, but at least one window, from the start of the validation split: (B, T).

    Raises:
        ConfigError: the corpus cannot be read, or does not fit the model.
    """
    tokens = load_corpus(config.data, needed=("validation",)).validation
    T = min(config.data.seq_len, config.model.max_len, len(tokens))
    B = max(min(count, len(tokens)) // T, 1)
    tokens = np.asarray(tokens[: B * T])
    check_ids(tokens, config.model.vocab_size, "the validation tokens")
    return tokens.reshape(B, T)


def some_tokens(config: RunConfig) -> np.ndarray:
    """A few that any model knows: (1, T)."""
    return np.arange(min(16, config.model.max_len, config.model.vocab_size))[None]


def record(statistics: Mapping[str, Any]) -> Record:
    """Nested lists of numbers with six digits, site by site."""
    return {
        name: jax.tree.map(lambda x: float(f"{x:.6g}"), np.asarray(values).tolist())
        for name, values in jax.device_get(dict(statistics)).items()
    }
