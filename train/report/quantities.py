"""Quantities of residual streams: their meaning, their display, and one number for all sites."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

# Statistics as nested lists, site by site, as a line of ``metrics.jsonl`` holds under "streams".
Record = dict[str, Any]


# Largest error of a sum that float32 rounding alone explains.
ROUNDING = 1e-8


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number per site; records lack what their topology has not, or what was not measured when they were written.

    Attributes:
        name: name in :func:`mhc_jax.diagnostics.statistics` and in ``metrics.jsonl``.
        title: for a person.
        meaning: a sentence.
        summary: reduction to one number for all sites.
        neutral: its value without mixing, if that is known.
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
        "singular_max",
        "largest singular",
        "Largest singular value of H_res among tokens: how much a site can lengthen the streams as one vector.",
        "max",
        neutral=1.0,
        shown=(0.0, 1.05),
    ),
    Quantity(
        "singular_min",
        "least singular",
        "Least singular value of H_res among tokens: how much is left of what a site shortens most.",
        "min",
        neutral=1.0,
        shown=(0.0, 1.05),
    ),
    Quantity(
        "composite_max",
        "product's largest",
        "Largest singular value of the product of all H_res up to this site, among tokens.",
        "max",
        neutral=1.0,
        shown=(0.0, 1.05),
    ),
    Quantity(
        "composite_min",
        "product's least",
        "Least singular value of the same product: near 0 the streams have become copies of each other, or some of "
        "them are lost.",
        "min",
        neutral=1.0,
        shown=(0.0, 1.05),
    ),
    Quantity(
        "routing_entropy",
        "routing entropy",
        "Entropy of a token's weights of the components of H, over the logarithm of their number: 0 with one "
        "component, 1 when all weigh the same.",
        "mean",
        shown=(0.0, 1.05),
    ),
    Quantity(
        "components_used",
        "components used",
        "Number of components that serve, all tokens together: 1 if all of them take the same one, all if each has an "
        "equal share.",
        "min",
        shown=(0.95, 2.0),
    ),
    Quantity(
        "rank", "streams kept", "Number of streams that a token keeps, mean over tokens.", "mean", shown=(0.95, 2)
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

BY_NAME = {quantity.name: quantity for quantity in QUANTITIES}


def present(recorded: Record) -> list[Quantity]:
    """The quantities that a record has."""
    return [quantity for quantity in QUANTITIES if quantity.name in recorded]


def by_site(recorded: Record) -> dict[str, np.ndarray]:
    """The quantities that a record has, (S,) each; non-finite values are NaN."""
    return {quantity.name: np.array(recorded[quantity.name], float) for quantity in present(recorded)}


def summaries(recorded: Record) -> dict[str, float]:
    """One number for all sites per quantity: its mean, or the one furthest from harmless."""
    reduce = {"max": np.max, "min": np.min, "mean": np.mean}
    values = by_site(recorded)
    return {quantity.name: float(reduce[quantity.summary](values[quantity.name])) for quantity in present(recorded)}


# What a numeric policy can change of mixing.
OF_POLICIES = ("singular_max", "singular_min", "composite_max", "composite_min", "forward_gain", "rank")


def policy_rows(recorded: Mapping[str, Record]) -> list[dict[str, Any]]:
    """A table: one row per numeric policy, one number for all sites of each."""

    def row(policy: str, of_policy: Record) -> dict[str, Any]:
        found = summaries(of_policy)
        return {"policy": policy, **{BY_NAME[name].title: found[name] for name in OF_POLICIES if name in found}}

    return [row(*item) for item in recorded.items()]


def rows(recorded: Record, sites: Sequence[str]) -> list[dict[str, Any]]:
    """A table: one row per site."""

    def sums(name: str, site: int) -> str:
        return f"{recorded[f'{name}_min'][site]:.4f} .. {recorded[f'{name}_max'][site]:.4f}"

    shown = [quantity for quantity in present(recorded) if not quantity.name.endswith("sum_error")]
    return [
        {
            "site": name,
            "row sums": sums("row_sum", site),
            "column sums": sums("column_sum", site),
            **{quantity.title: recorded[quantity.name][site] for quantity in shown},
        }
        for site, name in enumerate(sites)
    ]
