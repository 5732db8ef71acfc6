"""Statistics of the residual streams on real tokens: how they are computed, what they mean, how they are recorded."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

import mhc_jax
from mhc_jax import diagnostics
from mhc_jax.functional import Params
from mhc_jax.ops.loss import IGNORE
from train.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number per site.

    Attributes:
        name: in :func:`mhc_jax.diagnostics.statistics`, and in ``metrics.jsonl``.
        title: for a person.
        meaning: a sentence.
        summary: which one number stands for all sites.
        neutral: what it is where nothing is mixed, if that is known.
    """

    name: str
    title: str
    meaning: str
    summary: Literal["max", "min", "mean"]
    neutral: float | None = None


QUANTITIES = (
    Quantity(
        "row_sum_error",
        "row sum error",
        "Greatest distance of a row sum of H_res from 1: at 0, what a stream receives weighs as much as what it was.",
        "max",
    ),
    Quantity(
        "column_sum_error",
        "column sum error",
        "Greatest distance of a column sum of H_res from 1: at 0, everything that a stream holds is passed on once.",
        "max",
    ),
    Quantity(
        "entropy",
        "row entropy",
        "Entropy of the sources of a stream, as shares of |H_res|, over ln N: 0 with a single source, 1 when all "
        "streams are averaged.",
        "mean",
        0.0,
    ),
    Quantity(
        "identity_distance",
        "distance from I",
        "Frobenius norm of H_res - I over that of I: 0 where the site mixes nothing.",
        "mean",
        0.0,
    ),
    Quantity("min_entry", "least entry", "Least entry of H_res: below 0 a stream is subtracted from another.", "min"),
    Quantity(
        "forward_gain",
        "forward gain",
        "Greatest absolute row sum of the product of all H_res up to this site: how much the mixing alone can amplify "
        "a signal on its way up.",
        "max",
        1.0,
    ),
    Quantity(
        "backward_gain",
        "backward gain",
        "Greatest absolute column sum of the same product: how much the mixing alone can amplify a gradient on its "
        "way down.",
        "max",
        1.0,
    ),
    Quantity(
        "stream_cosine",
        "stream cosine",
        "Mean cosine between two streams of a token after the site: at 1 the streams all point the same way.",
        "mean",
    ),
    Quantity(
        "effective_streams",
        "effective streams",
        "Participation ratio of the squared singular values of a token's streams: 1 if they are multiples of one "
        "vector, N if they are orthogonal and equally long.",
        "mean",
    ),
)


def make_stream_step(config: RunConfig) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """A function of (params, batch) that returns the statistics on one micro-batch, without dropout.

    Activations of all sites are held at once, as training does without rematerialisation.
    """

    def stream_step(params: Params, batch: Any) -> dict[str, jax.Array]:
        # Every so many rows, as in training: a batch sharded in contiguous runs is cut without moving a row.
        batch = jax.tree.map(lambda x: x[:: config.train.accumulate], batch)
        taps = mhc_jax.apply(config.model, params, batch["inputs"], taps=True).taps
        return diagnostics.statistics(taps, batch["targets"] != IGNORE)

    return stream_step


def record(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Nested lists of numbers with six digits, site by site."""
    return {
        name: jax.tree.map(lambda x: float(f"{x:.6g}"), np.asarray(values).tolist())
        for name, values in jax.device_get(dict(statistics)).items()
    }


def by_site(recorded: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The quantities of :data:`QUANTITIES` in a record, (S,) each; what was not finite is NaN."""
    return {quantity.name: np.array(recorded[quantity.name], float) for quantity in QUANTITIES}


def summaries(recorded: Mapping[str, Any]) -> dict[str, float]:
    """One number for all sites per quantity: its mean, or the one furthest from harmless."""
    reduce = {"max": np.max, "min": np.min, "mean": np.mean}
    values = by_site(recorded)
    return {quantity.name: float(reduce[quantity.summary](values[quantity.name])) for quantity in QUANTITIES}
