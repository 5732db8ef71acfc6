"""Statistics of the residual streams on real tokens: how they are computed, what they mean, how they are recorded."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import mhc_jax
from mhc_jax import diagnostics
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, param_shapes
from mhc_jax.ops.loss import IGNORE
from train import sharding
from train.config import RunConfig
from train.data import check_ids, load_corpus

# Statistics as nested lists, site by site: what a line of ``metrics.jsonl`` holds under "streams".
Record = dict[str, Any]

# A sum may be off by so much through float32 rounding alone.
ROUNDING = 1e-8


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number per site.

    Attributes:
        name: in :func:`mhc_jax.diagnostics.statistics`, and in ``metrics.jsonl``.
        title: for a person.
        meaning: a sentence.
        summary: which one number stands for all sites.
        neutral: what it is where nothing is mixed, if that is known.
        shown: a plot shows at least this range, so that noise does not fill it.
        log: a plot is logarithmic.
    """

    name: str
    title: str
    meaning: str
    summary: Literal["max", "min", "mean"]
    neutral: float | None = None
    shown: tuple[float, float] = (0.0, 0.1)
    log: bool = False


QUANTITIES = (
    Quantity(
        "row_sum_error",
        "row sum error",
        "Greatest distance of a row sum of H_res from 1: at 0, what a stream receives weighs as much as what it was.",
        "max",
        shown=(ROUNDING, 1.0),
        log=True,
    ),
    Quantity(
        "column_sum_error",
        "column sum error",
        "Greatest distance of a column sum of H_res from 1: at 0, everything that a stream holds is passed on once.",
        "max",
        shown=(ROUNDING, 1.0),
        log=True,
    ),
    Quantity(
        "entropy",
        "row entropy",
        "Entropy of the sources of a stream, as shares of |H_res|, over ln N: 0 with a single source, 1 when all "
        "streams are averaged.",
        "mean",
        neutral=0.0,
    ),
    Quantity(
        "identity_distance",
        "distance from I",
        "Frobenius norm of H_res - I over that of I: 0 where the site mixes nothing.",
        "mean",
        neutral=0.0,
    ),
    Quantity("min_entry", "least entry", "Least entry of H_res: below 0 a stream is subtracted from another.", "min"),
    Quantity(
        "forward_gain",
        "forward gain",
        "Greatest absolute row sum of the product of all H_res up to this site: how much the mixing alone can amplify "
        "a signal on its way up.",
        "max",
        neutral=1.0,
        shown=(0.9, 1.1),
    ),
    Quantity(
        "backward_gain",
        "backward gain",
        "Greatest absolute column sum of the same product: how much the mixing alone can amplify a gradient on its "
        "way down.",
        "max",
        neutral=1.0,
        shown=(0.9, 1.1),
    ),
    Quantity(
        "stream_cosine",
        "stream cosine",
        "Mean cosine between two streams of a token after the site: at 1 the streams all point the same way.",
        "mean",
        shown=(0.0, 1.02),
    ),
    Quantity(
        "effective_streams",
        "effective streams",
        "Participation ratio of the squared singular values of a token's streams: 1 if they are multiples of one "
        "vector, N if they are orthogonal and equally long.",
        "mean",
        shown=(0.95, 2.0),
    ),
)


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


def by_site(recorded: Record) -> dict[str, np.ndarray]:
    """The quantities of :data:`QUANTITIES` in a record, (S,) each; what was not finite is NaN."""
    return {quantity.name: np.array(recorded[quantity.name], float) for quantity in QUANTITIES}


def summaries(recorded: Record) -> dict[str, float]:
    """One number for all sites per quantity: its mean, or the one furthest from harmless."""
    reduce = {"max": np.max, "min": np.min, "mean": np.mean}
    values = by_site(recorded)
    return {quantity.name: float(reduce[quantity.summary](values[quantity.name])) for quantity in QUANTITIES}


def rows(recorded: Record, sites: Sequence[str]) -> list[dict[str, Any]]:
    """A table: one row per site."""

    def sums(name: str, site: int) -> str:
        return f"{recorded[f'{name}_min'][site]:.4f} .. {recorded[f'{name}_max'][site]:.4f}"

    shown = [quantity for quantity in QUANTITIES if not quantity.name.endswith("sum_error")]
    return [
        {
            "site": name,
            "row sums": sums("row_sum", site),
            "column sums": sums("column_sum", site),
            **{quantity.title: recorded[quantity.name][site] for quantity in shown},
        }
        for site, name in enumerate(sites)
    ]
