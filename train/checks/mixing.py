"""Mixing matrices, from the taps of a forward pass, beside what their projection or topology promises."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mhc_jax.nn.backbone import BackboneConfig
from mhc_jax.nn.channel import LinearMHCConfig
from mhc_jax.nn.projections import Promise
from mhc_jax.nn.residual import SHCConfig
from train.checks.finding import Finding
from train.checks.subject import Subject

# By the fields of a promise: a name, and the errors of matrices (..., N, N).
ERRORS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "rows": ("row sums", lambda h: np.abs(h.sum(-1) - 1)),
    "columns": ("column sums", lambda h: np.abs(h.sum(-2) - 1)),
    "negative": ("entries below 0", lambda h: np.maximum(-h, 0)),
    "orthogonal": ("H H^T - I", lambda h: np.abs(h @ h.swapaxes(-1, -2) - np.eye(h.shape[-1]))),
    "norm": ("spectral norm - 1", lambda h: np.maximum(np.linalg.norm(h, 2, axis=(-2, -1)) - 1, 0)),
    "shrinking": ("1 - least singular value", lambda h: np.maximum(1 - np.linalg.norm(h, -2, axis=(-2, -1)), 0)),
}


class Place(NamedTuple):
    """A mixing matrix of every block: what mixes, what it promises, and the name of the tap."""

    what: str
    promise: Promise
    tap: str


def mixing(subject: Subject) -> list[Finding]:
    """Every promised property of every matrix."""
    model = subject.model
    places = list(_places(model)) if isinstance(model, BackboneConfig) else []
    if not places:
        return [Finding.unchecked("mixing matrices", "no part of the model promises anything of its mixing")]
    findings = []
    for place in places:
        matrix = subject.output.taps.get(place.tap)
        if matrix is None:
            findings.append(Finding(f"mixing, {place.what}", "no tap", place.tap, False))
            continue
        for name, bound in dataclasses.asdict(place.promise).items():
            if bound is not None:
                title, errors = ERRORS[name]
                worst = float(errors(np.asarray(matrix, np.float64)).max())
                findings.append(Finding.at_most(f"{place.what}: {title}", worst, bound))
    return findings


def _places(model: BackboneConfig) -> Iterator[Place]:
    streams, projection = model.residual.stream_count, getattr(model.residual, "projection", None)
    for name, part in model.sites.items():
        h_res = f"{name} H_res", f"blocks.{name}.residual.h_res"
        if projection is not None and streams is not None and not projection.is_identity(streams):
            yield Place(h_res[0], projection.promise, h_res[1])
        elif isinstance(model.residual, SHCConfig) and model.residual.streams > 1:
            yield Place(h_res[0], model.residual.promise(model.layers * len(model.sites)), h_res[1])
        if isinstance(part, LinearMHCConfig):
            yield Place(name, part.projection.promise, f"blocks.{name}.branch.mixing")
